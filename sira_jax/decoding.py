# SPDX-License-Identifier: Apache-2.0
"""Greedy or sampled continuations, with any model that has a cache."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
import functools
from typing import Any, Protocol, TypeVar
import zlib

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped
import numpy as np

from sira_jax import filters, sharding
from sira_jax import prompts as prompts_lib
from sira_jax.adapters import records

T = TypeVar("T")
# Takes the indices of a batch's prompts and what routers report of its rows,
# the prompts' first.
Record = Callable[[Sequence[int], records.Recorded], None]


class Cached(Protocol):
  """The cache protocol: what decoding asks of a model.

  A cache is a pytree that remembers what the model has read; the first axis of
  each of its arrays is that of the rows.
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
  eos_id: int | Collection[int],
  pad_id: int = 0,
  batch_size: int = 8,
  record: Record | None = None,
) -> list[list[int]]:
  """The most probable next token, again and again until a stop token.

  Ties go to the lower id. At most `batch_size` prompts are decoded at once,
  those of similar length together. One program is compiled for each number
  of rows (a power of two or `batch_size`, on a mesh rounded up to what it
  divides), prompt length (a multiple of 64), `max_new_tokens` and number of
  stop tokens (a multiple of 4), and kept for later calls.

  Args:
    model: in evaluation mode.
    prompts: token ids, without padding.
    max_new_tokens: where a continuation ends without a stop token.
    eos_id: one stop token or several: each ends a continuation and is not
      part of it.
    pad_id: fills shorter prompts; any id will do, for nobody sees it.
    batch_size: the largest number of rows.
    record: is told what routers report of reading the prompts.

  Returns:
    The continuations, in the order of the prompts.

  Raises:
    ValueError: a prompt is empty, or too long to be continued by
      `max_new_tokens` within the model's max_length.
  """
  found = _continuations(
    model,
    prompts,
    {},
    max_new_tokens=max_new_tokens,
    eos_id=eos_id,
    pad_id=pad_id,
    batch_size=batch_size,
    record=record,
  )
  return [ids for (ids,) in found]


def sample(
  model: Cached,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  eos_id: int | Collection[int],
  seed: int,
  samples: int = 1,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  pad_id: int = 0,
  batch_size: int = 8,
) -> list[list[list[int]]]:
  """Next tokens drawn from the filtered distribution until a stop token.

      token t of draw j ~ softmax(filtered(logits)), by the key
      fold_in(fold_in(fold_in(key(seed), crc32(prompt)), j), t)

  So what is drawn for a prompt depends on the seed and its own tokens, not on
  the prompts around it (but for rounding, which differs between shapes), and
  fewer samples are the first of more. A prompt that comes again draws on:
  j counts over all of them.

  A prompt is read once for all of its samples. Programs are as for `greedy`,
  for each number of samples, too, and with or without top_k or top_p; other
  numbers of temperature, top_k and top_p need no other program.

  Args:
    model: in evaluation mode.
    prompts: token ids, without padding.
    max_new_tokens: where a continuation ends without a stop token.
    eos_id: as for `greedy`.
    seed: from 0 to 2**32 - 1.
    samples: continuations of each prompt.
    temperature: see `filters.filtered`.
    top_k: see there.
    top_p: see there; 1 is none.
    pad_id: fills shorter prompts.
    batch_size: the largest number of rows, one for each sample; at least one
      prompt with all its samples is decoded at once.

  Returns:
    The samples of each prompt, in the order of the prompts.

  Raises:
    ValueError: as `greedy` and `filters.check`, no sample, or a seed out of
      range.
  """
  filters.check(temperature=temperature, top_k=top_k, top_p=top_p)
  if samples < 1:
    raise ValueError(f"Expected samples of at least 1, got {samples}.")
  if not 0 <= seed < 2**32:
    raise ValueError(f"Expected a seed from 0 to 2**32 - 1, got {seed}.")
  numbers = {
    "seed": np.array(seed, np.uint32),
    "temperature": np.array(temperature, np.float32),
  }
  if top_k is not None:
    numbers["top_k"] = np.array(min(top_k, 2**31 - 1), np.int32)
  if top_p is not None and top_p < 1:
    numbers["top_p"] = np.array(top_p, np.float32)
  return _continuations(
    model,
    prompts,
    numbers,
    max_new_tokens=max_new_tokens,
    eos_id=eos_id,
    pad_id=pad_id,
    batch_size=batch_size,
    samples=samples,
  )


def repeated(tree: T, copies: int) -> T:
  """Each row so many times, one after another."""
  return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), tree)


def _continuations(
  model,
  prompts,
  numbers,
  *,
  max_new_tokens,
  eos_id,
  samples=1,
  record=None,
  **options,
):
  """Greedy where there are no numbers to draw by."""
  prompts_lib.check(
    prompts, max_length=model.max_length, max_new_tokens=max_new_tokens
  )
  graph, state = nnx.split(model)
  ends, draws = prompts_lib.ends(eos_id), _draws(prompts, samples)
  found: dict[int, list[list[int]]] = {}
  for indices, batch in prompts_lib.batches(prompts, copies=samples, **options):
    if numbers:
      batch["draws"] = np.zeros((len(batch["lengths"]), 2), np.uint32)
      batch["draws"][: len(indices)] = draws[indices]
    # Transfers are said, so that decoding runs under jax.transfer_guard.
    decoded, reports = _decode(
      graph,
      state,
      {**sharding.rows(batch), **sharding.whole({"ends": ends, **numbers})},
      max_new_tokens=max_new_tokens,
      samples=samples,
      recorded=record is not None,
    )
    rows = jax.device_get(decoded).tolist()
    if record is not None:
      record(indices, jax.device_get(reports))
    for i, ids in zip(indices, rows, strict=False):
      found[i] = [prompts_lib.cut(one, ends) for one in ids]
  return [found[i] for i in range(len(prompts))]


def _draws(prompts, samples) -> Int[np.ndarray, "prompts 2"]:
  """Of each prompt its checksum and the number of its first draw."""
  seen: Counter[int] = Counter()
  found = np.zeros((len(prompts), 2), np.uint32)
  for i, prompt in enumerate(prompts):
    checksum = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
    found[i] = checksum, seen[checksum]
    seen[checksum] += samples
  return found


def _keys(batch, samples) -> Key[Array, "rows*samples"]:
  """The key of each row's draws."""
  key = jax.random.key(batch["seed"])

  def one(checksum, first, j):
    return jax.random.fold_in(jax.random.fold_in(key, checksum), first + j)

  each = jax.vmap(one, (None, None, 0))
  numbers = jnp.arange(samples, dtype=jnp.uint32)
  keys = jax.vmap(each, (0, 0, None))(*batch["draws"].T, numbers)
  return keys.reshape(-1)


# The weights are an argument: constants of their size would be compiled in.
@functools.partial(
  jax.jit, static_argnames=("graph", "max_new_tokens", "samples", "recorded")
)
def _decode(
  graph: nnx.GraphDef,
  state: nnx.State,
  batch: Mapping[str, Shaped[Array, "..."]],
  *,
  max_new_tokens: int,
  samples: int,
  recorded: bool,
) -> tuple[Int[Array, "batch samples max_new_tokens"], records.Recorded]:
  """Continuations; what follows a stop token is of no meaning.

  And, if asked for, what routers report of the prompts.
  """
  ends, limits = batch["ends"], {k: batch.get(k) for k in ("top_k", "top_p")}
  keys = _keys(batch, samples) if "seed" in batch else None

  def next_token(hidden: Float[Array, "rows 1 d"], step) -> Int[Array, "rows"]:
    scores = nnx.merge(graph, state).logits(hidden)[:, 0]
    if keys is None:
      return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = filters.filtered(
      scores, temperature=batch["temperature"], **limits
    )
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(own, scores).astype(jnp.int32)

  def unfinished(carry):
    step, _, finished, _, _ = carry
    return (step < max_new_tokens) & ~jnp.all(finished)

  def append(carry):
    step, last, finished, output, cache = carry
    # A model of its own: layers may keep things for the trace they run in.
    hidden, cache = nnx.merge(graph, state).extend(
      last[:, None], (positions + step - 1)[:, None], cache
    )
    last = next_token(hidden, step)
    output = output.at[:, step].set(last)
    return step + 1, last, finished | jnp.isin(last, ends), output, cache

  lengths = batch["lengths"]

  def read(model):
    return model.start(batch["tokens"], lengths, room=max_new_tokens)

  model, reports = nnx.merge(graph, state), {}
  if recorded:
    started, reports = records.captured(read, model)
  else:
    started = read(model)
  if samples > 1:
    lengths, *started = repeated((lengths, *started), samples)
  hidden, positions, cache = started
  first = next_token(hidden, 0)
  output = jnp.full((len(lengths), max_new_tokens), ends[0], jnp.int32)
  finished = jnp.isin(first, ends) | (lengths == 0)
  carry = 1, first, finished, output.at[:, 0].set(first), cache
  output = jax.lax.while_loop(unfinished, append, carry)[3]
  output = output.reshape(-1, samples, max_new_tokens)
  output = sharding.constrain(output, None, None, None)  # for every process
  return output, reports
