# SPDX-License-Identifier: Apache-2.0
"""Correlations of answers that are numbers, in percent."""

from collections.abc import Sequence
import math

import numpy as np

from sira_jax.metrics import libraries, references


def pearson(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Pearson's correlation of numbers, -100 to 100; 0 where all are equal.

  A prediction that is no number counts as the mean of those that are. One of
  GLUE's two metrics of STS-B.

  Raises:
    ValueError: if there are no targets, not one prediction for each, or a
      target that is no number.
  """
  wanted, found = _numbers("pearson", targets, predictions)
  found, wanted = found - found.mean(), wanted - wanted.mean()
  spread = math.sqrt((found**2).sum() * (wanted**2).sum())
  value = 100.0 * float((found * wanted).sum()) / spread if spread else 0.0
  return {"pearson": value}


def spearman(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Spearman's correlation of numbers, -100 to 100; 0 where all are equal.

  Pearson's of ranks; equal numbers have the mean of their ranks. A prediction
  that is no number counts as the mean of those that are. One of GLUE's two
  metrics of STS-B.

  Raises:
    ValueError: as `pearson`.
    ModuleNotFoundError: if scipy is not installed.
  """
  wanted, found = _numbers("spearman", targets, predictions)
  if np.ptp(wanted) == 0 or np.ptp(found) == 0:
    return {"spearman": 0.0}
  value = libraries.load("scipy.stats").spearmanr(wanted, found).statistic
  return {"spearman": 100.0 * float(value)}


def _numbers(metric, targets, predictions):
  references.check_single(targets, predictions)
  found = np.array([_number(text) for text in predictions])
  if np.isnan(found).any():
    known = found[~np.isnan(found)]
    found[np.isnan(found)] = known.mean() if known.size else 0.0
  wanted = np.array([_number(text) for text in targets])
  if np.isnan(wanted).any():
    raise ValueError(f"Expected targets that are numbers, for {metric}.")
  return wanted, found


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return math.nan
  return value if math.isfinite(value) else math.nan
