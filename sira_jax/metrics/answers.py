# SPDX-License-Identifier: Apache-2.0
"""Metrics of short free answers to questions, in percent."""

import collections
from collections.abc import Sequence
import re
import string

from sira_jax.metrics import references


def token_f1(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean of each prediction's F1 of words, in lower case, in any order.

  Of several right answers, the best counts. `squad` also drops punctuation and
  English articles, which other languages do not have; this does not.

  Raises:
    ValueError: if there are no targets, or not one prediction for each.
  """
  return {"token_f1": _mean_of_best(_token_f1, targets, predictions)}


def squad(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Exact match and F1 of words, both of normalised text, of the best answer.

  Normalised is in lower case, without ASCII punctuation, then without the words
  a, an and the, with single spaces. F1 = 2 S / (T + P) of S shared words, T of
  the answer and P of the prediction; 0 where none is shared. SQuAD's metrics
  (Rajpurkar et al. 2016, evaluate-v1.1.py), and TyDi QA GoldP's and ReCoRD's.

  Raises:
    ValueError: as `token_f1`.
  """
  return {
    "squad_em": _mean_of_best(
      lambda one, two: float(_normal(one) == _normal(two)), targets, predictions
    ),
    "squad_f1": _mean_of_best(
      lambda one, two: _token_f1(_normal(one), _normal(two)),
      targets,
      predictions,
    ),
  }


def _mean_of_best(score, targets, predictions):
  references.check(targets, predictions)
  best = [
    max(score(answer, prediction) for answer in references.of(target))
    for target, prediction in zip(targets, predictions, strict=True)
  ]
  return 100.0 * sum(best) / len(best)


def _token_f1(answer: str, prediction: str) -> float:
  one, two = answer.lower().split(), prediction.lower().split()
  shared = (collections.Counter(one) & collections.Counter(two)).total()
  return 2 * shared / max(len(one) + len(two), 1)


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normal(text: str) -> str:
  bare = text.lower().translate(_PUNCTUATION)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
