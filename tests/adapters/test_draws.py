"""A layer's random draws: their rates, and what they are independent of."""

import jax
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import draws

RATE, SHAPE = 0.25, (8, 64, 4)


def dropped(seed=1, key=0, rate=RATE, shape=SHAPE):
  with ambient.DROPOUT_KEY(jax.random.key(key)):
    return ~np.asarray(draws.keep(shape, rate, seed))


def chosen(n=5, count=4000, seed=1, key=0):
  with ambient.DROPOUT_KEY(jax.random.key(key)):
    return np.asarray(draws.choice(n, count, seed))


def agreement(one, other):
  return (one == other).mean()


@pytest.mark.parametrize("rate", [0.1, RATE, 0.9])
def test_the_rate(rate):
  mask = dropped(rate=rate)
  # 4 standard deviations, of 2048 and of 512 draws.
  deviation = (rate * (1 - rate)) ** 0.5
  np.testing.assert_allclose(mask.mean(), rate, atol=4 * deviation / 2048**0.5)
  np.testing.assert_allclose(
    mask.mean(axis=(0, 1)), rate, atol=4 * deviation / 512**0.5
  )


def test_a_rate_of_zero_keeps_all():
  assert not dropped(rate=0.0).any()


@pytest.mark.parametrize("seed, key", [(2, 0), (1, 1)])
def test_masks_differ_by_seed_and_by_key(seed, key):
  one, other = dropped(1, 0), dropped(seed, key)
  # Independent masks agree with chance 0.25^2 + 0.75^2; sd 0.011.
  assert abs(agreement(one, other) - 0.625) < 0.044
  np.testing.assert_array_equal(one, dropped(1, 0))


def test_masks_differ_between_the_steps_of_a_run():
  """Steps fold their number into one key: both of its words change."""
  keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(4)]
  masks = []
  for key in keys:
    with ambient.DROPOUT_KEY(key):
      masks.append(np.asarray(draws.keep(SHAPE, RATE, 1)))
  for i, one in enumerate(masks):
    for other in masks[:i]:
      assert abs(agreement(one, other) - 0.625) < 0.044


@pytest.mark.parametrize("shape", [SHAPE, (2048,), (32, 64), (4, 8, 8, 8)])
def test_masks_differ_by_position(shape):
  mask = dropped(shape=shape)
  assert mask.shape == shape
  for axis in range(len(shape)):
    one = np.moveaxis(mask, axis, 0)
    # At least 1536 pairs: 4 standard deviations.
    assert abs(agreement(one[1:], one[:-1]) - 0.625) < 0.05


def test_a_program_draws_the_same():
  key = jax.random.key(3)

  @jax.jit
  def compiled(key):
    with ambient.DROPOUT_KEY(key):
      return draws.keep(SHAPE, RATE, 1), draws.choice(5, 7, 1)

  mask, numbers = compiled(key)
  np.testing.assert_array_equal(~np.asarray(mask), dropped(key=3))
  np.testing.assert_array_equal(numbers, chosen(5, 7, key=3))


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_choices_are_uniform(n):
  numbers = chosen(n)
  assert numbers.dtype == np.int32 and numbers.min() >= 0
  counts = np.bincount(numbers, minlength=n)
  # 4 standard deviations of a binomial of 4000.
  assert len(counts) == n
  slack = 4 * (4000 / n * (1 - 1 / n)) ** 0.5
  np.testing.assert_allclose(counts, 4000 / n, atol=slack)


def test_choices_are_independent():
  """Of each other, and by seed and by key; sd of an agreement 0.0063."""
  numbers = chosen()
  assert abs(agreement(numbers[1:], numbers[:-1]) - 0.2) < 0.026
  for other in (chosen(seed=2), chosen(key=1)):
    assert abs(agreement(numbers, other) - 0.2) < 0.026


def test_pairs_by_step_are_uniform():
  """As AdaMix draws: two numbers, anew in each step of a run."""

  @jax.jit
  @jax.vmap
  def pair(step):
    with ambient.DROPOUT_KEY(jax.random.fold_in(jax.random.key(0), step)):
      return draws.choice(4, 2, 1)

  i, j = np.asarray(pair(np.arange(4000))).T
  counts = np.bincount(4 * i + j, minlength=16)
  # Each of the 16 pairs 250 times; 4 standard deviations.
  np.testing.assert_allclose(counts, 250, atol=62)


@pytest.mark.parametrize(
  "draw", [lambda: draws.keep((2,), 0.5, 1), lambda: draws.choice(2, 1, 1)]
)
def test_draws_need_a_key(draw):
  with pytest.raises(ValueError, match=r"ambient\.DROPOUT_KEY"):
    draw()
