# SPDX-License-Identifier: Apache-2.0
"""Metric functions of targets and predictions, as seqio's, in percent."""

import collections
from collections.abc import Callable, Sequence
import math

import numpy as np


def exact_match(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Share of predictions that equal their target.

  Raises:
    ValueError: if there are no targets, or not one prediction for each.
  """
  return {"exact_match": _share_equal(targets, predictions)}


def intent_accuracy(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Share of predictions whose text before "(" equals their target's.

  Raises:
    ValueError: if there are no targets, or not one prediction for each.
  """
  share = _share_equal(
    [target.partition("(")[0] for target in targets],
    [prediction.partition("(")[0] for prediction in predictions],
  )
  return {"intent_accuracy": share}


def accuracy(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Share of predictions that equal their target but for space around them.

  Raises:
    ValueError: as `exact_match`.
  """
  return {"accuracy": _share_equal(_stripped(targets), _stripped(predictions))}


def token_f1(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean of each prediction's F1 of words, in lower case, in any order.

  SQuAD's script also drops punctuation and English articles, which other
  languages do not have; this does not.

  Raises:
    ValueError: as `exact_match`.
  """
  _check(targets, predictions)
  scores = []
  for target, prediction in zip(targets, predictions, strict=True):
    one, two = target.lower().split(), prediction.lower().split()
    shared = (collections.Counter(one) & collections.Counter(two)).total()
    scores.append(2 * shared / max(len(one) + len(two), 1))
  return {"token_f1": 100.0 * sum(scores) / len(scores)}


def macro_f1(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean over the targets' classes of F1 = 2 TP / (2 TP + FP + FN).

  A prediction that is no target's text is of no class, hence a miss alone.

  Raises:
    ValueError: as `exact_match`.
  """
  _check(targets, predictions)
  targets, predictions = _stripped(targets), _stripped(predictions)
  right = collections.Counter(
    one for one, two in zip(targets, predictions, strict=True) if one == two
  )
  of_targets = collections.Counter(targets)
  of_predictions = collections.Counter(predictions)
  scores = [
    2 * right[label] / (of_targets[label] + of_predictions[label])
    for label in of_targets
  ]
  return {"macro_f1": 100.0 * sum(scores) / len(scores)}


def matthews(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Matthews' correlation of targets and predictions, -100 to 100.

      (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))

  of s examples, c of them right, t_k with target k and p_k predicted so; 0
  where all targets or all predictions are equal. GLUE's metric of CoLA.
  Source: Gorodkin 2004, eq. 8, for any number of classes.

  Raises:
    ValueError: as `exact_match`.
  """
  _check(targets, predictions)
  targets, predictions = _stripped(targets), _stripped(predictions)
  size = len(targets)
  right = sum(one == two for one, two in zip(targets, predictions, strict=True))
  t, p = collections.Counter(targets), collections.Counter(predictions)
  spread = math.prod(
    size**2 - sum(n**2 for n in counts.values()) for counts in (t, p)
  )
  above = right * size - sum(p[label] * t[label] for label in t)
  return {"matthews": 100.0 * above / math.sqrt(spread) if spread else 0.0}


def pearson(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Pearson's correlation of numbers, -100 to 100; 0 where all are equal.

  A prediction that is no number counts as the mean of those that are. One of
  GLUE's two metrics of STS-B.

  Raises:
    ValueError: as `exact_match`, or a target that is no number.
  """
  _check(targets, predictions)
  found = np.array([_number(text) for text in predictions])
  if np.isnan(found).any():
    known = found[~np.isnan(found)]
    found[np.isnan(found)] = known.mean() if known.size else 0.0
  wanted = np.array([_number(text) for text in targets])
  if np.isnan(wanted).any():
    raise ValueError("Expected targets that are numbers, for pearson.")
  found, wanted = found - found.mean(), wanted - wanted.mean()
  spread = math.sqrt((found**2).sum() * (wanted**2).sum())
  value = 100.0 * float((found * wanted).sum()) / spread if spread else 0.0
  return {"pearson": value}


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return math.nan
  return value if math.isfinite(value) else math.nan


METRICS: dict[str, Callable[..., dict[str, float]]] = {
  "exact_match": exact_match,
  "accuracy": accuracy,
  "intent_accuracy": intent_accuracy,
  "token_f1": token_f1,
  "macro_f1": macro_f1,
  "matthews": matthews,
  "pearson": pearson,
}
"""Those that a config may name."""


def _stripped(texts: Sequence[str]) -> list[str]:
  return [text.strip() for text in texts]


def _check(targets: Sequence[str], predictions: Sequence[str]) -> None:
  if not len(targets) or len(targets) != len(predictions):
    raise ValueError(
      "Expected at least one target and a prediction for each, got"
      f" {len(targets)} targets and {len(predictions)} predictions."
    )


def _share_equal(targets: Sequence[str], predictions: Sequence[str]) -> float:
  _check(targets, predictions)
  equal = sum(a == b for a, b in zip(targets, predictions, strict=True))
  return 100.0 * equal / len(targets)
