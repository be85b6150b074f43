# SPDX-License-Identifier: Apache-2.0
"""Beam search with any model that has a cache."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped
import numpy as np

from sira_jax import decoding, prompts, sharding

# What a beam has before its prompt has as many: no token is less probable.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class Beam:
  """A continuation, and the score that it was chosen by."""

  tokens: list[int]
  score: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
  """Where a search stands; of running beams, the best is first.

  Attributes:
    last: token of each running beam.
    running: its log probability.
    tokens: its continuation so far.
    scores: of finished beams, best first; -inf where there is none yet.
    finished: their continuations, -1 after the end.
    unfinished: prompts whose finished beams may still be bettered.
  """

  last: Int[Array, "batch beams"]
  running: Float[Array, "batch beams"]
  tokens: Int[Array, "batch beams new"]
  scores: Float[Array, "batch beams"]
  finished: Int[Array, "batch beams new"]
  unfinished: Bool[Array, "batch"]


def search(
  model: decoding.Cached,
  inputs: Sequence[Sequence[int]],
  *,
  beams: int,
  max_new_tokens: int,
  eos_id: int | Collection[int],
  length_penalty: float = 1.0,
  early_stopping: bool = False,
  pad_id: int = 0,
  batch_size: int = 8,
) -> list[list[Beam]]:
  """The continuations of highest score that a search `beams` wide finds.

      score = log p(tokens | prompt) / n ** length_penalty

  where n counts the tokens, the stop token included. Of all one token longer
  continuations of the running beams, the best `beams` without a stop token run
  on, and those of the best `beams` that end in one, or at `max_new_tokens`,
  are finished; the best `beams` of the finished are kept. A prompt's search
  ends when it has that many and the best running one, were it to end now,
  would not better the worst of them (which a length penalty may make wrong);
  with `early_stopping`, when it has that many.

  Source: Hugging Face's `generate(num_beams=beams)`, with its defaults and the
  same tokens, of which tests keep examples (transformers 5.23). Programs are
  as for `decoding.greedy`, for each number of beams, too.

  Args:
    model: in evaluation mode.
    inputs: prompts: token ids, without padding.
    beams: 1 is greedy decoding.
    max_new_tokens: where a continuation ends without a stop token.
    eos_id: as for `decoding.greedy`.
    length_penalty: above 0 favours longer continuations, below 0 shorter.
    early_stopping: whether the first finished beams will do.
    pad_id: fills shorter prompts.
    batch_size: the largest number of rows, one for each beam; at least one
      prompt with all its beams is searched at once.

  Returns:
    The finished beams of each prompt, best first, in the order of the prompts.

  Raises:
    ValueError: as `decoding.greedy`, or no beam.
  """
  if beams < 1:
    raise ValueError(f"Expected beams of at least 1, got {beams}.")
  prompts.check(
    inputs, max_length=model.max_length, max_new_tokens=max_new_tokens
  )
  graph, state = nnx.split(model)
  ends = prompts.ends(eos_id)
  found: dict[int, list[Beam]] = {}
  for indices, batch in prompts.batches(
    inputs, batch_size=batch_size, pad_id=pad_id, copies=beams
  ):
    numbers = {
      "ends": ends,
      "penalty": np.array(length_penalty, np.float32),
      "early": np.array(early_stopping),
    }
    searched = _search(
      graph,
      state,
      {**sharding.rows(batch), **sharding.whole(numbers)},
      beams=beams,
      max_new_tokens=max_new_tokens,
    )
    tokens, scores = (part.tolist() for part in jax.device_get(searched))
    for i, *one in zip(indices, tokens, scores, strict=False):
      found[i] = [
        Beam(prompts.cut(ids, np.append(ends, -1)), score)
        for ids, score in zip(*one, strict=True)
        if score > -np.inf
      ]
  return [found[i] for i in range(len(inputs))]


@functools.partial(
  jax.jit,
  static_argnames=("graph", "beams", "max_new_tokens"),
)
def _search(
  graph: nnx.GraphDef,
  state: nnx.State,
  batch: Mapping[str, Shaped[Array, "..."]],
  *,
  beams: int,
  max_new_tokens: int,
) -> tuple[Int[Array, "batch beams new"], Float[Array, "batch beams"]]:
  """Tokens, -1 after the end, and scores of the finished beams."""
  take = functools.partial(
    _advance,
    ends=batch["ends"],
    penalty=batch["penalty"],
    early=batch["early"],
  )

  def log_probabilities(hidden):
    scores = nnx.merge(graph, state).logits(hidden)[:, 0]
    return jax.nn.log_softmax(scores, axis=-1)

  def unfinished(carry):
    step, found, _ = carry
    return (step < max_new_tokens) & jnp.any(found.unfinished)

  def advance(carry):
    step, found, cache = carry
    hidden, cache = nnx.merge(graph, state).extend(
      found.last.reshape(-1, 1), (positions + step - 1)[:, None], cache
    )
    found, parents = take(found, log_probabilities(hidden), step)
    return step + 1, found, _of(parents, cache)

  started = nnx.merge(graph, state).start(
    batch["tokens"], batch["lengths"], room=max_new_tokens
  )
  hidden, positions, cache = decoding.repeated(started, beams)
  rows = len(batch["lengths"])
  empty = jnp.full((rows, beams, max_new_tokens), -1, jnp.int32)
  found = _Search(
    last=empty[..., 0],
    # All are the same so far, and only one of them may be continued.
    running=jnp.full((rows, beams), _NEVER).at[:, 0].set(0.0),
    tokens=empty,
    scores=jnp.full((rows, beams), -jnp.inf),
    finished=empty,
    unfinished=batch["lengths"] > 0,
  )
  found, parents = take(found, log_probabilities(hidden), 0)
  carry = 1, found, _of(parents, cache)
  found = jax.lax.while_loop(unfinished, advance, carry)[1]
  return (  # for every process
    sharding.constrain(found.finished, None, None, None),
    sharding.constrain(found.scores, None, None),
  )


def _advance(
  found: _Search,
  log_p: Float[Array, "batch*beams vocabulary"],
  step: int | Int[Array, ""],
  *,
  ends: Int[Array, "ends"],
  penalty: Float[Array, ""],
  early: Bool[Array, ""],
) -> tuple[_Search, Int[Array, "batch beams"]]:
  """The search one token further, and which beam each running one continues."""
  rows, beams, length = found.tokens.shape
  vocabulary = log_p.shape[-1]
  log_p = log_p.reshape(rows, beams, vocabulary) + found.running[..., None]
  is_end = jnp.isin(jnp.arange(vocabulary), ends)

  def best(values):
    values, index = jax.lax.top_k(values.reshape(rows, -1), beams)
    parents, last = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    return values, parents, last, _beams(parents, found.tokens)

  values, _, last, tokens = best(log_p)
  ended = is_end[last]
  tokens = tokens.at[..., step].set(jnp.where(ended, -1, last))
  ended |= step == length - 1
  scores = values / jnp.asarray(step + 1, jnp.float32) ** penalty
  scores = jnp.where(ended & found.unfinished[:, None], scores, -jnp.inf)
  scores, kept = jax.lax.top_k(
    jnp.concatenate([found.scores, scores], axis=1), beams
  )
  finished = jnp.concatenate([found.finished, tokens], axis=1)

  running, parents, last, tokens = best(jnp.where(is_end, -jnp.inf, log_p))
  hoped = running[:, 0] / jnp.asarray(step + 1, jnp.float32) ** penalty
  worst = scores[:, -1]
  unfinished = (hoped > worst) & ~(early & (worst > -jnp.inf))
  found = _Search(
    last=last,
    running=running,
    tokens=tokens.at[..., step].set(last),
    scores=scores,
    finished=_beams(kept, finished),
    unfinished=found.unfinished & unfinished,
  )
  return found, parents


def _beams(chosen, values):
  """Of each prompt, these of its beams' values [batch beams ...]."""
  return jnp.take_along_axis(values, chosen[..., None], axis=1)


def _of(parents, cache):
  """The cache of rows that continue these beams of each prompt."""
  rows, beams = parents.shape
  index = (jnp.arange(rows)[:, None] * beams + parents).reshape(-1)
  return jax.tree.map(lambda x: x[index], cache)
