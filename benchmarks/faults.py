# SPDX-License-Identifier: Apache-2.0
"""Kills a run and damages its files, and compares it with one left alone.

    python -m benchmarks.faults --kills=10 -- \\
      --config=configs/quickstart.py --config.training.steps=60

What follows `--` goes to train.py; --workdir and the like are given here. One
run is left alone. A second is killed with SIGKILL at seeded random instants,
in turn while it starts, trains and writes a checkpoint; between these starts
its files are damaged in every way of `damages.py`; it is stopped once with
SIGTERM, killed while it evaluates, and its results are damaged; each time the
same command follows. In the end all arrays of both runs' last checkpoints must
be equal bit for bit, and so must their metrics and results. Prints a table;
ends with code 1 if anything differs, or if a start did not say what it found.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import damages
from sira_jax import local_copies

# What differs between two runs that are the same.
_CLOCK = {"seconds": None, "waiting": None}
ROOT = pathlib.Path(__file__).parents[1]
STOPPED = 75
# An instant is drawn from this many seconds after a write begins.
WRITING = 0.15


@dataclasses.dataclass(frozen=True)
class Fault:
  """What one start of the run came to.

  Attributes:
    phase: when the signal was meant to come.
    seconds: after the start.
    code: what the process ended with.
    step: the last one in metrics.jsonl.
    saved: the newest whole checkpoint's step.
    partial: interrupted writes of checkpoints left on disk.
    damage: done before the start, if any.
    missed: what it should have said or done, and did not.
  """

  phase: str
  seconds: float
  code: int
  step: int
  saved: int
  partial: int
  damage: str = ""
  missed: str = ""


class Run:
  """A workdir and the command that trains in it.

  Args:
    workdir: of the run.
    arguments: for train.py.
  """

  def __init__(self, workdir: pathlib.Path, arguments: list[str]):
    self.workdir = workdir
    self.log = workdir.with_name(workdir.name + ".log")
    self._command = [sys.executable, "train.py", *arguments]
    self._command.append(f"--workdir={workdir.absolute()}")

  def start(self) -> subprocess.Popen:
    """Starts it; what it prints replaces the log."""
    with self.log.open("w") as log:
      return subprocess.Popen(
        self._command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
      )

  def finish(self) -> float:
    """Runs it to its end; returns the seconds it took."""
    begun = time.monotonic()
    code = self.start().wait()
    if code:
      raise RuntimeError(f"ended with {code}:\n{self.log.read_text()[-2000:]}")
    return time.monotonic() - begun

  def says(self, text: str) -> bool:
    """Whether it has printed this since it was started."""
    return text in self.log.read_text()

  def step(self) -> int:
    """The last step in metrics.jsonl, 0 before the first."""
    try:
      lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
      return json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError):
      return 0

  def checkpoints(self, *, whole: bool) -> list[pathlib.Path]:
    """Folders of checkpoints, oldest first, or of unfinished ones."""
    folders = list((self.workdir / "checkpoints").glob("*"))
    numbered = [p for p in folders if p.name.isdigit()]
    if whole:
      return sorted(numbered, key=lambda p: int(p.name))
    return [p for p in folders if ".orbax-checkpoint-tmp" in p.name]

  def _reached(self, phase, seen):
    """Whether the phase has begun; `seen` keeps the steps at each look."""
    if phase == "start-up":
      return True
    if phase in ("first scores", "results"):
      return self.says(
        "Evaluating after" if phase == "results" else "Evaluating before"
      )
    if not self.says("Training;"):
      return False  # what lies there is an earlier start's
    if phase == "checkpoint":
      return bool(self.checkpoints(whole=False))
    if phase == "saved":
      return len(self.checkpoints(whole=True)) > 1
    seen.append(self.step())
    return seen[-1] > min(seen)

  def arrays(self) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    newest = self.checkpoints(whole=True)[-1]
    found = {}
    with ocp.PyTreeCheckpointer() as reader:
      for item in ("adapter", "optimizer", "random"):
        path = newest.absolute() / item
        # As numpy, whatever devices they were saved from.
        numpy = jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
          reader.metadata(path).item_metadata.tree,
        )
        tree = reader.restore(path, restore_args=numpy)
        found |= {f"{item}.{path}": array for path, array in _leaves(tree)}
    return found

  def interrupt(
    self,
    phase: str,
    kind: signal.Signals,
    *,
    after: float,
    steps: float = math.inf,
  ) -> Fault:
    """Starts the run, and sends it a signal some time into a phase.

    Args:
      phase: start-up, first scores, training, checkpoint, saved or results.
      kind: of signal.
      after: seconds after the phase begins.
      steps: it comes sooner where so many have been taken by then.
    """
    begun, process = time.monotonic(), self.start()
    seen = []
    while process.poll() is None and not self._reached(phase, seen):
      time.sleep(0.002)
    reached, first = time.monotonic(), self.step()
    while process.poll() is None and time.monotonic() - reached < after:
      if self.says("Training;") and self.step() - first >= steps:
        break
      time.sleep(0.002)
    seconds = time.monotonic() - begun
    process.send_signal(kind)
    code = process.wait()
    if code not in (-kind, STOPPED, 0):
      raise RuntimeError(f"ended with {code}:\n{self.log.read_text()[-2000:]}")
    return self._came_to(phase, seconds, code)

  def _came_to(self, phase, seconds, code, **more):
    saved = self.checkpoints(whole=True)
    newest = int(saved[-1].name) if saved else 0
    partial = len(self.checkpoints(whole=False))
    return Fault(phase, seconds, code, self.step(), newest, partial, **more)

  def damaged(self, damage: damages.Damage, draw, *, steps: int) -> Fault:
    """Does a damage, and starts the run: killed in training, or to its end.

    Args:
      damage: which.
      draw: random numbers.
      steps: of training, at most, until it is killed.
    """
    while len(self.checkpoints(whole=True)) < damage.checkpoints:
      self.interrupt("saved", signal.SIGKILL, after=0.0)
    damage.do(self.workdir, draw)
    if damage.code is None:
      more = dict(after=3600.0, steps=draw.randint(0, steps))
      fault = self.interrupt("training", signal.SIGKILL, **more)
    else:
      begun = time.monotonic()
      code = self.start().wait()
      fault = self._came_to("none", time.monotonic() - begun, code)
    missed = ""
    if damage.code not in (None, fault.code):
      missed = f"ended with {fault.code}, not {damage.code}"
    if not self.says(damage.says) or self.says("Traceback"):
      missed = f"said: {self.log.read_text()[-500:]}"
    return dataclasses.replace(fault, damage=damage.name, missed=missed)


def differences(one: Run, other: Run) -> list[str]:
  """The arrays, and the files, in which two finished runs differ."""
  first, second = one.arrays(), other.arrays()
  found = sorted(first.keys() ^ second.keys())
  found += [
    path
    for path in first.keys() & second.keys()
    if not np.array_equal(first[path], second[path])
  ]
  names = ("before.json", "results.json", "results.md", "predictions.jsonl")
  for name in names:
    texts = [(run.workdir / name).read_text() for run in (one, other)]
    if texts[0] != texts[1]:
      found.append(name)
  if _metrics(one) != _metrics(other):
    found.append("metrics.jsonl")
  return found


def _metrics(run):
  """A run's metrics, but for how long its steps took."""
  lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) | _CLOCK for line in lines]


def _leaves(tree, path=""):
  """(path, array) of every leaf of nested dicts."""
  if not isinstance(tree, dict):
    yield path, np.asarray(tree)
    return
  for name, branch in tree.items():
    yield from _leaves(branch, f"{path}/{name}")


def table(faults: list[Fault]) -> str:
  """A row per start."""
  rows = [
    f"{'damage before':24}{'killed in':12}seconds  exit  last step  saved step"
    "  partial writes  survived"
  ]
  rows += [
    f"{f.damage or '-':24}{f.phase:12}{f.seconds:7.1f}{f.code:6}{f.step:11}"
    f"{f.saved:12}{f.partial:16}  {'NO: ' + f.missed if f.missed else 'yes'}"
    for f in faults
  ]
  return "\n".join(rows)


def timed(run: Run) -> dict[str, float]:
  """Leaves a run alone; the seconds of its start, training and results."""
  begun, process = time.monotonic(), run.start()
  found = {}
  for phase, over in (
    ("start-up", lambda: run.says("Training;")),
    ("compilation", run.step),
    ("training", lambda: run.says("Evaluating after")),
    ("results", lambda: False),
  ):
    while process.poll() is None and not over():
      time.sleep(0.01)
    found[phase] = max(time.monotonic() - begun - sum(found.values()), 0.1)
  if process.wait():
    raise RuntimeError(f"the run alone failed:\n{run.log.read_text()}")
  return found


def drill(
  folder: pathlib.Path, arguments: list[str], *, kills: int, seed: int
) -> int:
  """Does it all in `folder`; returns the number of differences."""
  draw = random.Random(seed)
  whole = Run(folder / "whole", arguments)
  run = Run(folder / "killed", arguments)
  seconds = timed(whole)
  print(
    "alone: " + ", ".join(f"{t:.1f} s of {name}" for name, t in seconds.items())
  )
  # All starts together stay below the steps that one training takes.
  most = whole.step() // (kills + len(damages.DAMAGES) + 2)
  longest = {
    "start-up": seconds["start-up"],
    "training": seconds["training"],
    "checkpoint": WRITING,
  }
  faults = []

  def add(fault):
    faults.append(fault)
    print(table(faults).splitlines()[-1], flush=True)

  print(table([]), flush=True)
  for number in range(max(kills, len(damages.DAMAGES))):
    if number < kills:
      phase = list(longest)[number % len(longest)]
      after = draw.uniform(0, longest[phase])
      steps = draw.randint(0, most)
      add(run.interrupt(phase, signal.SIGKILL, after=after, steps=steps))
    if number < len(damages.DAMAGES):
      damage = damages.DAMAGES[number]
      add(run.damaged(damage, draw, steps=most))
      if damage.code:
        # As the message says: put a copy back.
        shutil.copy(whole.workdir / "config.json", run.workdir)
  add(run.interrupt("training", signal.SIGTERM, after=0.0))
  after = draw.uniform(0, seconds["results"])
  add(run.interrupt("results", signal.SIGKILL, after=after))
  print(f"finished by one more start, {run.finish():.1f} s", flush=True)
  for damage in damages.LAST:
    add(run.damaged(damage, draw, steps=0))
  found = differences(whole, run)
  found += [f"{f.damage}: {f.missed}" for f in faults if f.missed]
  if found:
    print(f"DIFFERENT: {', '.join(found)}")
  else:
    total = len(whole.arrays())
    print(f"equal: all {total} arrays bit for bit, metrics and results")
  return len(found)


def own_cache(folder: pathlib.Path) -> None:
  """Has the runs compile for themselves, as their programs are damaged."""
  cache, bases = folder / "cache", local_copies.folder() / "pypi"
  cache.mkdir(exist_ok=True)
  if bases.exists() and not (cache / "pypi").exists():
    (cache / "pypi").symlink_to(bases.absolute())
  os.environ["SIRA_JAX_CACHE"] = str(cache.absolute())
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path, help="to keep the runs in")
  parser.add_argument("arguments", nargs="*", help="of train.py, after --")
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = given.folder or pathlib.Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    own_cache(folder)
    failed = drill(folder, given.arguments, kills=given.kills, seed=given.seed)
  sys.exit(1 if failed else 0)


if __name__ == "__main__":
  main()
