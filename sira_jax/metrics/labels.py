# SPDX-License-Identifier: Apache-2.0
"""Metrics of answers that are right or wrong, and of classes, in percent."""

import collections
from collections.abc import Sequence
import math

from sira_jax.metrics import references


def exact_match(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Share of predictions that equal their target, or one of several.

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
  references.check_single(targets, predictions)
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
  bare = [
    references.join(_stripped(references.of(target))) for target in targets
  ]
  return {"accuracy": _share_equal(bare, _stripped(predictions))}


def macro_f1(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean over the targets' classes of F1 = 2 TP / (2 TP + FP + FN).

  A prediction that is no target's text is of no class, hence a miss alone.

  Raises:
    ValueError: as `exact_match`.
  """
  references.check_single(targets, predictions)
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


def f1(
  targets: Sequence[str], predictions: Sequence[str], *, positive: str
) -> dict[str, float]:
  """F1 = 2 TP / (2 TP + FP + FN) of one class; 0 where there is none of it.

  A prediction that is no target's text is an error: a miss of the class, or a
  false alarm where the target is another. So counts T5
  (`f1_score_with_invalid`); GLUE's own scripts see no such answers. GLUE's
  metric of MRPC and QQP, and F1a of SuperGLUE's MultiRC.

  Raises:
    ValueError: as `exact_match`, or a target of several answers.
  """
  references.check_single(targets, predictions)
  targets, predictions = _stripped(targets), _stripped(predictions)
  known = {positive, *targets}
  right = wrong = 0
  for target, prediction in zip(targets, predictions, strict=True):
    right += target == prediction == positive
    wrong += target != prediction and (
      positive in (target, prediction) or prediction not in known
    )
  whole = 2 * right + wrong
  return {"f1": 100.0 * 2 * right / whole if whole else 0.0}


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
  references.check_single(targets, predictions)
  targets, predictions = _stripped(targets), _stripped(predictions)
  size = len(targets)
  right = sum(one == two for one, two in zip(targets, predictions, strict=True))
  t, p = collections.Counter(targets), collections.Counter(predictions)
  spread = math.prod(
    size**2 - sum(n**2 for n in counts.values()) for counts in (t, p)
  )
  above = right * size - sum(p[label] * t[label] for label in t)
  return {"matthews": 100.0 * above / math.sqrt(spread) if spread else 0.0}


def _stripped(texts: Sequence[str]) -> list[str]:
  return [text.strip() for text in texts]


def _share_equal(targets: Sequence[str], predictions: Sequence[str]) -> float:
  references.check(targets, predictions)
  equal = sum(
    prediction in references.of(target)
    for target, prediction in zip(targets, predictions, strict=True)
  )
  return 100.0 * equal / len(targets)
