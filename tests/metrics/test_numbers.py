# SPDX-License-Identifier: Apache-2.0
import pytest

from sira_jax import metrics


def test_pearson_by_hand():
  """What is no number counts as the mean, 4 of 2, 4 and 6.

  Less their means: (-2, 0, 2, 0) and (-1.5, -0.5, 0.5, 1.5), whose product is
  3 + 1 = 4, of sqrt(8 * 5).
  """
  found = metrics.pearson(["1", "2", "3", "4"], ["2", "4", "6", "red"])
  assert found["pearson"] == pytest.approx(400 / 40**0.5)
  assert metrics.pearson(["1", "2"], ["3", "3"]) == {"pearson": 0.0}
  with pytest.raises(ValueError, match="targets that are numbers"):
    metrics.pearson(["one", "2"], ["1", "2"])


def test_spearman_by_hand():
  """Ranks 1, 2, 3, 4 and 1, 2.5, 2.5, 4, for equals share theirs.

  Less the mean, 2.5: (-1.5, -0.5, 0.5, 1.5) and (-1.5, 0, 0, 1.5), whose
  product is 4.5, of sqrt(5 * 4.5).
  """
  found = metrics.spearman(["1", "2", "3", "50"], ["1", "4", "4", "5"])
  assert found == {"spearman": pytest.approx(450 / (5 * 4.5) ** 0.5)}
  assert metrics.spearman(["1", "2"], ["3", "3"]) == {"spearman": 0.0}
  # "red" is the mean of 0 and 4, between the two.
  found = metrics.spearman(["1", "2", "3"], ["0", "red", "4"])
  assert found == {"spearman": pytest.approx(100)}
  with pytest.raises(ValueError, match="numbers, for spearman"):
    metrics.spearman(["one", "2"], ["1", "2"])
