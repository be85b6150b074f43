"""Values in the air: nesting, counts, and no stale tracers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient


def test_innermost_entry_is_read_and_left():
  value = ambient.Ambient("value")
  assert value.get() is None
  with value(1):
    with value(2):
      assert value.get() == 2
      with value(None):
        assert value.get() is None
    assert value.get() == 1
    with pytest.raises(ZeroDivisionError), value(3):
      _ = 1 / 0
    assert value.get() == 1
  assert value.get() is None


def masked_sum(x):
  """Reads the air; at the module's level, as a layer's method is."""
  return (x * (ambient.SEGMENTS.get().ids > 0)).sum()


class Masked(nnx.Module):
  def __call__(self, x):
    return masked_sum(x)


def masked_scan(x):
  return jax.lax.scan(lambda carry, _: (carry, masked_sum(x)), 0, length=1)[1][
    0
  ]


X = jnp.array([[1.0, 2.0, 4.0]])


@pytest.mark.parametrize(
  "inner",
  [
    jax.checkpoint(masked_sum),
    jax.jit(masked_sum),
    jax.jit(masked_scan),
    lambda x: nnx.remat(Masked.__call__)(Masked(), x),
  ],
  ids=["checkpoint", "jit", "scan", "nnx.remat"],
)
def test_no_tracer_is_read_in_a_later_trace(inner):
  """JAX keeps inner traces; a mask met in one must not come back."""

  def outer(mask, x):
    with ambient.SEGMENTS(ambient.Segments(mask, packed=False)):
      return inner(x) * 1

  for number, mask in enumerate(([[1, 0, 1]], [[0, 1, 0]], [[1, 1, 1]])):
    mask = jnp.array(mask)
    expected = (X * mask).sum()
    # Three traces of one function, and its derivative's.
    program = jax.jit(lambda mask, x, n=number: outer(mask, x) + 0 * n)
    np.testing.assert_array_equal(program(mask, X), expected)
    slope = jax.jit(jax.grad(lambda x, mask, n=number: outer(mask, x)))
    np.testing.assert_array_equal(slope(X, mask), mask)


def test_two_entries_in_one_trace():
  @jax.jit
  def both(x, one, other):
    found = []
    for mask in (one, other):
      with ambient.SEGMENTS(ambient.Segments(mask, packed=False)):
        found.append(jax.checkpoint(masked_sum)(x))
    return found

  assert both(X, jnp.array([[1, 0, 0]]), jnp.array([[0, 1, 1]])) == [1, 6]


@pytest.mark.parametrize(
  "ids, packed, tokens, bounds",
  [
    ([[1, 1, 1, 0]], False, [[3]], None),
    ([[0, 0, 1, 1]], False, [[2]], None),
    ([[0, 0, 0, 0]], False, [[0]], None),
    (
      [[1, 1, 2, 2, 2, 0]],
      True,
      [[2, 2, 3, 3, 3, 0]],
      ([[0, 0, 2, 2, 2, 5]], [[2, 2, 5, 5, 5, 6]]),
    ),
    ([[0, 0]], True, [[0, 0]], ([[0, 0]], [[2, 2]])),
  ],
)
def test_segments(ids, packed, tokens, bounds):
  got = ambient.Segments(jnp.array(ids), packed)
  assert got.tokens.tolist() == tokens
  found = got.bounds and tuple(one.tolist() for one in got.bounds)
  assert found == bounds
