# SPDX-License-Identifier: Apache-2.0
"""Kills a training run again and again, and compares it with one left alone.

    python benchmarks/fault_drill.py --kills=10 -- \\
      --config=configs/quickstart.py --config.training.steps=60

What follows `--` goes to train.py; --workdir and the like are given here. One
run is left alone. A second is killed with SIGKILL at seeded random instants,
in turn while it starts, trains and writes a checkpoint, then stopped once with
SIGTERM, then killed once more while it evaluates, each time followed by the
same command. In the end all arrays of both runs' last checkpoints must be
equal bit for bit, and so must their metrics and results. Prints a table; ends
with code 1 if anything differs.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import orbax.checkpoint as ocp

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
  """

  phase: str
  seconds: float
  code: int
  step: int
  saved: int
  partial: int


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

  def _reached(self, phase, steps):
    """Whether the phase has begun; `steps` keeps what was seen of it."""
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
    steps.append(self.step())
    return steps[-1] > min(steps)

  def arrays(self) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    newest = self.checkpoints(whole=True)[-1]
    found = {}
    with ocp.StandardCheckpointer() as reader:
      for item in ("adapter", "optimizer", "random"):
        tree = reader.restore(newest.absolute() / item)
        found |= {f"{item}.{path}": array for path, array in _leaves(tree)}
    return found

  def interrupt(
    self, phase: str, kind: signal.Signals, *, after: float
  ) -> Fault:
    """Starts the run, and sends it a signal some time into a phase.

    Args:
      phase: start-up, first scores, training, checkpoint or results.
      kind: of signal.
      after: seconds after the phase begins.
    """
    begun, process = time.monotonic(), self.start()
    steps = []
    while process.poll() is None and not self._reached(phase, steps):
      time.sleep(0.002)
    time.sleep(after)
    seconds = time.monotonic() - begun
    process.send_signal(kind)
    code = process.wait()
    if code not in (-kind, STOPPED, 0):
      raise RuntimeError(f"ended with {code}:\n{self.log.read_text()[-2000:]}")
    saved = self.checkpoints(whole=True)
    return Fault(
      phase,
      seconds,
      code,
      self.step(),
      int(saved[-1].name) if saved else 0,
      len(self.checkpoints(whole=False)),
    )


def differences(one: Run, other: Run) -> list[str]:
  """The arrays, and the files, in which two finished runs differ."""
  first, second = one.arrays(), other.arrays()
  found = sorted(first.keys() ^ second.keys())
  found += [
    path
    for path in first.keys() & second.keys()
    if not np.array_equal(first[path], second[path])
  ]
  names = ("metrics.jsonl", "before.json", "results.json", "results.md")
  for name in (*names, "predictions.jsonl"):
    texts = [(run.workdir / name).read_text() for run in (one, other)]
    if texts[0] != texts[1]:
      found.append(name)
  return found


def _leaves(tree, path=""):
  """(path, array) of every leaf of nested dicts."""
  if not isinstance(tree, dict):
    yield path, np.asarray(tree)
    return
  for name, branch in tree.items():
    yield from _leaves(branch, f"{path}/{name}")


def table(faults: list[Fault]) -> str:
  """A row per fault."""
  rows = ["phase       seconds  exit  last step  saved step  partial writes"]
  rows += [
    f"{f.phase:10}{f.seconds:9.2f}{f.code:6}{f.step:11}{f.saved:12}"
    f"{f.partial:16}"
    for f in faults
  ]
  return "\n".join(rows)


def drill(
  folder: pathlib.Path, arguments: list[str], *, kills: int, seed: int
) -> int:
  """Does it all in `folder`; returns the number of differences."""
  draw = random.Random(seed)
  whole = Run(folder / "whole", arguments)
  killed = Run(folder / "killed", arguments)
  begun = time.monotonic()
  process = whole.start()
  while process.poll() is None and not whole.says("Training;"):
    time.sleep(0.01)
  starting = time.monotonic() - begun
  while process.poll() is None and not whole.step():
    time.sleep(0.01)
  first = time.monotonic()
  while process.poll() is None and not whole.says("Evaluating after"):
    time.sleep(0.01)
  training = time.monotonic() - first
  if process.wait():
    raise RuntimeError(f"the run alone failed:\n{whole.log.read_text()}")
  evaluating = max(time.monotonic() - first - training, 0.1)
  print(
    f"alone: {starting:.1f} s to the first step's compilation,"
    f" {training:.1f} s of steps, {evaluating:.1f} s of last scores\n",
    flush=True,
  )
  longest = {
    "start-up": starting,
    "training": training / (kills + 1),
    "checkpoint": WRITING,
  }
  faults = []
  for number in range(kills):
    phase = list(longest)[number % len(longest)]
    after = draw.uniform(0, longest[phase])
    faults.append(killed.interrupt(phase, signal.SIGKILL, after=after))
  after = draw.uniform(0, longest["training"])
  faults.append(killed.interrupt("training", signal.SIGTERM, after=after))
  after = draw.uniform(0, evaluating)
  faults.append(killed.interrupt("results", signal.SIGKILL, after=after))
  seconds = killed.finish()
  print(f"{table(faults)}\n\nfinished by one more start, {seconds:.1f} s")
  found = differences(whole, killed)
  total = len(whole.arrays())
  if found:
    print(f"DIFFERENT: {', '.join(found)}")
  else:
    print(f"equal: all {total} arrays bit for bit, metrics and results")
  return len(found)


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
    failed = drill(folder, given.arguments, kills=given.kills, seed=given.seed)
  sys.exit(1 if failed else 0)


if __name__ == "__main__":
  main()
