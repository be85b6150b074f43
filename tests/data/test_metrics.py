# SPDX-License-Identifier: Apache-2.0
import pytest

from sira_jax.data import metrics

TARGETS = ["HassTurnOn(area=x)", "HassTurnOff(name=y)", "A()", "B(c=1)"]
PREDICTIONS = ["HassTurnOn(area=x)", "HassTurnOff(name=z)", "A(", "C(c=1)"]


def test_by_hand():
  assert metrics.exact_match(TARGETS, PREDICTIONS) == {"exact_match": 25.0}
  assert metrics.intent_accuracy(TARGETS, PREDICTIONS) == {
    "intent_accuracy": 75.0
  }


@pytest.mark.parametrize(
  "metric", [metrics.exact_match, metrics.intent_accuracy]
)
def test_missing_predictions_are_refused(metric):
  with pytest.raises(ValueError, match="2 targets and 1 predictions"):
    metric(["a", "b"], ["a"])
  with pytest.raises(ValueError, match="at least one"):
    metric([], [])
