# SPDX-License-Identifier: Apache-2.0
"""What routers did with the prompts of an evaluation, example by example.

Decoding reads every prompt anyway: what the routers report of that is kept, so
that an evaluation with statistics computes what one without them does.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import json
from typing import Any

import numpy as np

from sira_jax import storage
from sira_jax.adapters import records

# Layers, each with numbers by set.
Report = Mapping[str, Any]
# A field of `records.FIELDS` -> values [examples] or [examples experts], sums
# over the real tokens of a prompt.
Site = Mapping[str, np.ndarray]

# At most so many examples of a set are kept, and of all sets together.
_OF_A_SET, _OF_ALL = 64, 4096
_FILE = "routing.npz"


@dataclasses.dataclass(frozen=True)
class Set:
  """Which evaluation set an example is from."""

  task: str
  language: str
  zero_shot: bool

  @property
  def name(self) -> str:
    """Of task and language."""
    return f"{self.task}/{self.language}"


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What routers did with some examples.

  Attributes:
    sets: those that the examples are from.
    owners: the number of each example's set, [examples].
    sites: path of a layer -> its numbers; none if nothing is routed.
  """

  sets: tuple[Set, ...]
  owners: np.ndarray
  sites: Mapping[str, Site]

  def labels(self, name: str) -> list[str]:
    """The task or the language of each example; `name` says which."""
    return [getattr(self.sets[owner], name) for owner in self.owners]


def most(sets: int) -> int:
  """How many examples are kept of each of so many sets."""
  return max(1, min(_OF_A_SET, _OF_ALL // max(1, sets)))


class Recorder:
  """Keeps what routers report of the first examples of each set.

  Args:
    sets: with `task`, `language`, `zero_shot` and `inputs`, whose prompts, one
      set after another, are those that are read.
    examples: the most that are kept of a set; see `most`.
  """

  def __init__(self, sets: Sequence[Any], *, examples: int | None = None):
    if examples is None:
      examples = most(len(sets))
    self._sets = tuple(
      Set(one.task, one.language, bool(one.zero_shot)) for one in sets
    )
    self._rows: dict[int, int] = {}
    owners, start = [], 0
    for number, one in enumerate(sets):
      kept = min(examples, len(one.inputs))
      for index in range(start, start + kept):
        self._rows[index] = len(owners)
        owners.append(number)
      start += len(one.inputs)
    self._owners = np.array(owners, int)
    self._sites: dict[str, dict[str, np.ndarray]] = {}

  def __call__(self, indices: Sequence[int], reports: records.Recorded) -> None:
    """Takes a batch; see `decoding.Record`."""
    numbers, reports = self.part(indices, reports)
    rows = [self._rows[number] for number in numbers]
    for names, fields in reports.items():
      for field, values in fields.items():
        for name, found in zip(names, values, strict=True):
          site = self._sites.setdefault(name, {})
          if field not in site:
            shape = (len(self._owners), *found.shape[1:])
            site[field] = np.full(shape, np.nan, np.float32)
          site[field][rows] = found

  def part(
    self, indices: Sequence[int], reports: records.Recorded
  ) -> tuple[list[int], records.Recorded]:
    """What is kept of a batch: the prompts, and the reports of them alone."""
    at = [row for row, index in enumerate(indices) if index in self._rows]
    if not at:
      return [], {}
    return [indices[row] for row in at], {
      names: {
        field: np.asarray(values)[:, at] for field, values in fields.items()
      }
      for names, fields in reports.items()
    }

  def statistics(self) -> Statistics:
    """Of all that was taken."""
    return Statistics(self._sets, self._owners, self._sites)


def summary(statistics: Statistics) -> Report | None:
  """The numbers by set; None where nothing is routed.

  Returns:
    "sets" ("task/language"), "zero_shot" and "sites": of each, "load", the
    share of its choices that each expert gets, [sets experts], "weight", the
    mean of each expert's combine weight over tokens, [sets experts], "entropy"
    of the probabilities per token in nats, [sets], and "margin", per token, of
    the k-th largest router logit over the next one, [sets].
  """
  if not statistics.sites:
    return None
  sites = {}
  for name, fields in statistics.sites.items():
    sums = {
      field: _by_set(values, statistics) for field, values in fields.items()
    }
    sites[name] = _shares(sums)
  return {
    "sets": [one.name for one in statistics.sets],
    "zero_shot": [one.zero_shot for one in statistics.sets],
    "sites": sites,
  }


def save(statistics: Statistics, workdir: storage.Path) -> None:
  """Leaves the statistics in a run's directory, for `load`."""
  arrays = {
    f"{number}.{field}": values
    for number, fields in enumerate(statistics.sites.values())
    for field, values in fields.items()
  }
  named = {
    "sets": [dataclasses.astuple(one) for one in statistics.sets],
    "sites": list(statistics.sites),
  }
  stream = io.BytesIO()
  np.savez_compressed(
    stream,
    names=np.array(json.dumps(named)),
    owners=statistics.owners,
    **arrays,
  )
  storage.write(workdir / _FILE, stream.getvalue())


def load(workdir: storage.Path) -> Statistics | None:
  """What `save` left in a run's directory; None if it left nothing.

  Raises:
    ValueError: the file cannot be read.
  """
  file = workdir / _FILE
  if not file.exists():
    return None
  try:
    content = io.BytesIO(file.read_bytes())
    with np.load(content, allow_pickle=False) as found:
      named = json.loads(str(found["names"]))
      sites = {
        name: {field: found[f"{i}.{field}"] for field in records.FIELDS}
        for i, name in enumerate(named["sites"])
      }
      sets = tuple(Set(*one) for one in named["sets"])
      return Statistics(sets, found["owners"], sites)
  # A damaged zip file raises whatever its reader meets.
  except Exception as error:
    raise ValueError(
      f"{file} cannot be read ({error!r}). Remove it, and the statistics are"
      " gathered anew from the run's prompts."
    ) from None


def _by_set(values, statistics):
  sums = np.zeros((len(statistics.sets), *values.shape[1:]))
  np.add.at(sums, statistics.owners, np.float64(values))
  return sums


def _shares(sums):
  # A set may have no example.
  with np.errstate(invalid="ignore"):
    load = sums["load"] / sums["load"].sum(axis=1, keepdims=True)
    mean = {
      name: (sums[name].T / sums["tokens"]).T
      for name in ("weight", "entropy", "margin")
    }
  return {
    "load": load.round(5).tolist(),
    "weight": mean["weight"].round(7).tolist(),
    "entropy": mean["entropy"].round(5).tolist(),
    "margin": mean["margin"].round(5).tolist(),
  }
