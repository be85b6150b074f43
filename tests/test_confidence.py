# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import stats

from sira_jax import confidence, metrics


def of(metric):
  return lambda targets, predictions: metric(targets, predictions)


def test_a_share_is_binomial():
  """48 of 64 are right: of 64 draws, that many are with probability 3 / 4."""
  targets, predictions = ["a"] * 64, ["a"] * 48 + ["b"] * 16
  found = confidence.intervals(
    targets, predictions, score=of(metrics.exact_match)
  )
  low, high = found["exact_match"]
  exact = 100 * stats.binom.ppf((0.025, 0.975), 64, 0.75) / 64
  np.testing.assert_allclose((low, high), exact, atol=100 / 64)


def test_a_correlation_is_scipys():
  generator = np.random.default_rng(0)
  one = generator.normal(size=80)
  two = one + generator.normal(size=80)
  found = confidence.intervals(
    [str(x) for x in one], [str(x) for x in two], score=of(metrics.pearson)
  )
  expected = stats.bootstrap(
    (one, two),
    lambda x, y: stats.pearsonr(x, y).statistic,
    paired=True,
    vectorized=False,
    n_resamples=1000,
    method="percentile",
    rng=0,
  ).confidence_interval
  np.testing.assert_allclose(
    found["pearson"], [100 * x for x in expected], atol=3
  )


def test_what_looks_like_a_mean_and_is_none():
  """Of symmetric errors, the mean of F1 is the accuracy; of draws, not."""
  targets = ["a"] * 20 + ["b"] * 20
  predictions = ["a"] * 15 + ["b"] * 20 + ["a"] * 5

  def score(targets, predictions):
    return metrics.macro_f1(targets, predictions) | metrics.accuracy(
      targets, predictions
    )

  whole = score(targets, predictions)
  assert whole["macro_f1"] == whole["accuracy"] == 75.0
  asked = []

  def counted(targets, predictions):
    asked.append(len(targets))
    return score(targets, predictions)

  found = confidence.intervals(targets, predictions, score=counted)
  assert found["macro_f1"] != found["accuracy"]
  assert asked.count(40) == 1 + 8 + confidence.SAMPLES_OF_OTHERS
  asked.clear()
  confidence.intervals(
    targets,
    predictions,
    score=lambda *pair: {"accuracy": counted(*pair)["accuracy"]},
  )
  assert asked.count(40) == 1 + 8


def test_a_seed_gives_the_same_again():
  generator = np.random.default_rng(3)
  one, two = generator.normal(size=(2, 30)).astype(str).tolist()
  first, again, other = (
    confidence.intervals(one, two, score=of(metrics.pearson), seed=seed)
    for seed in (1, 1, 2)
  )
  assert first == again != other


def test_all_right_or_unlike():
  score = of(metrics.accuracy)
  found = confidence.intervals(["a"] * 9, ["a"] * 9, score=score)
  assert found == {"accuracy": [100.0, 100.0]}
  with pytest.raises(ValueError, match="3 targets and 2"):
    confidence.intervals(["a"] * 3, ["a"] * 2, score=score)
