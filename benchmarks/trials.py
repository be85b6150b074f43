# SPDX-License-Identifier: Apache-2.0
"""Runs train.py for several settings and seeds, and can be stopped.

What a run prints is in OUT/NAME/SEED.log. The same command continues, and
leaves finished runs alone; a run that fails is reported, and the rest goes on.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import pathlib
import signal
import subprocess
import sys
import time

from sira_jax import process

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Run:
  """One setting, trained from one seed.

  Attributes:
    setting: its name.
    seed: of the run.
    workdir: where it is.
    flags: of train.py, that make the setting.
  """

  setting: str
  seed: int
  workdir: pathlib.Path
  flags: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    """For its reader."""
    return f"{self.setting}, seed {self.seed}"

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
  settings: Mapping[str, Sequence[str]],
  seeds: Sequence[int],
  out: pathlib.Path,
) -> list[Run]:
  """The runs, all settings of the first seed first.

  Args:
    settings: name -> flags of train.py.
    seeds: of each.
    out: where their folders are.
  """
  return [
    Run(name, seed, out / name.replace(" ", "_") / str(seed), tuple(flags))
    for seed in seeds
    for name, flags in settings.items()
  ]


def run_all(
  planned: Sequence[Run],
  launch: Callable[[Run], int],
  received: list[signal.Signals],
  *,
  jobs: int = 1,
) -> list[Run]:
  """Launches each run that is not finished; returns those that failed.

  Args:
    planned: in this order.
    launch: runs one to its end, and returns what it exits with.
    received: signals; none is launched once there is one. A KeyboardInterrupt
      adds one that kills.
    jobs: how many run at once.
  """

  def one(number, run):
    where = f"{number}/{len(planned)}  {run.name}"
    if received:
      return False
    if run.finished:
      print(f"{where}: finished before", flush=True)
      return False
    print(f"{where}: {run.log}", flush=True)
    begun = time.monotonic()
    try:
      code = launch(run)
    except OSError as error:
      print(f"{run.name} FAILED: {error}", flush=True)
      return True
    if code and not received:
      last = run.log.read_text(errors="replace").splitlines()[-10:]
      print("\n  ".join([f"{run.name} FAILED with {code}:", *last]), flush=True)
      return True
    if not code:
      print(f"{where}: took {time.monotonic() - begun:.0f} s", flush=True)
    return False

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    try:
      failed = list(pool.map(one, range(1, len(planned) + 1), planned))
    except KeyboardInterrupt:  # a second signal
      received.append(signal.SIGKILL)
      raise
  return [run for run, bad in zip(planned, failed, strict=True) if bad]


def train(
  run: Run,
  *,
  others: Sequence[Run],
  arguments: Sequence[str],
  received: Sequence[signal.Signals],
) -> int:
  """train.py for one run, which the first signal received is passed on to.

  The scores before training are those of any of the others that has them, if
  it is on the same mixture.
  """
  run.log.parent.mkdir(parents=True, exist_ok=True)
  before = [
    one.workdir
    for one in others
    if one.has_before and _mixture(one) == _mixture(run)
  ]
  command = [
    sys.executable,
    "train.py",
    *run.flags,
    f"--config.seed={run.seed}",
    *arguments,
    f"--workdir={run.workdir.absolute()}",
    *(f"--before={folder.absolute()}" for folder in before[:1]),
  ]
  return supervise(command, run.log, received)


def _mixture(run):
  return [flag for flag in run.flags if flag.startswith("--config.mixture")]


def supervise(
  command: Sequence[str],
  log: pathlib.Path,
  received: Sequence[signal.Signals],
) -> int:
  """Runs a command, its output appended to a log; returns its exit code.

  Each signal received is passed on, once.
  """
  with log.open("a") as stream:
    # In a session of its own, so that a terminal's Ctrl-C comes once, from us.
    child = subprocess.Popen(
      command,
      cwd=ROOT,
      stdout=stream,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
  sent = 0
  try:
    while child.poll() is None:
      if received and sent < len(received):
        child.send_signal(received[sent])
        sent += 1
      time.sleep(0.05)
  finally:
    if child.poll() is None:
      child.kill()
      child.wait()
  return child.returncode


def options(description: str) -> argparse.ArgumentParser:
  """The flags that every benchmark of runs has."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--out", type=pathlib.Path, help="of the runs")
  parser.add_argument("--jobs", type=int, default=1, help="runs at once")
  parser.add_argument("--write", type=pathlib.Path, help="a file for the table")
  parser.add_argument("arguments", nargs="*", help="of train.py, after --")
  return parser


def run(
  settings: Mapping[str, Sequence[str]],
  given: argparse.Namespace,
  report: Callable[[Sequence[Run]], str],
) -> None:
  """Runs every setting from every seed, and prints what `report` says.

  Args:
    settings: name -> flags of train.py.
    given: the values of `options`.
    report: text on the finished runs.
  """
  seeds = [int(seed) for seed in given.seeds.split(",")]
  planned = plan(settings, seeds, given.out)
  # As for Ctrl-C, so that a second one does not leave a child behind.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  with process.stop_signals() as received:
    launch = functools.partial(
      train, others=planned, arguments=given.arguments, received=received
    )
    failed = run_all(planned, launch, received, jobs=given.jobs)
  if received:
    print("\nStopped; the same command continues.", flush=True)
    sys.exit(process.STOPPED)
  finished = [one for one in planned if one.finished]
  if finished:
    text = report(finished)
    print(f"\n{text}")
    if given.write:
      given.write.write_text(text + "\n")
  if failed:
    sys.exit(f"\nfailed: {'; '.join(one.name for one in failed)}")
