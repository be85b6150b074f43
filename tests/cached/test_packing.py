"""Which examples share a row."""

import numpy as np
import pytest

from sira_jax.cached import packing


def test_by_hand():
  # 3 + 4 of 8; 5 + 2, with which 2 does not fit; 2 + 6; 8 alone; 1 + 1 ...
  sizes = [3, 4, 5, 2, 2, 6, 8, *[1] * 10**4]
  packed = packing.Packed(
    lambda a, b: np.array(sizes[a:b])[:, None], np.array([8])
  )
  assert packed(0, 5) == [0, 2, 4, 6, 7, 15]
  assert packed(2, 2) == [4]


def test_both_limits_count():
  sizes = np.array([[1, 9], [1, 1], [9, 1], [1, 1], [1, 9]] + [[10, 10]] * 5000)
  packed = packing.Packed(lambda a, b: sizes[a:b], np.array([10, 10]))
  assert packed(0, 4) == [0, 2, 4, 5, 6]


@pytest.mark.parametrize("limits", [[20], [20, 15]])
def test_as_one_example_after_the_other(limits):
  """More examples than are added up at once; from a place in their midst."""
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 12, (60_000, len(limits)))
  begin, used = [0], np.zeros(len(limits), int)
  for number, size in enumerate(sizes[:50_000]):
    if (used + size > limits).any():
      begin.append(number)
      used = np.zeros(len(limits), int)
    used = used + size
  packed = packing.Packed(lambda a, b: sizes[a:b], np.array(limits))
  rows = len(begin) - 1
  assert packed(rows - 50, rows) == begin[-51:]
  assert packed(0, rows) == begin
