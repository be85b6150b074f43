# SPDX-License-Identifier: Apache-2.0
"""What the routers do, by task and language; and pictures of experts."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from flax import nnx
import jax
import numpy as np

from sira_jax import sharding
from sira_jax.adapters.variables import RoutingRecord

# Sites of a model, each with numbers by set.
Report = Mapping[str, Any]


def routing(
  model: nnx.Module,
  sets: Sequence[Any],
  *,
  examples: int = 16,
  batch_size: int = 32,
) -> Report | None:
  """How the routers of an adapted model treat the prompts of some sets.

  Args:
    model: has routed adapters; put into evaluation mode here.
    sets: with `task`, `language`, `zero_shot` and `inputs` (token ids).
    examples: taken of each set, from its start.
    batch_size: rows of a forward pass.

  Returns:
    None where nothing is routed; else "sets" ("task/language") and "sites": of
    each, "load", the share of its choices that each expert gets, [sets
    experts], "weight", the mean of each expert's combine weight over tokens,
    [sets experts], and "entropy" of the probabilities per token in nats,
    [sets].
  """
  model.eval()
  owners, prompts = [], []
  for index, one in enumerate(sets):
    for prompt in one.inputs[:examples]:
      owners.append(index)
      prompts.append(prompt)
  totals: dict[str, dict[str, np.ndarray]] = {}
  graph, state = nnx.split(model)
  length = max(map(len, prompts))
  for start in range(0, len(prompts), batch_size):
    rows = -(-batch_size // sharding.places()) * sharding.places()
    batch = _padded(
      prompts[start : start + batch_size], rows, length, model.FEATURES
    )
    owner = owners[start : start + batch_size]
    for site, stats in jax.device_get(_record(graph, state, batch)).items():
      _add(totals.setdefault(site, {}), stats, owner, len(sets))
  if not totals:
    return None
  return {
    "sets": [f"{one.task}/{one.language}" for one in sets],
    "zero_shot": [one.zero_shot for one in sets],
    "sites": {site: _shares(sums) for site, sums in totals.items()},
  }


@functools.partial(jax.jit, static_argnames="graph")
def _record(graph, state, batch):
  model = nnx.merge(graph, state, copy=True)
  _, records = nnx.capture(lambda model: model.hidden(**batch), RoutingRecord)(
    model
  )
  whole = lambda x: sharding.constrain(x, *[None] * x.ndim)  # noqa: E731
  return {
    ".".join(map(str, path[:-2])): {
      "load": whole(stats.load),
      "entropy": whole(stats.entropy),
      "tokens": whole(stats.tokens),
      "weight": whole(stats.weight),
    }
    for path, record in nnx.to_flat_state(records)
    for stats in record.get_value()
  }


def _padded(prompts, rows, length, features):
  tokens = np.zeros((rows, length), np.int32)
  real = np.zeros((rows, length), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, : len(prompt)] = prompt
    real[row, : len(prompt)] = 1
  names = {"decoder_input_tokens": tokens, "decoder_target_tokens": real}
  if "decoder_causal_attention" in features:
    names["decoder_causal_attention"] = real
  if "encoder_input_tokens" in features:
    # The decoder reads the token that begins every answer.
    first = np.zeros((rows, 1), np.int32)
    names = {"encoder_input_tokens": tokens, "decoder_input_tokens": first}
    names = {k: v for k, v in names.items() if k in features}
  return sharding.rows(names)


def _add(sums, stats, owners, sets):
  for name, values in stats.items():
    total = sums.setdefault(name, np.zeros((sets, *values.shape[1:])))
    np.add.at(total, owners, np.float64(values[: len(owners)]))


def _shares(sums):
  load = sums["load"] / sums["load"].sum(axis=1, keepdims=True)
  entropy = sums["entropy"] / sums["tokens"]
  return {
    "load": load.round(5).tolist(),
    "weight": (sums["weight"] / sums["tokens"][:, None]).round(7).tolist(),
    "entropy": entropy.round(5).tolist(),
  }
