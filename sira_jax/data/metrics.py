# SPDX-License-Identifier: Apache-2.0
"""Metric functions for seqio, in percent."""

from collections.abc import Sequence


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


def _share_equal(targets: Sequence[str], predictions: Sequence[str]) -> float:
  if not len(targets) or len(targets) != len(predictions):
    raise ValueError(
      "Expected at least one target and a prediction for each, got"
      f" {len(targets)} targets and {len(predictions)} predictions."
    )
  equal = sum(a == b for a, b in zip(targets, predictions, strict=True))
  return 100.0 * equal / len(targets)
