# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl, and curves of it: what each step of a run measured."""

from collections.abc import Mapping
import json
import math
from typing import Any

from sira_jax import board, storage


def logged(file: storage.Path) -> int:
  """The step up to which a metrics.jsonl has a line for every step."""
  found = {_step(line) for line in _lines(file)}
  step = 0
  while step + 1 in found:
    step += 1
  return step


class MetricsLog:
  """metrics.jsonl: one JSON object a line, in step order, appended.

  A number that JSON has none for (nan, inf) is written as null. TensorBoard
  has the same numbers, where `board` can write them.

  Args:
    file: the log.
    step: where the run goes on; later lines, of steps that will be taken
      again, are dropped, and lines that are damaged.

  Attributes:
    skipped: the steps whose update was left out, oldest first.
  """

  def __init__(self, file: storage.Path, *, step: int):
    kept = {_step(line): line for line in _lines(file) if _step(line) <= step}
    lacking = step - len(kept)
    if lacking:
      print(f"{file} lacks the lines of {lacking} steps.", flush=True)
    lines = [kept[number] for number in sorted(kept)]
    self._lines = storage.Lines(file, lines)
    self._board = board.Board(file.parent, "train", step=step)
    self.skipped = [
      number
      for number in sorted(kept)
      if json.loads(kept[number]).get("skipped")
    ]

  def append(self, values: Mapping[str, Any]) -> None:
    """Adds a line; `values` has a "step"."""
    line = json.dumps({name: _number(value) for name, value in values.items()})
    self._lines.append(line)
    curves = {name: x for name, x in values.items() if name != "step"}
    self._board.add(values["step"], curves)
    if values.get("skipped"):
      self.skipped.append(values["step"])

  def left_out(self) -> str:
    """Says how many steps' updates were left out, if any."""
    count = len(self.skipped)
    return f" The updates of {count} steps were left out." if count else ""

  def sync(self) -> None:
    """Has the lines stored, as they must be before their checkpoint is."""
    self._lines.sync()
    self._board.sync()

  def close(self) -> None:
    """Closes the files."""
    self._lines.close()
    self._board.close()


def _lines(file):
  return storage.text(file).splitlines()


def _step(line):
  try:
    return int(json.loads(line)["step"])
  except (ValueError, TypeError, KeyError):
    return math.inf  # damaged, or the half line of a process that was killed


def _number(value):
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )
