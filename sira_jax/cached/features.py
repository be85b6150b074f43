# SPDX-License-Identifier: Apache-2.0
"""What a model reads of a batch's examples, as `data.pipeline` has it."""

from collections.abc import Sequence
import itertools

import numpy as np

Batch = dict[str, np.ndarray]
Example = tuple[np.ndarray, np.ndarray]
"""Token ids of inputs, and of targets with their end."""

Rows = Sequence[Sequence[Example]]
"""The examples of each row."""


def check(
  *,
  batch_size: int,
  length: int,
  targets_length: int | None,
  start: int,
  buckets: Sequence[int] = (),
  pack: bool = False,
) -> None:
  """Refuses numbers that are out of range.

  Raises:
    ValueError: one is; or there are buckets of packed rows.
  """
  if isinstance(buckets, int) or any(
    not isinstance(one, int) or one < 2 for one in buckets
  ):
    raise ValueError(
      "Expected buckets to be lengths of 2 tokens at least, such as (32, 64),"
      f" got {buckets!r}."
    )
  edges = [*buckets, length]
  if any(one >= two for one, two in itertools.pairwise(edges)):
    raise ValueError(
      f"Expected buckets that grow, and are all below the length of {length},"
      f" got {tuple(buckets)}."
    )
  if buckets and pack:
    raise ValueError(
      "Expected buckets or packed rows, got both: with pack=True a row is full"
      " already. Take one of them."
    )
  for name, value, least in (
    ("batch_size", batch_size, 1),
    ("length", length, 2),
    ("targets_length", 2 if targets_length is None else targets_length, 1),
    ("start", start, 0),
  ):
    if value < least:
      raise ValueError(f"Expected {name} of at least {least}, got {value}.")


def decoder(rows: Rows, *, length: int, pack: bool, prefix: bool) -> Batch:
  """Of a decoder: inputs, then targets, whose loss counts; [rows length]."""
  texts = [[np.concatenate(example) for example in row] for row in rows]
  batch = _shifted(_side(texts, length, pack=pack, name="decoder"))
  batch["decoder_loss_weights"] = np.zeros((len(rows), length), np.float32)
  if prefix:
    batch["decoder_causal_attention"] = np.zeros((len(rows), length), np.int32)
  for number, row in enumerate(rows):
    at = 0
    for inputs, targets in row:
      answer, end = at + len(inputs), at + len(inputs) + len(targets)
      batch["decoder_loss_weights"][number, answer:end] = 1
      if prefix:  # the 0 that begins it, too
        last = min(answer + 1, end)
        batch["decoder_causal_attention"][number, at:last] = 1
      at = end
  return batch


def encoder_decoder(
  rows: Rows, *, length: int, targets_length: int, pack: bool, end: int
) -> Batch:
  """Inputs and an end, [rows length]; targets, [rows targets_length]."""
  end = np.array([end])
  inputs = [[np.concatenate([example[0], end]) for example in r] for r in rows]
  targets = [[example[1] for example in row] for row in rows]
  side = _side(inputs, length, pack=pack, name="encoder")
  side["encoder_input_tokens"] = side.pop("encoder_target_tokens")
  batch = side | _shifted(
    _side(targets, targets_length, pack=pack, name="decoder")
  )
  real = batch["decoder_target_tokens"] != 0
  batch["decoder_loss_weights"] = real.astype(np.float32)
  return batch


def labelled(batch: Batch, values: np.ndarray | None) -> Batch:
  """What an encoder with a head reads of a batch for an encoder-decoder.

  Args:
    batch: whose targets are labels' numbers, from 1.
    values: of a regression's labels, [labels].
  """
  kept = ("decoder_target_tokens", "decoder_loss_weights")
  kept = {
    k: v for k, v in batch.items() if k.startswith("encoder_") or k in kept
  }
  labels = np.maximum(kept["decoder_target_tokens"] - 1, 0)
  if values is None:
    return kept | {"decoder_target_tokens": labels}
  del kept["decoder_target_tokens"]
  return kept | {"decoder_target_values": values[labels]}


def trimmed(batch: Batch, buckets: Sequence[int]) -> Batch:
  """A batch without the positions at the end that all of its rows leave empty.

  Args:
    batch: unpacked; a decoder's, or an encoder's and what is beside it, whose
      length stays.
    buckets: the lengths that may be, beside that of the batch.
  """
  encoder = "encoder_input_tokens" in batch
  side = "encoder_" if encoder else "decoder_"
  tokens = batch["encoder_input_tokens" if encoder else "decoder_target_tokens"]
  longest = int((tokens != 0).sum(axis=1).max())
  length = min(size for size in (*buckets, tokens.shape[1]) if size >= longest)
  return {
    name: values[:, :length] if name.startswith(side) else values
    for name, values in batch.items()
  }


def _side(texts, length, *, pack, name) -> Batch:
  """Rows of texts one after the other, and with `pack` which is which."""
  shape = (len(texts), length)
  tokens = np.zeros(shape, np.int32)
  segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for number, row in enumerate(texts):
    at = 0
    for segment, ids in enumerate(row, 1):
      span = number, slice(at, at + len(ids))
      tokens[span], segments[span] = ids, segment
      positions[span] = np.arange(len(ids))
      at += len(ids)
  batch = {f"{name}_target_tokens": tokens}
  if pack:
    batch[f"{name}_segment_ids"] = segments
    batch[f"{name}_positions"] = positions
  return batch


def _shifted(batch) -> Batch:
  """With what a decoder reads: its targets a token later, first a 0."""
  targets = batch["decoder_target_tokens"]
  inputs = np.zeros_like(targets)
  inputs[:, 1:] = targets[:, :-1]
  if "decoder_segment_ids" in batch:
    segments = batch["decoder_segment_ids"]
    inputs[:, 1:] *= segments[:, 1:] == segments[:, :-1]
  return batch | {"decoder_input_tokens": inputs}
