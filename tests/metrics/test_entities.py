# SPDX-License-Identifier: Apache-2.0
"""F1 of named entities that are listed by their text."""

import pytest

from sira_jax import metrics


@pytest.mark.parametrize(
  ("target", "prediction", "f1"),
  [
    ("PER: A $$ LOC: B", "LOC: B $$ PER: A", 100),
    ("PER: A $$ LOC: B", "PER: B $$ LOC: A", 0),
    ("PER: A $$ PER: A", "PER: A $$ PER: A", 100),
    # One of two that are alike: TP 1, FN 1.
    ("PER: A $$ PER: A", "PER: A", 200 / 3),
    # TP 1, FP 2.
    ("PER: A", "PER: A $$ PER: A $$ PER: A", 50),
    ("PER: A", " PER :  A ", 100),
    ("", "", 0),
    ("", "PER: A", 0),
    # What has no colon, or two, is none: TP 1, no FP and no FN.
    ("PER: A $$ DATE: 8:30", "PER: A $$ what $$ DATE: 9:15", 100),
  ],
)
def test_entity_f1(target, prediction, f1):
  found = metrics.METRICS["entity_f1"]([target], [prediction])
  assert found == {"entity_f1": pytest.approx(f1)}


def test_it_is_of_all_examples_together():
  """TP 1, FP 1, FN 2 of two examples: 2 / 5; means of each would be 1 / 2."""
  found = metrics.METRICS["entity_f1"](
    ["PER: A", "PER: B $$ PER: C"], ["PER: A", "PER: D"]
  )
  assert found == {"entity_f1": pytest.approx(40)}
  with pytest.raises(ValueError):
    metrics.METRICS["entity_f1"]([], [])
