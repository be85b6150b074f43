# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import sklearn.metrics

from sira_jax import metrics

TARGETS = ["HassTurnOn(area=x)", "HassTurnOff(name=y)", "A()", "B(c=1)"]
PREDICTIONS = ["HassTurnOn(area=x)", "HassTurnOff(name=z)", "A(", "C(c=1)"]


def test_by_hand():
  assert metrics.exact_match(TARGETS, PREDICTIONS) == {"exact_match": 25.0}
  assert metrics.intent_accuracy(TARGETS, PREDICTIONS) == {
    "intent_accuracy": 75.0
  }


def test_space_around_an_answer():
  targets, predictions = ["yes", "no", "no"], [" yes\n", "No", "no"]
  assert metrics.accuracy(targets, predictions) == {
    "accuracy": pytest.approx(200 / 3)
  }
  assert metrics.exact_match(targets, predictions) == {
    "exact_match": pytest.approx(100 / 3)
  }


def test_words_in_any_order():
  # 2 of 3 and of 4 words shared: 2 * 2 / 7; then all of 2; then none.
  targets = ["the red fox", "New York", "x"]
  predictions = ["fox the the dog", "york  new", ""]
  assert metrics.token_f1(targets, predictions) == {
    "token_f1": pytest.approx(100 * (4 / 7 + 1) / 3)
  }


def test_f1_of_classes_by_hand():
  # a: TP 2, FN 1, FP 1: 4 / 6; b: TP 1, FN 1, FP 1: 2 / 4; c: none right.
  targets = ["a", "a", "a", "b", "b", "c"]
  predictions = ["a", "a", "b", "b", "?", "a"]
  assert metrics.macro_f1(targets, predictions) == {
    "macro_f1": pytest.approx(100 * (4 / 6 + 2 / 4 + 0) / 3)
  }


def test_matthews_is_the_correlation_of_two_classes():
  generator = np.random.default_rng(0)
  targets = generator.integers(0, 2, 50)
  predictions = np.where(generator.random(50) < 0.7, targets, 1 - targets)
  expected = 100 * np.corrcoef(targets, predictions)[0, 1]
  found = metrics.matthews(list(map(str, targets)), list(map(str, predictions)))
  assert found == {"matthews": pytest.approx(expected)}


def test_matthews_of_many_classes_is_of_indicators():
  generator = np.random.default_rng(1)
  targets, predictions = generator.integers(0, 4, (2, 60))
  predictions[:30] = targets[:30]
  one, two = np.eye(4)[targets], np.eye(4)[predictions]
  one, two = one - one.mean(0), two - two.mean(0)
  expected = 100 * (one * two).sum() / ((one**2).sum() * (two**2).sum()) ** 0.5
  found = metrics.matthews(list(map(str, targets)), list(map(str, predictions)))
  assert found == {"matthews": pytest.approx(expected)}
  assert metrics.matthews(["a", "a"], ["a", "b"]) == {"matthews": 0.0}


@pytest.mark.parametrize("metric", metrics.METRICS.values())
def test_missing_predictions_are_refused(metric):
  with pytest.raises(ValueError, match="2 targets and 1 predictions"):
    metric(["a", "b"], ["a"])
  with pytest.raises(ValueError, match="at least one"):
    metric([], [])


def test_f1_of_one_class_is_sklearns():
  generator = np.random.default_rng(2)
  targets, predictions = generator.integers(0, 2, (2, 40))
  names = np.array(["not_equivalent", "equivalent"])
  found = metrics.METRICS["f1_equivalent"](
    list(names[targets]), list(names[predictions])
  )
  expected = sklearn.metrics.f1_score(targets, predictions)
  assert found == {"f1": pytest.approx(100 * expected)}


def test_f1_of_an_answer_that_is_no_class():
  """TP 1; an odd answer misses one, and is a false alarm: 2 / (2 + 2)."""
  targets = ["duplicate", "duplicate", "not_duplicate", "not_duplicate"]
  predictions = ["duplicate ", "dup", "dup", "not_duplicate"]
  f1 = metrics.METRICS["f1_duplicate"]
  assert f1(targets, predictions) == {"f1": 50.0}
  assert f1(["no"], ["no"]) == {"f1": 0.0}
