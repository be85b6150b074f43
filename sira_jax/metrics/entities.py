# SPDX-License-Identifier: Apache-2.0
"""The metric of named entities that are listed by their text, in percent."""

import collections
from collections.abc import Sequence

from sira_jax.metrics import references

_SEPARATOR = " $$ "


def entity_f1(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Micro F1 of entities, whose kind and text must both be right.

  A text is such as "PER: Ada $$ LOC: London"; an entity that is there twice
  counts twice, and the order does not matter. F1 = 2 TP / (2 TP + FP + FN), 0
  without any. What has no colon, or several, is no entity, of a target either:
  so counts the release of XTREME-UP (evaluation/metrics.py, `span_f1_seqio`),
  and of mT5 before it.

  Raises:
    ValueError: if there are no targets, not one prediction for each, or a
      target is of several answers.
  """
  references.check_single(targets, predictions)
  right = whole = 0
  for target, prediction in zip(targets, predictions, strict=True):
    wanted, found = _entities(target), _entities(prediction)
    right += (wanted & found).total()
    whole += wanted.total() + found.total()
  return {"entity_f1": 100.0 * 2 * right / whole if whole else 0.0}


def _entities(text: str) -> collections.Counter:
  parts = (part.split(":") for part in text.split(_SEPARATOR))
  return collections.Counter(
    (part[0].strip(), part[1].strip()) for part in parts if len(part) == 2
  )
