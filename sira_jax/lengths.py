# SPDX-License-Identifier: Apache-2.0
"""How many tokens the examples have, and whether they fit.

seqio would cut an example that is too long without a word. We measure every
example before training instead.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

TOO_LONG = ("error", "skip")


class Lengths(NamedTuple):
  """Tokens of each example, the target's end of sequence included.

  Both arrays have shape [examples].
  """

  inputs: np.ndarray
  targets: np.ndarray


class Entry(Protocol):
  """One task in one language; see `run_data.Entry`."""

  task: str
  language: str
  examples: int
  rate: float


class Row(NamedTuple):
  """One line of the report.

  Attributes:
    task: its name.
    language: its code.
    examples: in the training split.
    rate: share of the training examples that are this entry's.
    inputs: mean tokens of a prompt.
    targets: mean tokens of a target.
    longest: tokens of the longest example; for an encoder-decoder, of the
      longest prompt, its end included, and of the longest target.
    too_long: examples that do not fit.
  """

  task: str
  language: str
  examples: int
  rate: float
  inputs: float
  targets: float
  longest: int | tuple[int, int]
  too_long: int


def parts(
  measured: Lengths, *, targets_length: int | None = None
) -> np.ndarray:
  """Tokens that the examples take of each limit, [examples parts].

  For a decoder alone, inputs and targets together; with `targets_length`,
  inputs with their end, and targets.
  """
  inputs, targets = measured
  if targets_length is None:
    return (inputs + targets)[:, None]
  return np.stack([inputs + 1, targets], axis=1)


def limits(*, length: int, targets_length: int | None = None) -> np.ndarray:
  """The limits of `parts`, [parts]."""
  return np.array([size for size in (length, targets_length) if size])


def report(
  entries: Sequence[Entry],
  measured: Sequence[Lengths],
  *,
  length: int,
  targets_length: int | None = None,
) -> tuple[Row, ...]:
  """What there is to train on, and what of it does not fit.

  Args:
    entries: to train on.
    measured: their examples' lengths.
    length: tokens of a row, or of an encoder's.
    targets_length: tokens of a decoder's row beside an encoder.
  """
  most = limits(length=length, targets_length=targets_length)
  rows = []
  for entry, found in zip(entries, measured, strict=True):
    sizes = parts(found, targets_length=targets_length)
    longest = tuple(map(int, sizes.max(axis=0)))
    rows.append(
      Row(
        task=entry.task,
        language=entry.language,
        examples=entry.examples,
        rate=entry.rate,
        inputs=float(found.inputs.mean()),
        targets=float(found.targets.mean()),
        longest=longest[0] if targets_length is None else longest,
        too_long=int((sizes > most).any(axis=1).sum()),
      )
    )
  return tuple(rows)


def table(rows: Sequence[Row]) -> str:
  """The report as text, to print before training."""
  task = max([8, *(len(row.task) for row in rows)]) + 2
  language = max([8, *(len(row.language) for row in rows)]) + 2
  lines = [
    f"{'task':{task}}{'language':{language}}{'examples':>9}{'rate':>8}"
    f"{'inputs':>8}{'targets':>9}{'longest':>9}{'too long':>10}"
  ]
  lines += [
    f"{row.task:{task}}{row.language:{language}}{row.examples:9}{row.rate:8.1%}"
    f"{row.inputs:8.1f}{row.targets:9.1f}{_words(row.longest):>9}"
    f"{row.too_long:10}"
    for row in rows
  ]
  return "\n".join(lines)


def check(
  found: Sequence[Row],
  *,
  length: int,
  targets_length: int | None = None,
  too_long: str = "error",
) -> None:
  """Refuses examples that do not fit, unless they are to be skipped.

  Args:
    found: the report, for the same lengths.
    length: tokens of a row, or of an encoder's.
    targets_length: tokens of a decoder's row beside an encoder.
    too_long: "error" or "skip".

  Raises:
    ValueError: if an example is longer than `length` and `too_long` is
      "error", or if no example of an entry fits, or `too_long` is neither
      "error" nor "skip".
  """
  if too_long not in TOO_LONG:
    raise ValueError(
      f"Unknown too_long {too_long!r}. Available are: {', '.join(TOO_LONG)}."
    )
  rows = [row for row in found if row.too_long]
  listed = "\n".join(
    f"  {row.task} in {row.language}: {row.too_long} of {row.examples}, the"
    f" longest has {_words(row.longest)} tokens"
    for row in rows
  )
  limit = f"{length} tokens, inputs and targets together"
  if targets_length is not None:
    limit = f"{length} tokens of input and {targets_length} of target"
  if rows and too_long == "error":
    raise ValueError(
      f"Expected examples of at most {limit}, got longer ones:\n{listed}\nNone"
      f" is ever cut: either set {_advice(rows)} or more, or"
      ' too_long="skip" to leave them out.'
    )
  empty = [row for row in rows if row.too_long == row.examples]
  if empty:
    names = ", ".join(f"{row.task} in {row.language}" for row in empty)
    raise ValueError(
      f"No example of {names} has at most {limit}:\n{listed}\nSet a"
      " greater length or leave these out."
    )


def _words(longest) -> str:
  return "+".join(map(str, np.atleast_1d(longest)))


def _advice(rows) -> str:
  """The lengths that would do."""
  most = np.atleast_1d(np.max([row.longest for row in rows], axis=0))
  names = ("length", "targets_length")
  return " and ".join(
    f"{name} to {size}" for name, size in zip(names, most, strict=False)
  )
