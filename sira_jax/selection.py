# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint of a run is its best, by scores on the validation split."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import statistics
from typing import Any

from sira_jax import evaluation, run_data, storage

FILE = "validation.json"


def check(
  *, metric: str | None = None, examples: int = 16, patience: int | None = None
) -> None:
  """Checks the fields of config.selection, which say how the best is chosen.

  A checkpoint that falls due is scored on the validation split of the entries
  that are trained on. The best is kept beside the newest, and is what the run
  leaves; of equal ones, the first.

  Args:
    metric: by which; see `value`.
    examples: of each entry.
    patience: training ends after so many in a row that were no better than the
      best before them; None: it does not.

  Raises:
    ValueError: a number that is not positive.
  """
  del metric  # the data say which there are
  for name, number in (("examples", examples), ("patience", patience)):
    if number is not None and number < 1:
      raise ValueError(
        f"config.selection.{name} must be at least 1, got {number}."
      )


def check_metric(
  sets: Sequence[run_data.EvaluationSet], metric: str | None
) -> None:
  """Checks that some set is scored by `metric`.

  Raises:
    ValueError: none is.
  """
  names = {name for one in sets for name in run_data.score(one, one.targets)}
  if metric is not None and metric not in names:
    raise ValueError(
      f"config.selection.metric is {metric!r}, which no task that is trained on"
      f" has. There are: {', '.join(sorted(names))}; none takes all of them."
    )


def value(results: Sequence[evaluation.Result], metric: str | None) -> float:
  """What a checkpoint is chosen by; higher is better.

  The mean over tasks of the mean over languages of `metric`; where it is None,
  of the mean of a task's metrics. A task without `metric` has no part in it.
  """
  found = []
  for one in evaluation.means(results):
    scores = [x for name, x in one.scores.items() if metric in (None, name)]
    if scores:
      found.append(statistics.fmean(scores))
  return statistics.fmean(found)


def best(folder: storage.Path) -> int | None:
  """The step that validation.json in a run's folder says is the best.

  None where there is none. Nothing is changed, for who asks may only read.

  Raises:
    ValueError: it cannot be read.
  """
  file = folder / FILE
  if not file.exists():
    return None
  try:
    return _best(_scored(file.read_text()))
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f"{file}, which says what checkpoint is the best, cannot be read:"
      f" {error!r:.200}. Put a copy of it back, or remove it, and the newest is"
      " taken."
    ) from None


class Selection:
  """The scored checkpoints of a run, in its validation.json.

  Without `settings` there are none, and nothing is chosen.

  Args:
    folder: of the run.
    settings: config.selection, if there is one.
    step: where the run goes on; what later ones scored is dropped.

  Attributes:
    folder: of the run.
  """

  def __init__(
    self,
    folder: storage.Path,
    settings: Mapping[str, Any] | None,
    *,
    step: int,
  ):
    self.folder, self._settings = folder, settings
    self._file = folder / FILE
    scored = storage.load(self._file, _scored) or []
    self._scored = [one for one in scored if one["step"] <= step]

  @property
  def best(self) -> int | None:
    """The best step so far."""
    return _best(self._scored)

  @property
  def exhausted(self) -> bool:
    """Whether there is a patience, and it is at its end."""
    patience = self._settings and self._settings.get("patience")
    since = [one for one in self._scored if one["step"] > (self.best or 0)]
    return bool(patience) and len(since) >= patience

  def lacks(self, step: int) -> bool:
    """Whether a step's checkpoint is still to be scored."""
    known = {one["step"] for one in self._scored}
    return self._settings is not None and step not in known

  def add(self, step: int, results: Sequence[evaluation.Result]) -> str:
    """Keeps what a step's checkpoint scored; returns what to say of it."""
    metric = self._settings.get("metric")
    found = value(results, metric)
    self._scored.append(
      {
        "step": step,
        "value": found if math.isfinite(found) else None,
        "results": [dataclasses.asdict(one) for one in results],
      }
    )
    storage.write(self._file, json.dumps(self._scored, indent=1))
    name = metric.replace("_", " ") if metric else "mean score"
    text = f"validation: {name} {found:.1f} at step {step}"
    text += ", the best" if self.best == step else f"; best: step {self.best}"
    return text + ("; patience is at its end" if self.exhausted else "")


def _scored(text):
  """A list of step, value and results, by step."""
  found = json.loads(text)
  return [
    {name: one[name] for name in ("step", "value", "results")} for one in found
  ]


def _best(scored):
  """Of equal ones the first; what is no number is never the best."""
  real = [one for one in scored if one["value"] is not None]
  found = max(real, key=lambda one: (one["value"], -one["step"]), default=None)
  return found and found["step"]
