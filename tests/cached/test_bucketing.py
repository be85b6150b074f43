# SPDX-License-Identifier: Apache-2.0
"""Which examples share a batch of one bucket."""

import numpy as np
import pytest

from sira_jax.cached import bucketing


def made(sizes, buckets, batch_size):
  """Of a sequence whose numbers are those of its places, and 100."""
  sizes = np.asarray(sizes)
  return bucketing.Bucketed(
    lambda start, stop: np.arange(start, stop) + 100,
    lambda numbers: sizes[numbers - 100],
    buckets=buckets,
    batch_size=batch_size,
  )


def test_by_hand():
  # Of 4 tokens, of 8, and of more: the second batch is full before the third.
  sizes = [3, 9, 4, 8, 1, 5, 12, 2, *[6] * 10**4]
  bucketed = made(sizes, (4, 8), 2)
  found = [bucketed(number).tolist() for number in range(5)]
  assert found == [[100, 102], [103, 105], [101, 106], [104, 107], [108, 109]]


@pytest.mark.parametrize("buckets", [(5,), (3, 6, 9)])
def test_as_one_example_after_the_other(buckets):
  """More examples than are looked at at once; from a place in their midst."""
  sizes = np.random.default_rng(0).integers(1, 12, 130_000)
  waiting, batches = {}, []
  for number, size in enumerate(sizes[:50_000], 100):
    own = waiting.setdefault(sum(size > one for one in buckets), [])
    own.append(number)
    if len(own) == 16:
      batches.append(own.copy())
      own.clear()
  bucketed = made(sizes, buckets, 16)
  last = len(batches) - 1
  for number in (last, 0, last // 2, *range(last)):
    assert bucketed(number).tolist() == batches[number]
