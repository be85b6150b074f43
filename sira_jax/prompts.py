# SPDX-License-Identifier: Apache-2.0
"""Prompts as padded batches of few shapes; continuations cut at their end."""

from collections.abc import Collection, Iterator, Sequence

from jaxtyping import Int
import numpy as np

from sira_jax import sharding

# Prompts are padded to a multiple of this, so that few programs are compiled.
_BUCKET = 64
# And so are stop tokens.
_ENDS = 4


def check(
  prompts: Sequence[Sequence[int]], *, max_length: float, max_new_tokens: int
) -> None:
  """Checks that each can be continued.

  Raises:
    ValueError: a prompt is empty, or too long to be continued by
      `max_new_tokens` within `max_length`; or nothing is to be added.
  """
  if max_new_tokens < 1:
    raise ValueError(
      f"Expected max_new_tokens of at least 1, got {max_new_tokens}."
    )
  for i, prompt in enumerate(prompts):
    if not 0 < len(prompt) <= max_length - max_new_tokens:
      raise ValueError(
        f"Expected prompts of 1 to {max_length - max_new_tokens} tokens "
        f"(max_length={max_length} less max_new_tokens="
        f"{max_new_tokens}), got {len(prompt)} in prompt {i}. Shorten it or "
        "lower max_new_tokens."
      )


def groups(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
  """The indices of prompts of similar length, at most so many together."""
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  return [order[start : start + size] for start in range(0, len(order), size)]


def batches(
  prompts: Sequence[Sequence[int]],
  *,
  batch_size: int,
  pad_id: int,
  copies: int = 1,
) -> Iterator[tuple[list[int], dict[str, Int[np.ndarray, "rows ..."]]]]:
  """Prompts of similar length together, in few shapes.

  Args:
    prompts: token ids, without padding.
    batch_size: the largest number of rows, copies counted; one prompt's
      copies stay together even if they are more.
    pad_id: fills shorter prompts.
    copies: rows that a program makes of each prompt.

  Yields:
    The indices of the prompts, and a batch: `tokens` [rows, length], the
    prompts' and then empty rows, and `lengths` [rows], 0 in empty ones. There
    are as many rows as a power of two or the largest number, on a mesh rounded
    up to what it divides; a length is a multiple of 64.
  """
  size = max(1, batch_size // copies)
  for indices in groups(prompts, size):
    yield indices, _padded([prompts[i] for i in indices], pad_id, size)


def _padded(chosen, pad_id, size):
  rows = min(size, 1 << (len(chosen) - 1).bit_length())
  rows = -(-rows // sharding.places()) * sharding.places()
  longest = max(len(prompt) for prompt in chosen)
  columns = -(-longest // _BUCKET) * _BUCKET
  tokens = np.full((rows, columns), pad_id, np.int32)
  lengths = np.zeros(rows, np.int32)
  for i, prompt in enumerate(chosen):
    tokens[i, : len(prompt)] = prompt
    lengths[i] = len(prompt)
  return {"tokens": tokens, "lengths": lengths}


def ends(eos_id: int | Collection[int]) -> Int[np.ndarray, "ends"]:
  """Stop tokens, repeated to a multiple of 4; -1 where there are none."""
  ids = [eos_id] if isinstance(eos_id, int | np.integer) else sorted(eos_id)
  return np.resize(
    np.array(ids or [-1], np.int32), _ENDS * -(-len(ids) // _ENDS) or _ENDS
  )


def cut(ids: list[int], ends: Int[np.ndarray, "ends"]) -> list[int]:
  """The ids before the first stop token."""
  stops = set(ends.tolist())
  length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
  return ids[:length]
