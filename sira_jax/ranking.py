# SPDX-License-Identifier: Apache-2.0
"""Which of a few answers a model finds likeliest."""

from collections.abc import Sequence
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from sira_jax import decoding, prompts, sharding
from sira_jax.adapters import records


def likelihoods(
  model: decoding.Cached,
  inputs: Sequence[Sequence[int]],
  choices: Sequence[Sequence[int]],
  *,
  batch_size: int,
  record: decoding.Record | None = None,
) -> Float[np.ndarray, "prompts choices"]:
  """log p(choice | prompt) in nats, of every choice after every prompt.

      sum over the choice's tokens of log softmax(logits)[token]

  as seqio's and T5's rank classification has it: the end counts as a token, and
  nothing is divided by length. A prompt is read once for all choices.

  Args:
    model: in evaluation mode.
    inputs: token ids of prompts, without padding.
    choices: token ids of answers, each with its end.
    batch_size: the largest number of prompts at once; there are so many rows
      of logits as the longest choice has tokens.
    record: is told what routers report of reading the prompts.

  Raises:
    ValueError: a choice without a token, or a prompt that is empty or too long
      to be followed by the longest.
  """
  if not choices or not all(map(len, choices)):
    raise ValueError(
      f"Expected choices of a token at least, got {len(choices)} choices of"
      f" {[len(choice) for choice in choices][:20]} tokens."
    )
  # The first token is scored by the prompt, others by what is before them.
  longest = max(2, *map(len, choices))
  prompts.check(inputs, max_length=model.max_length, max_new_tokens=longest)
  ids = np.zeros((len(choices), longest), np.int32)
  real = np.zeros((len(choices), longest), np.float32)
  for row, choice in enumerate(choices):
    ids[row, : len(choice)], real[row, : len(choice)] = choice, 1
  given = sharding.whole({"ids": ids, "real": real})
  graph, state = nnx.split(model)
  found = np.zeros((len(inputs), len(choices)), np.float32)
  for indices, batch in prompts.batches(
    inputs, batch_size=batch_size, pad_id=0
  ):
    scores, reports = jax.device_get(
      _scores(
        graph, state, sharding.rows(batch), given, recorded=record is not None
      )
    )
    found[indices] = scores[: len(indices)]
    if record is not None:
      record(indices, reports)
  return found


@functools.partial(jax.jit, static_argnames=("graph", "recorded"))
def _scores(graph, state, batch, given, *, recorded):
  """[rows choices], and, if asked for, what routers report of the prompts."""
  longest = given["ids"].shape[1]

  def read(model):
    return model.start(batch["tokens"], batch["lengths"], room=longest)

  model, reports = nnx.merge(graph, state, copy=True), {}
  if recorded:
    (hidden, positions, cache), reports = records.captured(read, model)
  else:
    hidden, positions, cache = read(model)
  first = _log_softmax(model, hidden)

  def score(one):
    ids, real = one
    before = jnp.broadcast_to(ids[:-1], (len(positions), longest - 1))
    places = positions[:, None] + jnp.arange(longest - 1)
    hidden, _ = model.extend(before, places, cache)
    each = jnp.concatenate([first, _log_softmax(model, hidden)], axis=1)
    at = jnp.broadcast_to(ids[None, :, None], (len(positions), longest, 1))
    return jnp.take_along_axis(each, at, axis=2)[..., 0] @ real

  scores = jax.lax.map(score, (given["ids"], given["real"]))
  return sharding.constrain(scores.T, None, None), reports


def _log_softmax(model, hidden):
  return jax.nn.log_softmax(model.logits(hidden).astype(jnp.float32))
