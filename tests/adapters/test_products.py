# SPDX-License-Identifier: Apache-2.0
"""Products that round no operand, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.adapters import products

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 64)).astype(jnp.bfloat16)
W = RNG.normal(size=(64, 5)).astype(np.float32)
SLOPE = RNG.normal(size=(48, 5)).astype(np.float32)


def worst(found, expected):
  return np.abs(np.asarray(found, np.float64) - expected).max()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_no_operand_is_rounded(dtype):
  x = jnp.asarray(X, dtype)
  y, back = jax.jit(lambda x, w: jax.vjp(products.exact, x, w))(x, W)
  to_x, to_w = back(jnp.asarray(SLOPE))
  assert y.dtype == to_w.dtype == jnp.float32
  assert to_x.dtype == dtype
  wide = np.asarray(X, np.float64)
  # W rounded to bfloat16 is 2e-3 from W, and y then 3e-2 from y.
  assert worst(y, wide @ W) < 2e-5
  assert worst(to_w, wide.T @ SLOPE) < 2e-5
  bound = 3e-5 if dtype == jnp.float32 else 1e-1
  assert worst(to_x, SLOPE.astype(np.float64) @ W.T) < bound


def test_bfloat16_is_multiplied_as_it_is():
  def both(x, w, slope):
    y, back = jax.vjp(products.exact, x, w)
    return y, back(slope)

  text = jax.jit(both).lower(jnp.asarray(X), W, SLOPE).as_text()
  dots = [line for line in text.splitlines() if "dot_general" in line]
  assert len(dots) == 3
  for line in dots:
    operands = line[line.rindex(" : ") : line.rindex("->")]
    assert operands.count("bf16>") == 2
