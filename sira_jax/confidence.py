# SPDX-License-Identifier: Apache-2.0
"""How much of a score is the luck of which examples were scored."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

SAMPLES = 1000
"""Drawn of metrics that are a mean over examples, which costs little."""

SAMPLES_OF_OTHERS = 200
"""Drawn of others, such as F1 or BLEU, which are computed anew for each."""

_PROBES = 8

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]


def intervals(
  targets: Sequence[str],
  predictions: Sequence[str],
  *,
  score: Score,
  seed: int = 0,
) -> dict[str, list[float]]:
  """By metric, where its middle 95 % are if the examples are drawn again.

  As many examples as there are, with replacement: the percentile bootstrap
  (Efron 1979). It says nothing of other seeds of training. The intervals of few
  examples are too narrow; that of answers which are all right has no width.

  Args:
    targets: as `score` takes them.
    predictions: likewise.
    score: the metrics of targets and predictions; always the same, of any
      examples.
    seed: of the draws; the same gives the same intervals.

  Raises:
    ValueError: as `score`.
  """
  count, generator = len(targets), np.random.default_rng(seed)

  def of(rows: Sequence[int]) -> dict[str, float]:
    found = score([targets[i] for i in rows], [predictions[i] for i in rows])
    return dict(found)

  whole = dict(score(targets, predictions))
  alone = [of([i]) for i in range(count)]
  by_example = {name: np.array([a[name] for a in alone]) for name in whole}
  draws = generator.integers(0, count, (SAMPLES, count))
  probes = [(np.arange(count), whole)]
  probes += [(rows, of(rows)) for rows in draws[:_PROBES]]
  # A metric of pairs, such as a correlation, is no mean, and rarely looks so.
  means = {
    name
    for name, values in by_example.items()
    if all(np.isclose(values[rows].mean(), f[name]) for rows, f in probes)
  }
  others = [of(rows) for rows in draws[:SAMPLES_OF_OTHERS] if means < {*whole}]
  found = {}
  for name, values in by_example.items():
    drawn = values[draws].mean(1)
    if name not in means:
      drawn = [one[name] for one in others]
    low, high = np.percentile(drawn, (2.5, 97.5))
    found[name] = [float(low), float(high)]
  return found
