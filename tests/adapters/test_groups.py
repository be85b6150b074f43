"""Counts, means and orders over examples, against loops over them."""

import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import groups
from tests.adapters import loop

# Beyond one block of the running counts; padding before, between and after.
LENGTH = 300
PADDED = np.zeros((4, LENGTH), int)
PADDED[0] = 1
PADDED[1, :130] = 1
PADDED[2, 40:] = 1
PACKED = np.zeros((3, LENGTH), int)
PACKED[0, :1], PACKED[0, 1:200], PACKED[0, 200:] = 1, 2, 3
PACKED[1, 5:128], PACKED[1, 128:129], PACKED[1, 140:290] = 1, 2, 3
LAYOUTS = pytest.mark.parametrize(
  "ids, packed", [(PADDED, False), (PACKED, True)], ids=["padded", "packed"]
)


def of(ids, packed):
  with ambient.SEGMENTS(ambient.Segments(jnp.asarray(ids), packed)):
    return groups.of_batch(*ids.shape)


def values(ids, n=3):
  return np.random.default_rng(0).random((*ids.shape, n)).astype(np.float32)


def everywhere(found, ids):
  """[batch #length n] for each token."""
  return np.broadcast_to(found, (*ids.shape, found.shape[-1]))


@LAYOUTS
def test_counts(ids, packed):
  marks = (values(ids) < 0.6) & (ids > 0)[..., None]
  before, total = of(ids, packed).counts(marks)
  total = everywhere(total, ids)
  for row, tokens in loop.examples(ids):
    own = marks[row, tokens]
    exact = np.cumsum(own, axis=0) - own
    np.testing.assert_array_equal(before[row, np.array(tokens)], exact)
    np.testing.assert_array_equal(
      total[row, tokens], np.tile(own.sum(0), (len(tokens), 1))
    )


@LAYOUTS
def test_tokens(ids, packed):
  tokens = everywhere(np.asarray(of(ids, packed).tokens)[..., None], ids)
  for row, own in loop.examples(ids):
    assert (tokens[row, own] == len(own)).all()
  assert (np.asarray(of(ids, packed).real) == (ids > 0)).all()


@LAYOUTS
@pytest.mark.parametrize("axes", [0, 1, 2])
def test_mean(ids, packed, axes):
  x = values(ids, 6).reshape(*ids.shape, 2, 3)
  x = x[(..., *[0] * (2 - axes))]
  expected = np.mean(
    [x[row, tokens].mean(0) for row, tokens in loop.examples(ids)], axis=0
  )
  found = of(ids, packed).mean(x)
  assert found.shape == x.shape[2:]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@LAYOUTS
def test_example_mean(ids, packed):
  x = values(ids)
  found = everywhere(of(ids, packed).example_mean(x), ids)
  for row, tokens in loop.examples(ids):
    expected = np.tile(x[row, tokens].mean(0), (len(tokens), 1))
    np.testing.assert_allclose(found[row, tokens], expected, rtol=1e-5)
  assert np.isfinite(found).all()


def test_first_of_a_packed_row():
  x = values(PACKED) < 0.5
  found = np.asarray(of(PACKED, True).first(x))
  for row, tokens in loop.examples(PACKED):
    assert (found[row, tokens] == x[row, tokens[0]]).all()


def test_first_of_a_row():
  x = values(PADDED) < 0.5
  np.testing.assert_array_equal(of(PADDED, False).first(x), x[:, :1])


@LAYOUTS
def test_order(ids, packed):
  # Of few values, so that ties keep their order.
  keys = np.random.default_rng(1).integers(0, 5, ids.shape).astype(np.float32)
  order = np.asarray(of(ids, packed).order(keys))
  np.testing.assert_array_equal(
    np.sort(order, axis=1), np.tile(np.arange(LENGTH), (len(ids), 1))
  )
  for row, tokens in loop.examples(ids):
    expected = sorted(tokens, key=lambda t, row=row: keys[row, t])
    # In a packed row at the example's own positions, else before padding.
    start = tokens[0] if packed else 0
    assert order[row, start : start + len(tokens)].tolist() == expected


def test_without_segments_each_row_is_one_example():
  found = groups.of_batch(2, 5)
  assert found.real.all() and found.bounds is None
  np.testing.assert_array_equal(found.tokens, [[5], [5]])


def test_segments_of_another_shape_are_refused():
  ids = jnp.ones((8, 3), int)
  with (
    ambient.SEGMENTS(ambient.Segments(ids, packed=False)),
    pytest.raises(ValueError, match=r"\[8, 64\].*\[8, 3\]"),
  ):
    groups.of_batch(8, 64)
