# SPDX-License-Identifier: Apache-2.0
"""How many tokens the examples have, and whether they fit.

seqio would cut an example that is too long without a word. We measure every
example before training instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sira_jax.data import mixtures, tasks, vocabularies

TOO_LONG = ("error", "skip")


class Lengths(NamedTuple):
  """Tokens of each example, the target's end of sequence included.

  Both arrays have shape [examples].
  """

  inputs: np.ndarray
  targets: np.ndarray


class Row(NamedTuple):
  """One line of the report.

  Attributes:
    task: its name.
    language: its code.
    examples: in the training split.
    rate: share of the training examples that are this entry's.
    inputs: mean tokens of a prompt.
    targets: mean tokens of a target.
    longest: tokens of the longest example.
    too_long: examples that do not fit.
  """

  task: str
  language: str
  examples: int
  rate: float
  inputs: float
  targets: float
  longest: int
  too_long: int


def measure(
  task: str,
  language: str,
  *,
  split: str,
  vocabulary: vocabularies.TokenizerVocabulary,
) -> Lengths:
  """The lengths of a task's examples, in their order."""
  inputs, targets = tasks.tokens(
    task, language, split=split, vocabulary=vocabulary
  )
  return Lengths(
    np.array([len(ids) for ids in inputs]),
    np.array([len(ids) + 1 for ids in targets]),
  )


def report(mixture: mixtures.Mixture, *, length: int) -> tuple[Row, ...]:
  """What there is to train on and what of it exceeds `length` tokens."""
  rows = []
  for entry in mixture.train:
    inputs, targets = measure(
      entry.task,
      entry.language,
      split="train",
      vocabulary=mixture.vocabulary,
    )
    whole = inputs + targets
    rows.append(
      Row(
        task=entry.task,
        language=entry.language,
        examples=entry.examples,
        rate=entry.rate,
        inputs=float(inputs.mean()),
        targets=float(targets.mean()),
        longest=int(whole.max()),
        too_long=int((whole > length).sum()),
      )
    )
  return tuple(rows)


def table(rows: Sequence[Row]) -> str:
  """The report as text, to print before training."""
  lines = [
    f"{'task':10}{'language':10}{'examples':>9}{'rate':>8}{'inputs':>8}"
    f"{'targets':>9}{'longest':>9}{'too long':>10}"
  ]
  lines += [
    f"{row.task:10}{row.language:10}{row.examples:9}{row.rate:8.1%}"
    f"{row.inputs:8.1f}{row.targets:9.1f}{row.longest:9}{row.too_long:10}"
    for row in rows
  ]
  return "\n".join(lines)


def check(
  mixture: mixtures.Mixture, *, length: int, too_long: str = "error"
) -> None:
  """Refuses examples that do not fit, unless they are to be skipped.

  Raises:
    ValueError: if an example is longer than `length` and `too_long` is
      "error", or if no example of an entry fits, or `too_long` is neither
      "error" nor "skip".
  """
  if too_long not in TOO_LONG:
    raise ValueError(
      f"Unknown too_long {too_long!r}. Available are: {', '.join(TOO_LONG)}."
    )
  rows = [row for row in report(mixture, length=length) if row.too_long]
  listed = "\n".join(
    f"  {row.task} in {row.language}: {row.too_long} of {row.examples}, the"
    f" longest has {row.longest} tokens"
    for row in rows
  )
  if rows and too_long == "error":
    longest = max(row.longest for row in rows)
    raise ValueError(
      f"Expected examples of at most {length} tokens, inputs and targets"
      f" together, got longer ones:\n{listed}\nNone is ever cut: either set"
      f' length to {longest} or more, or too_long="skip" to leave them out.'
    )
  empty = [row for row in rows if row.too_long == row.examples]
  if empty:
    names = ", ".join(f"{row.task} in {row.language}" for row in empty)
    raise ValueError(
      f"No example of {names} has at most {length} tokens:\n{listed}\nSet a"
      " greater length or leave these out."
    )
