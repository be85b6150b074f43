# SPDX-License-Identifier: Apache-2.0
"""Trains every method on the quickstart's data, and tables what they reach.

    python -m benchmarks.methods
    python -m benchmarks.methods --methods=sira,lora --seeds=0,1 \\
      --out=runs/short -- --config.training.steps=120

Runs `train.py --config=configs/quickstart.py:METHOD` for every seed and method,
all methods of a seed before the next seed; what follows `--` goes to train.py.
What a run prints is in OUT/METHOD/SEED.log. Stop it whenever you like: the
same command continues, and leaves finished runs alone. A run that fails is
reported, and the rest goes on. The table has the mean and the standard
deviation over seeds. With `--jobs`, runs share the machine and their steps'
times say nothing.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
import statistics

from flax import nnx
import jax

from benchmarks import trials
from benchmarks.trials import Run
from configs import quickstart
from sira_jax import configuration, evaluation, expert_budget, markdown, runs
from sira_jax.adapters import allocation, surgery, tuning
from sira_jax.formats import bases

# Whose steps the others' are compared with.
REFERENCE = "lora"
# The groups of a config that belong to a method or a seed.
_OWN = {"rules", "seed", "sparsity", "allocation"}


def scores(run: Run) -> dict[tuple[str, str, bool], float]:
  """(task, metric, zero-shot) -> the mean over languages after training."""
  results = [
    evaluation.Result(
      task=one["task"],
      language=one["language"],
      zero_shot=one["zero_shot"],
      count=one["count"],
      scores=one["after"],
    )
    for one in json.loads((run.workdir / "results.json").read_text())
  ]
  return {
    (one.task, metric, one.zero_shot): value
    for one in evaluation.means(results)
    for metric, value in one.scores.items()
  }


def seconds(run: Run) -> float | None:
  """The median step's, of all stages; None if nothing was trained."""
  times = [
    json.loads(line)["seconds"]
    for file in run.workdir.rglob("metrics.jsonl")
    for line in file.read_text().splitlines()
  ]
  return statistics.median(times) if times else None


def sizes(run: Run) -> tuple[int, int]:
  """How many numbers training begins with, and how many one token uses."""
  config = runs.load_config(run.workdir)
  graph, shapes = _skeleton(**config.base)
  rules, sites = configuration.rules(config.rules), []

  def adapt(state):
    model, decided = nnx.merge(graph, state), rules
    if "allocation" in config:
      counts = allocation.load(run.workdir / "allocation.json")
      decided = expert_budget.rules(model, config.rules, counts)
    sites.extend(surgery.adapt(model, decided, rngs=nnx.Rngs(0)))

  if rules:
    jax.eval_shape(adapt, shapes)
  active = 0
  for site in sites:
    if isinstance(site.factory, tuning.FullFactory):
      active += site.parameters
    else:
      # A router that layers share is no part of the later ones' parameters.
      shared = site.factory.parameters(*site.shape) - site.parameters
      active += site.factory.active(*site.shape) - shared
  return sum(site.parameters for site in sites), active


@functools.cache
def _skeleton(**base):
  """A base model without its numbers."""
  graph, state = nnx.split(bases.load(**base).model)
  return graph, jax.eval_shape(lambda: state)


def table(finished: Sequence[Run], sizes: Mapping[str, tuple[int, int]]) -> str:
  """Markdown: a row per method.

  Args:
    finished: runs.
    sizes: method -> numbers trained, numbers that one token uses.
  """
  by_setting = {}
  for run in finished:
    by_setting.setdefault(run.setting, []).append(run)
  found = {run: scores(run) for run in finished}
  times = {(run.setting, run.seed): seconds(run) for run in finished}
  columns = list(dict.fromkeys(key for one in found.values() for key in one))
  header = ["method", "seeds", "trained parameters", "active per token"]
  for task, metric, zero_shot in columns:
    words = f"{task}: {metric.replace('_', ' ')}"
    header.append(words + (", zero-shot" if zero_shot else ""))
  header.append(f"step time / {REFERENCE}'s")
  rows = []
  for method, group in by_setting.items():
    row = [method, str(len(group)), *(f"{size:,}" for size in sizes[method])]
    for key in columns:
      row.append(markdown.spread([found[run][key] for run in group], 1))
    # Of one seed's runs, which ran one soon after the other.
    pairs = [
      (times[method, r.seed], times.get((REFERENCE, r.seed))) for r in group
    ]
    row.append(
      markdown.spread([own / lora for own, lora in pairs if own and lora], 2)
    )
    rows.append(row)
  return markdown.table(header, rows)


def unequal(finished: Sequence[Run]) -> list[str]:
  """What configs differ in beside method and seed: a line a difference."""
  configs = [runs.load_config(run.workdir).to_dict() for run in finished]
  shared = [
    {name: group for name, group in config.items() if name not in _OWN}
    for config in configs
  ]
  lines = [
    f"{run.setting}: {difference}"
    for run, config in zip(finished, shared, strict=True)
    for difference in configuration.differences(shared[0], config)
  ]
  return list(dict.fromkeys(lines))


def report(finished: Sequence[Run]) -> str:
  """The table of runs, and what to know of it."""
  firsts = {run.setting: run for run in reversed(finished)}
  text = table(finished, {name: sizes(run) for name, run in firsts.items()})
  notes = unequal(finished)
  if notes:
    text += f"\n\nUnlike {finished[0].name}:\n\n"
    text += "\n".join(f"- {note}" for note in notes)
  return text


def main() -> None:
  """Reads the command line."""
  parser = trials.options(__doc__)
  known = ",".join(quickstart.SETTINGS)
  parser.add_argument("--methods", default=known, help=known)
  parser.set_defaults(out=pathlib.Path("runs/methods"))
  given = parser.parse_args()
  settings = {name: flags(name) for name in given.methods.split(",")}
  trials.run(settings, given, report)


def flags(method: str) -> tuple[str, ...]:
  """Of train.py, for a method of the quickstart."""
  return (f"--config=configs/quickstart.py:{method}",)


if __name__ == "__main__":
  main()
