# SPDX-License-Identifier: Apache-2.0
"""How many tokens the examples of a mixture have."""

import numpy as np

from sira_jax import lengths
from sira_jax.data import mixtures, tasks, vocabularies


def measure(
  task: str,
  language: str,
  *,
  split: str,
  vocabulary: vocabularies.TokenizerVocabulary,
  known: tasks.Known = tasks.TASKS,
) -> lengths.Lengths:
  """The lengths of a task's examples, in their order."""
  inputs, targets = tasks.tokens(
    task, language, split=split, vocabulary=vocabulary, known=known
  )
  return lengths.Lengths(
    np.array([len(ids) for ids in inputs]),
    np.array([len(ids) + vocabulary.ends_targets for ids in targets]),
  )


def report(
  mixture: mixtures.Mixture, *, length: int, targets_length: int | None = None
) -> tuple[lengths.Row, ...]:
  """What there is to train on, and what of it does not fit.

  Args:
    mixture: to train on.
    length: tokens of a row, or of an encoder's.
    targets_length: tokens of a decoder's row beside an encoder.
  """
  measured = [
    measure(
      entry.task,
      entry.language,
      split="train",
      vocabulary=mixture.vocabulary,
      known=mixture.known,
    )
    for entry in mixture.train
  ]
  return lengths.report(
    mixture.train, measured, length=length, targets_length=targets_length
  )


def check(
  mixture: mixtures.Mixture,
  *,
  length: int,
  targets_length: int | None = None,
  too_long: str = "error",
) -> None:
  """Refuses examples that do not fit; see `sira_jax.lengths.check`."""
  sizes = dict(length=length, targets_length=targets_length)
  lengths.check(report(mixture, **sizes), **sizes, too_long=too_long)
