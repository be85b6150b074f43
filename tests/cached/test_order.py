"""Which example comes when."""

import grain
import numpy as np
import pytest

from sira_jax.cached import order

SIZES = (7, 300, 1500)


def make(rates=(1, 5, 10), seed=3):
  begin = np.cumsum([0, *SIZES])
  numbers = [np.arange(a, a + n) for a, n in zip(begin, SIZES, strict=False)]
  return order.Order(numbers, rates, seed=seed)


def entries(numbers):
  return np.searchsorted(np.cumsum(SIZES), numbers, side="right")


@pytest.mark.parametrize("rates", [(1, 5, 10), (0.701, 0.2, 0.099)])
def test_every_block_has_the_rates(rates):
  found = entries(make(rates)(0, 20 * order.BLOCK))
  counts = np.array(
    [np.bincount(found[: n * order.BLOCK], minlength=3) for n in range(1, 21)]
  )
  wanted = order.BLOCK * np.arange(1, 21)[:, None] * np.array(rates)
  np.testing.assert_allclose(counts, wanted / sum(rates), atol=2)


def test_counts_are_grains():
  """Of whole numbers, which grain rounds none of."""
  mixed = grain.MapDataset.mix(
    [grain.MapDataset.source([i]).repeat() for i in range(3)], [1, 5, 10]
  )
  found = np.array([mixed[i] for i in range(2 * order.BLOCK)])
  for blocks in (1, 2):
    size = blocks * order.BLOCK
    wanted = np.bincount(found[:size], minlength=3).tolist()
    assert make().counts(size) == wanted
    assert np.bincount(entries(make()(0, size))).tolist() == wanted


def test_an_epoch_has_each_example_once():
  numbers = make()(0, 40 * order.BLOCK)
  for entry, size in enumerate(SIZES):
    own = numbers[entries(numbers) == entry]
    epochs = [own[i : i + size] for i in range(0, len(own) - size, size)]
    assert len(epochs) > 10
    assert all(len(set(epoch.tolist())) == size for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != np.sort(epochs[0])).any()


def test_a_part_is_of_the_whole():
  whole = make()(0, 5000)
  for start, stop in ((0, 1), (1023, 1025), (2047, 2048), (70, 4999)):
    np.testing.assert_array_equal(make()(start, stop), whole[start:stop])
  assert len(make()(5, 5)) == 0
  assert (make(seed=4)(0, 100) != whole[:100]).any()


def test_the_numbers_never_change():
  """Runs go on by them: this is what they were when they were first made."""
  assert make()(0, 6).tolist() == [168, 123, 67, 486, 139, 1620]
  assert order.permutation(5, 0).tolist() == [3, 2, 1, 0, 4]
