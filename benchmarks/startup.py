# SPDX-License-Identifier: Apache-2.0
"""How long a command takes to its first step, and a step to be compiled.

    python -m benchmarks.startup
    python -m benchmarks.startup --rounds=1 --layers=8,32 -- \\
      --config=configs/quickstart.py:lora

Starts train.py with what follows `--`, for one step, without the evaluation
before it, in turns: "cold", where nothing is compiled, and "warm", where the
start before has left its compiled programs. The base is on the disk. The time
is from the command to the line of step 1 in metrics.jsonl, and is divided by
what the run prints. Then compiles the SiRA step of SmolLM2-135M's sizes with
other numbers of layers, unrolled and as a loop over the blocks (base.scan).
Prints two tables, and writes JSON with --out.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import step_models, step_programs
from sira_jax import local_copies, markdown

ROOT = pathlib.Path(__file__).parents[1]
# What a run prints as it gets on: of what the time until then was.
MARKS = {
  "base  ": "imports, base and data",
  "Training;": "adapters, optimizer and checkpoints",
  "step 1": "the rest of compiling, and step 1",
}
_SIRA = dict(method="sira", experts=16, rank=4, k=4)


def start(
  arguments: Sequence[str], workdir: pathlib.Path, cache: pathlib.Path
) -> dict[str, float]:
  """Seconds of each part of a start, by `MARKS`, and of all of them.

  Args:
    arguments: of train.py.
    workdir: of the run.
    cache: for the base and for compiled programs.

  Raises:
    RuntimeError: the run did not come to its first step.
  """
  begun = last = time.monotonic()
  child = subprocess.Popen(
    [sys.executable, "train.py", *arguments, f"--workdir={workdir}"],
    cwd=ROOT,
    env=os.environ | {"SIRA_JAX_CACHE": str(cache), "PYTHONUNBUFFERED": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  found, said = {}, []
  for line in child.stdout:
    said.append(line)
    for mark, name in MARKS.items():
      if line.startswith(mark) and name not in found:
        found[name], last = time.monotonic() - last, time.monotonic()
    if len(found) == len(MARKS):
      child.kill()  # the scores after training are not asked for
  child.wait()
  if len(found) < len(MARKS):
    raise RuntimeError(f"No first step was taken:\n{''.join(said[-20:])}")
  return found | {"all": last - begun}


def starts(
  arguments: Sequence[str], *, rounds: int, folder: pathlib.Path
) -> dict[str, list[dict[str, float]]]:
  """ "cold" and "warm" -> the seconds of each round's start."""
  cache = folder / "cache"
  shutil.copytree(
    local_copies.folder(),
    cache,
    ignore=shutil.ignore_patterns("compilations"),
    dirs_exist_ok=True,
  )
  arguments = [*arguments, "--config.training.steps=1"]
  arguments += ["--config.optimizer.warmup_steps=0"]
  # Scores that the others take over; it also fetches what is not there yet.
  first = folder / "first"
  start(arguments, first, cache)
  found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
  for number in range(rounds):
    shutil.rmtree(cache / "compilations")
    for way, rows in found.items():
      run = folder / f"{way}{number}"
      rows.append(start([*arguments, f"--before={first}"], run, cache))
  return found


def compile_times(
  layers: Sequence[int], *, rounds: int
) -> dict[tuple[int, bool], float]:
  """(layers, scan) -> median seconds to trace and compile the SiRA step.

  Of shapes alone, the model's making included.
  """
  found: dict[tuple[int, bool], list[float]] = {}
  for _ in range(rounds):
    for number in layers:
      for scan in (False, True):
        setting = step_models.Setting(
          "135m", rows=3, length=128, layers=number, scan=scan
        )
        begun = time.monotonic()
        step_programs.planned(setting, _SIRA)
        took = time.monotonic() - begun
        found.setdefault((number, scan), []).append(took)
  return {key: statistics.median(times) for key, times in found.items()}


def start_table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
  """Markdown: a row a way, its medians in seconds."""
  names = list(next(iter(found.values()))[0])
  rows = []
  for way, rounds in found.items():
    medians = [statistics.median(one[name] for one in rounds) for name in names]
    rows.append([way, *(f"{value:.1f}" for value in medians)])
  return markdown.table(["start", *names], rows)


def compile_table(found: Mapping[tuple[int, bool], float]) -> str:
  """Markdown: a row for each number of layers; seconds, and of the first's."""
  header, rows = ["layers", "unrolled, s", "ratio", "scan, s", "ratio"], []
  layers = list(dict.fromkeys(number for number, _ in found))
  for number in layers:
    row = [str(number)]
    for scan in (False, True):
      seconds = found[number, scan]
      row += [f"{seconds:.1f}", f"{seconds / found[layers[0], scan]:.2f}"]
    rows.append(row)
  return markdown.table(header, rows, words=0)


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--layers", default="8,16,32")
  parser.add_argument("--out", type=pathlib.Path, help="a JSON file")
  parser.add_argument("arguments", nargs="*", help="of train.py, after --")
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    found = starts(
      given.arguments, rounds=given.rounds, folder=pathlib.Path(folder)
    )
  print(start_table(found), flush=True)
  layers = [int(number) for number in given.layers.split(",")]
  times = compile_times(layers, rounds=given.rounds)
  print(f"\n{compile_table(times)}")
  if given.out:
    rows = [
      {"layers": number, "scan": scan, "seconds": seconds}
      for (number, scan), seconds in times.items()
    ]
    text = json.dumps({"starts": found, "compiling": rows}, indent=1)
    given.out.write_text(text + "\n")


if __name__ == "__main__":
  main()
