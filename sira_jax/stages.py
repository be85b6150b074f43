# SPDX-License-Identifier: Apache-2.0
"""The stages of a run: where each is kept, and what they show together.

A run has one stage, or one for each penalty of SoRA's sparsifying schedule;
the model of a later stage is that of the one before it with its dead ranks
pruned.
"""

from collections.abc import Mapping, Sequence
import json
import statistics
from typing import Any

from flax import nnx

from sira_jax import checkpoints, evaluation, markdown, selection, storage
from sira_jax.adapters import pruning, surgery
from sira_jax.training.sparsifying import Stage


def folder(
  workdir: storage.Path, stages: Sequence[Stage], stage: Stage
) -> storage.Path:
  """Where a stage leaves what it leaves: the workdir itself, if it is alone."""
  return workdir if len(stages) == 1 else workdir / f"stage_{stage.number}"


def restore(
  model: nnx.Module,
  workdir: storage.Path,
  stages: Sequence[Stage],
  *,
  base: str,
) -> tuple[Stage, int]:
  """Makes a freshly adapted model that of the newest stage that was saved.

  Returns:
    The stage, and the step in it.

  Raises:
    ValueError: as `Checkpoints.restore_adapter` and `selection.best`.
  """
  for stage in stages:
    if stage.number:
      pruning.prune(model, fold=False)
    step = restore_stage(model, workdir, stages, stage, base=base)
    after = stages[stage.number + 1 :]
    if not after or not saved(workdir, stages, after[0]):
      return stage, step
  raise ValueError("A run has one stage at least.")


def restore_stage(
  model: nnx.Module,
  workdir: storage.Path,
  stages: Sequence[Stage],
  stage: Stage,
  *,
  base: str,
) -> int:
  """Reads a stage's best, or else what it saved last, into a model."""
  if not stage.steps:
    return 0
  where = folder(workdir, stages, stage)
  files, best = where / "checkpoints", selection.best(where)
  with checkpoints.Checkpoints(files, writable=False) as found:
    return found.restore_adapter(model, base=base, best=best)


def saved(workdir: storage.Path, stages: Sequence[Stage], stage: Stage) -> bool:
  """Whether a stage has saved anything to go on from."""
  files = folder(workdir, stages, stage) / "checkpoints"
  if not files.exists():
    return False
  with checkpoints.Checkpoints(files, writable=False) as found:
    return found.latest() is not None


def measure(
  model: nnx.Module,
  stage: Stage,
  *,
  trained: Sequence[evaluation.Result],
  tested: Sequence[evaluation.Result],
  metrics: storage.Path,
) -> dict[str, Any]:
  """What one stage adds to the study of a sparsifying schedule.

  Args:
    model: as the stage left it, not pruned yet.
    stage: which.
    trained: scores on examples that were trained on.
    tested: scores on the evaluation sets.
    metrics: the log of its steps.
  """
  found = pruning.remaining(model)
  ranks = found.values()
  seconds = [json.loads(line)["seconds"] for line in metrics.open()]
  sites = surgery.sites(model)
  gated = [site for site in sites if site.path in found]
  dead = sum(
    (total - alive) * (sum(site.shape) + 1)
    for site, (alive, total) in zip(gated, ranks, strict=True)
  )
  return {
    "stage": stage.number,
    "penalty": stage.gates.penalty,
    "ranks": sum(alive for alive, _ in ranks),
    "parameters": sum(site.parameters for site in sites) - dead,
    "seconds_per_step": statistics.median(seconds),
    "memorisation": _scores(trained),
    "generalisation": _scores(tested),
  }


def table(study: Sequence[Mapping[str, Any]]) -> str:
  """Markdown: a row a stage; scores in percent of stage 0's, in brackets."""
  kinds = ("generalisation", "memorisation")
  names = [(kind, name) for kind in kinds for name in study[0][kind]]
  header = ["stage", "penalty", "ranks", "parameters", "seconds a step"]
  header += [f"{kind}: {name}" for kind, name in names]
  rows = []
  for one in study:
    row = [
      str(one["stage"]),
      f"{one['penalty']:g}",
      f"{one['ranks']:,}",
      f"{one['parameters']:,}",
      f"{one['seconds_per_step']:.2f}",
    ]
    for kind, name in names:
      relative = _relative(one[kind][name], study[0][kind][name])
      row.append(f"{one[kind][name]:.1f} ({relative})")
    rows.append(row)
  return markdown.table(header, rows, words=0)


def _relative(value, first):
  return f"{100 * value / first:.0f} %" if first else "-"


def _scores(results):
  """ "task metric" -> mean over the trained languages."""
  return {
    f"{one.task} {name.replace('_', ' ')}": value
    for one in evaluation.means(results)
    if not one.zero_shot
    for name, value in one.scores.items()
  }
