# SPDX-License-Identifier: Apache-2.0
"""All numbers of an analysis: of a model's experts, and of its statistics.

Choices are what tokens chose; where each token is sent to all experts, they
are the combine weights.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

from flax import nnx
import jax
import numpy as np

from sira_jax import analysis
from sira_jax import routing_measures as measures
from sira_jax.adapters import allocation, surgery

LABELS = ("task", "language")
_OTHER = {"task": "language", "language": "task"}


@dataclasses.dataclass(frozen=True)
class Layer:
  """One routed layer.

  Attributes:
    block: where it is, such as "layers.3".
    module: what it is there, such as "q_proj".
    router: the path of the first layer that has the same router.
    k: experts a token is sent to.
    load: each expert's share of all choices, [experts].
    entropy: of the router's probabilities, mean over tokens, in nats.
    margin: of the k-th largest logit over the next, mean over tokens; None
      where k is all experts.
    turned_away: the share of the choices that the training's capacity would
      turn away; None where there is none.
    shares: "task" and "language" -> each expert's share of the choices of each
      label, [labels experts].
    information: "task" and "language" -> nats, baseline, quantile and p of
      `routing_measures.Information`; None of a single label.
    similarity: cosines of the experts' weights, [experts experts]; None where
      they are not linear.
  """

  block: str
  module: str
  router: str
  k: int
  load: np.ndarray
  entropy: float
  margin: float | None
  turned_away: float | None
  shares: Mapping[str, np.ndarray]
  information: Mapping[str, Mapping[str, float] | None]
  similarity: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Clusters:
  """Languages by how they are routed.

  Attributes:
    languages: in the run's order.
    tasks: that all of them have, whose mean is compared.
    distances: see `routing_measures.distances`, in the order of `languages`.
    merges: see `routing_measures.clusters`.
    order: of the tree's leaves, numbers of languages.
  """

  languages: tuple[str, ...]
  tasks: tuple[str, ...]
  distances: np.ndarray
  merges: np.ndarray
  order: list[int]


@dataclasses.dataclass(frozen=True)
class Numbers:
  """What a report shows.

  Attributes:
    layers: path -> its numbers, in the model's order.
    labels: "task" and "language" -> those that there are.
    zero_shot: languages that nothing was trained on in.
    tokens: "task" and "language" -> of the prompts of each label, in the order
      of `labels`.
    examples: whose prompts were read.
    permutations: of labels.
    mean_p: "task" and "language" -> p of the mean over layers; None of a
      single label.
    clusters: None of fewer than two languages with a task in common.
    dropped: the share of expert choices that a capacity turned away in the
      last tenth of the training; None where that is not known.
  """

  layers: Mapping[str, Layer]
  labels: Mapping[str, tuple[str, ...]]
  tokens: Mapping[str, tuple[int, ...]]
  zero_shot: tuple[str, ...]
  examples: int
  permutations: int
  mean_p: Mapping[str, float | None]
  clusters: Clusters | None
  dropped: float | None


def check(factories: Sequence[Any]) -> None:
  """Checks that something is routed.

  Args:
    factories: what a run's rules have, or a model's sites.

  Raises:
    ValueError: none has a router.
  """
  if all(getattr(one, "router", None) is None for one in factories):
    methods = ", ".join(sorted({one.method for one in factories}))
    raise ValueError(
      f"Nothing is routed: the run trains {methods or 'nothing'}, which has no"
      " router. There are routers in sira, molora, smoe_dropout, lora_smoe, and"
      " in mov of several experts."
    )


def routed(model: nnx.Module) -> dict[str, surgery.Adapter]:
  """Path -> adapter of each layer that has a router.

  Raises:
    ValueError: there is none.
  """
  check([site.factory for site in surgery.sites(model)])
  adapters = {p: x.adapter for p, x in surgery.adapted(model).items()}
  return {
    path: adapter
    for path, adapter in adapters.items()
    if getattr(adapter, "router", None) is not None
  }


def numbers(
  model: nnx.Module,
  statistics: analysis.Statistics,
  *,
  permutations: int = 1000,
  seed: int = 0,
  metrics: pathlib.Path | None = None,
) -> Numbers:
  """The numbers of a model and of what its routers did.

  Args:
    model: adapted and trained.
    statistics: of its routers.
    permutations: of labels, for the baselines.
    seed: of them.
    metrics: the log of the training.

  Raises:
    ValueError: nothing is routed, or the statistics are of other layers.
  """
  adapters = routed(model)
  if set(adapters) != set(statistics.sites):
    raise ValueError(
      f"The statistics are of {len(statistics.sites)} layers, and the model"
      f" routes in {len(adapters)}, not the same. Gather them anew."
    )
  choices = {
    path: _choices(adapter, statistics.sites[path])
    for path, adapter in adapters.items()
  }
  labels = {
    name: tuple(dict.fromkeys(statistics.labels(name))) for name in LABELS
  }
  told = _information(
    list(choices.values()), statistics, permutations=permutations, seed=seed
  )
  layers, routers = {}, {}
  places = _places(adapters)
  for number, (path, adapter) in enumerate(adapters.items()):
    layers[path] = Layer(
      *places[path],
      router=routers.setdefault(id(adapter.router), path),
      **_of_router(adapter, statistics.sites[path], choices[path]),
      shares={
        name: measures.shares(
          choices[path], statistics.labels(name), labels[name]
        )
        for name in LABELS
      },
      information={
        name: found and _one(found, number) for name, found in told.items()
      },
      similarity=_similarity(adapter),
    )
  return Numbers(
    layers=layers,
    labels=labels,
    tokens={name: _tokens(statistics, name, labels[name]) for name in LABELS},
    zero_shot=tuple(
      dict.fromkeys(x.language for x in statistics.sets if x.zero_shot)
    ),
    examples=len(statistics.owners),
    permutations=permutations,
    mean_p={name: found and found.mean_p for name, found in told.items()},
    clusters=_clusters(list(choices.values()), statistics),
    dropped=metrics and _dropped(metrics),
  )


def plain(found: Numbers) -> dict[str, Any]:
  """The numbers as JSON has them: lists, and null for what is no number."""
  return _plain(dataclasses.asdict(found))


def _places(paths):
  """Path -> its block and module."""
  _, _, cells = allocation.grid({path: path for path in paths})
  return {path: place for place, path in cells.items()}


def _choices(adapter, fields):
  """Counts; of a dense mixture, whose counts say nothing, weights."""
  dense = adapter.router.settings.k == adapter.factory.experts
  return fields["weight" if dense else "load"]


def _of_router(adapter, fields, choices):
  """The fields of `Layer` that no label is needed for."""
  settings, tokens = adapter.router.settings, fields["tokens"]
  away = None
  if settings.limited:
    away = measures.turned_away(
      choices,
      tokens,
      k=settings.k,
      capacity=settings.capacity,
      capacity_factor=settings.capacity_factor,
    )
  total = np.float64(choices).sum(axis=0)
  dense = settings.k == adapter.factory.experts
  mean = lambda name: float(np.float64(fields[name]).sum() / tokens.sum())  # noqa: E731
  return dict(
    k=settings.k,
    load=total / total.sum(),
    entropy=mean("entropy"),
    margin=None if dense else mean("margin"),
    turned_away=away,
  )


def _information(layers, statistics, **options):
  """Of tasks and of languages, where there are several."""
  labels = {name: statistics.labels(name) for name in LABELS}
  return {
    name: measures.information(
      layers, own, strata=labels[_OTHER[name]], **options
    )
    if len(set(own)) > 1
    else None
    for name, own in labels.items()
  }


def _tokens(statistics, name, labels):
  """Of a layer that reads the most: a decoder may read less than an encoder."""
  tokens = max((x["tokens"] for x in statistics.sites.values()), key=np.sum)
  own = np.array(statistics.labels(name))
  return tuple(int(tokens[own == label].sum()) for label in labels)


def _one(found, number):
  """What `Information` says of one layer."""
  return {
    name: float(getattr(found, name)[number])
    for name in ("nats", "baseline", "quantile", "p")
  }


def _similarity(adapter):
  """Between all the router's experts; NaN of those that were pruned."""
  number = lambda x: np.asarray(jax.device_get(x), np.float64)  # noqa: E731
  if not hasattr(adapter, "experts"):  # vectors, as weights of one column
    vectors = number(adapter.delta[...])
    return measures.similarity(np.ones((1, len(vectors), 1)), vectors[:, None])
  if adapter.factory.activation != "identity":
    return None
  experts = adapter.experts()
  b = number(experts.b)
  if experts.g is not None:
    b = b * number(experts.g)[..., None]
  found = np.full((adapter.factory.experts,) * 2, np.nan)
  live = adapter.factory.live or range(adapter.factory.experts)
  found[np.ix_(live, live)] = measures.similarity(number(experts.a), b)
  return found


def _clusters(layers, statistics):
  """Each language's routing is the mean over tasks that all languages have."""
  there = [statistics.sets[owner] for owner in np.unique(statistics.owners)]
  languages = tuple(dict.fromkeys(one.language for one in there))
  pairs = {(one.task, one.language) for one in there}
  tasks = tuple(
    task
    for task in dict.fromkeys(one.task for one in there)
    if all((task, language) in pairs for language in languages)
  )
  if len(languages) < 2 or not tasks:
    return None
  owners = list(
    zip(statistics.labels("task"), statistics.labels("language"), strict=True)
  )
  rows = [[(task, language) for language in languages] for task in tasks]
  profiles = [
    np.mean([measures.shares(x, owners, row) for row in rows], axis=0)
    for x in layers
  ]
  between = measures.distances(profiles)
  merges = measures.clusters(between)
  return Clusters(languages, tasks, between, merges, measures.leaves(merges))


def _dropped(metrics):
  """The mean of the last tenth of a metrics.jsonl."""
  if not metrics.exists():
    return None
  found = [json.loads(line) for line in metrics.read_text().splitlines()]
  found = [one.get("dropped_fraction") for one in found]
  found = [one for one in found if one is not None]
  return float(np.mean(found[-max(1, len(found) // 10) :])) if found else None


def _plain(value):
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, Mapping):
    return {name: _plain(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(one) for one in value]
  if isinstance(value, float):
    return round(value, 6) if math.isfinite(value) else None
  return value
