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
deviation over seeds.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time

from flax import nnx
import jax

from configs import quickstart
from sira_jax import (
  configuration,
  evaluation,
  expert_budget,
  process,
  runs,
)
from sira_jax.adapters import allocation, surgery, tuning
from sira_jax.formats import bases

ROOT = pathlib.Path(__file__).parents[1]
# Whose steps the others' are compared with.
REFERENCE = "lora"
# The groups of a config that belong to a method or a seed.
_OWN = {"rules", "seed", "sparsity", "allocation"}


@dataclasses.dataclass(frozen=True)
class Run:
  """One method, trained from one seed.

  Attributes:
    method: what the config's file is given.
    seed: of the run.
    workdir: where it is.
  """

  method: str
  seed: int
  workdir: pathlib.Path

  @property
  def name(self) -> str:
    """For its reader."""
    return f"{self.method}, seed {self.seed}"

  @property
  def log(self) -> pathlib.Path:
    """What its processes printed."""
    return self.workdir.with_name(self.workdir.name + ".log")

  @property
  def has_before(self) -> bool:
    """Whether it has its scores before training."""
    return (self.workdir / "before.json").exists()

  @property
  def finished(self) -> bool:
    """Whether it has its results."""
    return (self.workdir / "results.json").exists()


def plan(
  names: Sequence[str], seeds: Sequence[int], out: pathlib.Path
) -> list[Run]:
  """The runs, all methods of the first seed first."""
  return [
    Run(name, seed, out / name / str(seed)) for seed in seeds for name in names
  ]


def run_all(
  planned: Sequence[Run],
  launch: Callable[[Run], int],
  received: Sequence[signal.Signals],
) -> list[Run]:
  """Launches each run that is not finished; returns those that failed.

  Args:
    planned: in this order.
    launch: runs one to its end, and returns what it exits with.
    received: signals; none is launched once there is one.
  """
  failed = []
  for number, run in enumerate(planned, start=1):
    if received:
      break
    where = f"{number}/{len(planned)}  {run.name}"
    if run.finished:
      print(f"{where}: finished before", flush=True)
      continue
    print(f"{where}: {run.log}", flush=True)
    begun = time.monotonic()
    code = launch(run)
    if code and not received:
      failed.append(run)
      last = run.log.read_text(errors="replace").splitlines()[-10:]
      print("\n  ".join([f"FAILED with {code}:", *last]), flush=True)
    elif not code:
      print(f"  took {time.monotonic() - begun:.0f} s", flush=True)
  return failed


def train(
  run: Run,
  *,
  others: Sequence[Run],
  arguments: Sequence[str],
  received: Sequence[signal.Signals],
) -> int:
  """train.py for one run, which the first signal received is passed on to.

  The scores before training are those of any of the others that has them.
  """
  run.log.parent.mkdir(parents=True, exist_ok=True)
  before = [one.workdir for one in others if one.has_before]
  command = [
    sys.executable,
    "train.py",
    f"--config=configs/quickstart.py:{run.method}",
    f"--config.seed={run.seed}",
    *arguments,
    f"--workdir={run.workdir.absolute()}",
    *(f"--before={folder.absolute()}" for folder in before[:1]),
  ]
  return supervise(command, run.log, received)


def supervise(
  command: Sequence[str],
  log: pathlib.Path,
  received: Sequence[signal.Signals],
) -> int:
  """Runs a command, its output appended to a log; returns its exit code."""
  with log.open("a") as stream:
    # In a session of its own, so that a terminal's Ctrl-C comes once, from us.
    child = subprocess.Popen(
      command,
      cwd=ROOT,
      stdout=stream,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
  passed_on = False
  try:
    while child.poll() is None:
      if received and not passed_on:
        child.send_signal(received[0])
        passed_on = True
      time.sleep(0.05)
  finally:
    if child.poll() is None:  # a second signal ended the loop
      child.kill()
      child.wait()
  return child.returncode


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
  by_method = {}
  for run in finished:
    by_method.setdefault(run.method, []).append(run)
  found = {run: scores(run) for run in finished}
  times = {(run.method, run.seed): seconds(run) for run in finished}
  columns = list(dict.fromkeys(key for one in found.values() for key in one))
  header = ["method", "seeds", "trained parameters", "active per token"]
  for task, metric, zero_shot in columns:
    words = f"{task}: {metric.replace('_', ' ')}"
    header.append(words + (", zero-shot" if zero_shot else ""))
  header.append(f"step time / {REFERENCE}'s")
  rows = [header, ["---", *["---:"] * (len(header) - 1)]]
  for method, group in by_method.items():
    row = [method, str(len(group)), *(f"{size:,}" for size in sizes[method])]
    for key in columns:
      row.append(_spread([found[run][key] for run in group], 1))
    # Of one seed's runs, which ran one soon after the other.
    pairs = [
      (times[method, r.seed], times.get((REFERENCE, r.seed))) for r in group
    ]
    row.append(_spread([own / lora for own, lora in pairs if own and lora], 2))
    rows.append(row)
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _spread(values, digits):
  """Mean ± standard deviation, as far as there are values for it."""
  if not values:
    return ""
  text = f"{statistics.fmean(values):.{digits}f}"
  if len(values) > 1:
    text += f" ± {statistics.stdev(values):.{digits}f}"
  return text


def unequal(finished: Sequence[Run]) -> list[str]:
  """What configs differ in beside method and seed: a line a difference."""
  configs = [runs.load_config(run.workdir).to_dict() for run in finished]
  shared = [
    {name: group for name, group in config.items() if name not in _OWN}
    for config in configs
  ]
  lines = [
    f"{run.method}: {difference}"
    for run, config in zip(finished, shared, strict=True)
    for difference in configuration.differences(shared[0], config)
  ]
  return list(dict.fromkeys(lines))


def report(finished: Sequence[Run]) -> str:
  """The table of runs, and what to know of it."""
  firsts = {run.method: run for run in reversed(finished)}
  text = table(finished, {name: sizes(run) for name, run in firsts.items()})
  notes = unequal(finished)
  if notes:
    text += f"\n\nUnlike {finished[0].name}:\n\n"
    text += "\n".join(f"- {note}" for note in notes)
  return text


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  known = ",".join(quickstart.SETTINGS)
  parser.add_argument("--methods", default=known, help=known)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/methods")
  )
  parser.add_argument("--write", type=pathlib.Path, help="a file for the table")
  parser.add_argument("arguments", nargs="*", help="of train.py, after --")
  given = parser.parse_args()
  seeds = [int(seed) for seed in given.seeds.split(",")]
  planned = plan(given.methods.split(","), seeds, given.out)
  # As for Ctrl-C, so that a second one does not leave a child behind.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  with process.stop_signals() as received:
    launch = functools.partial(
      train, others=planned, arguments=given.arguments, received=received
    )
    failed = run_all(planned, launch, received)
  if received:
    print("\nStopped; the same command continues.", flush=True)
    sys.exit(process.STOPPED)
  finished = [run for run in planned if run.finished]
  if finished:
    text = report(finished)
    print(f"\n{text}")
    if given.write:
      given.write.write_text(text + "\n")
  if failed:
    sys.exit(f"\nfailed: {'; '.join(run.name for run in failed)}")


if __name__ == "__main__":
  main()
