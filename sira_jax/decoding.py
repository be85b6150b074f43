# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding with any model that has a cache."""

from collections.abc import Iterator, Sequence
import functools
from typing import Any, Protocol

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from sira_jax import sharding

# Prompts are padded to a multiple of this, so that few programs are compiled.
_BUCKET = 64


class Cached(Protocol):
  """The cache protocol: what decoding asks of a model.

  A cache is any pytree that remembers what the model has read.
  """

  max_length: float

  def start(
    self,
    prompts: Int[Array, "batch length"],
    lengths: Int[Array, "batch"],
    *,
    room: int,
  ) -> tuple[Float[Array, "batch 1 d"], Int[Array, "batch"], Any]:
    """Reads prompts of these lengths, padded on the right by anything.

    Returns the hidden state that the first new token is drawn from, the
    position of that token, and a cache with room for so many of them.
    """

  def extend(
    self,
    tokens: Int[Array, "batch n"],
    positions: Int[Array, "batch n"],
    cache: Any,
  ) -> tuple[Float[Array, "batch n d"], Any]:
    """Hidden states of the tokens, and the cache that holds them too.

    The tokens at later positions see them there.
    """

  def logits(
    self, hidden: Float[Array, "batch n d"]
  ) -> Float[Array, "batch n vocabulary"]:
    """Scores of every next token."""


def greedy(
  model: Cached,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  eos_id: int,
  pad_id: int = 0,
  batch_size: int = 8,
) -> list[list[int]]:
  """The most probable next token, again and again until `eos_id`.

  Ties go to the lower id. At most `batch_size` prompts are decoded at once,
  those of similar length together. One program is compiled for each number
  of rows (a power of two or `batch_size`, on a mesh rounded up to what it
  divides), prompt length (a multiple of 64)
  and `max_new_tokens`, and kept for later calls.

  Args:
    model: in evaluation mode.
    prompts: token ids, without padding.
    max_new_tokens: where a continuation ends without `eos_id`.
    eos_id: ends a continuation and is not part of it.
    pad_id: fills shorter prompts; any id will do, for nobody sees it.
    batch_size: the largest number of rows.

  Returns:
    The continuations, in the order of the prompts.

  Raises:
    ValueError: a prompt is empty, or too long to be continued by
      `max_new_tokens` within the model's max_length.
  """
  for i, prompt in enumerate(prompts):
    if not 0 < len(prompt) <= model.max_length - max_new_tokens:
      raise ValueError(
        f"Expected prompts of 1 to {model.max_length - max_new_tokens} tokens "
        f"(max_length={model.max_length} less max_new_tokens="
        f"{max_new_tokens}), got {len(prompt)} in prompt {i}. Shorten it or "
        "lower max_new_tokens."
      )
  graph, state = nnx.split(model)
  continuations: dict[int, list[int]] = {}
  for rows in _batches(prompts, batch_size):
    tokens, lengths = _padded([prompts[i] for i in rows], pad_id, batch_size)
    # Transfers are said, so that decoding runs under jax.transfer_guard.
    batch = dict(tokens=tokens, lengths=lengths, eos_id=np.array(eos_id))
    decoded = _decode(
      graph, state, **sharding.rows(batch), max_new_tokens=max_new_tokens
    )
    for i, ids in zip(rows, jax.device_get(decoded).tolist(), strict=False):
      continuations[i] = ids[: ids.index(eos_id)] if eos_id in ids else ids
  return [continuations[i] for i in range(len(prompts))]


def _batches(
  prompts: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[int]]:
  """Indices of prompts to decode together."""
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  for start in range(0, len(order), batch_size):
    yield order[start : start + batch_size]


def _padded(
  prompts: list[Sequence[int]], pad_id: int, batch_size: int
) -> tuple[Int[np.ndarray, "batch length"], Int[np.ndarray, "batch"]]:
  """Prompts filled up to bucketed sizes, and their lengths: 0 in empty rows."""
  rows = min(batch_size, 1 << (len(prompts) - 1).bit_length())
  rows = -(-rows // sharding.places()) * sharding.places()
  longest = max(len(prompt) for prompt in prompts)
  columns = -(-longest // _BUCKET) * _BUCKET
  tokens = np.full((rows, columns), pad_id, np.int32)
  lengths = np.zeros(rows, np.int32)
  for i, prompt in enumerate(prompts):
    tokens[i, : len(prompt)] = prompt
    lengths[i] = len(prompt)
  return tokens, lengths


# The weights are an argument: constants of their size would be compiled in.
@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens"))
def _decode(
  graph: nnx.GraphDef,
  state: nnx.State,
  tokens: Int[Array, "batch length"],
  lengths: Int[Array, "batch"],
  eos_id: Int[Array, ""],
  *,
  max_new_tokens: int,
) -> Int[Array, "batch max_new_tokens"]:
  """Continuations; what follows an `eos_id` is of no meaning."""

  def next_token(hidden: Float[Array, "batch 1 d"]) -> Int[Array, "batch"]:
    scores = nnx.merge(graph, state).logits(hidden)[:, 0]
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)

  def unfinished(carry):
    step, _, finished, _, _ = carry
    return (step < max_new_tokens) & ~jnp.all(finished)

  def append(carry):
    step, last, finished, output, cache = carry
    # A model of its own: layers may keep things for the trace they run in.
    hidden, cache = nnx.merge(graph, state).extend(
      last[:, None], (positions + step - 1)[:, None], cache
    )
    last = next_token(hidden)
    output = output.at[:, step].set(last)
    return step + 1, last, finished | (last == eos_id), output, cache

  hidden, positions, cache = nnx.merge(graph, state).start(
    tokens, lengths, room=max_new_tokens
  )
  first = next_token(hidden)
  output = jnp.full((len(tokens), max_new_tokens), eos_id, jnp.int32)
  finished = (first == eos_id) | (lengths == 0)
  carry = 1, first, finished, output.at[:, 0].set(first), cache
  output = jax.lax.while_loop(unfinished, append, carry)[3]
  return sharding.constrain(output, None, None)  # for every process
