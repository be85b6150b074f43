# SPDX-License-Identifier: Apache-2.0
"""Products that round no operand, alone and beside others, against float64."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.adapters import methods, products, surgery
from sira_jax.adapters.variables import Trainable

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 64)).astype(jnp.bfloat16)
W = RNG.normal(size=(64, 5)).astype(np.float32)
SLOPE = RNG.normal(size=(48, 5)).astype(np.float32)
TOKENS, D, RANKS, EXPERTS = 300, 256, 24, 6
# Errors of sums of bfloat16 numbers, and of float32 ones.
TOLERANCE = {"bfloat16": 1e-2, "float32": 2e-6}


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


def draw(dtype):
  rng = np.random.default_rng(0)
  shapes = (TOKENS, D), (D, RANKS), (D, EXPERTS)
  x, a, router = (rng.normal(size=shape) for shape in shapes)
  return jnp.asarray(x, dtype), *(jnp.float32(v) for v in (a, 0.02 * router))


def error(found, expected):
  found, expected = (np.asarray(v, np.float64) for v in (found, expected))
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_beside(dtype):
  given = draw(dtype)
  x, a, router = (np.asarray(v, np.float64) for v in given)
  z, logits = jax.jit(products.beside)(*given)
  assert z.dtype == dtype and logits.dtype == jnp.float32
  assert error(z, x @ a) < TOLERANCE[dtype]
  # Of three bfloat16 parts, as of a float32 kernel; of two it is 1e-5.
  assert error(logits, x @ router) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_beside(dtype):
  given = draw(dtype)
  rng = np.random.default_rng(1)
  dz = jnp.asarray(rng.normal(size=(TOKENS, RANKS)), dtype)
  dlogits = jnp.float32(rng.normal(size=(TOKENS, EXPERTS)))
  _, back = jax.vjp(products.beside, *given)
  found = jax.jit(back)((dz, dlogits))
  x, a, router, dz, dlogits = (
    np.asarray(v, np.float64) for v in (*given, dz, dlogits)
  )
  expected = dz @ a.T + dlogits @ router.T, x.T @ dz, x.T @ dlogits
  for one, two, like in zip(found, expected, given, strict=True):
    assert one.dtype == like.dtype and one.shape == like.shape
    assert error(one, two) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_weights_side_by_side_are_kept(dtype):
  """They would be from each layer's forward to its backward pass."""
  _, back = jax.vjp(products.beside, *draw(dtype))
  kept = {array.shape for array in jax.tree.leaves(back)}
  assert kept == {(TOKENS, D), (D, RANKS), (D, EXPERTS)}


def shapes_of(jaxpr):
  """dtype and shape of every value, inside other programs too."""
  for equation in jaxpr.eqns:
    yield from (v.aval for v in equation.outvars)
    for inner in jax.core.jaxprs_in_params(equation.params):
      yield from shapes_of(inner)


@pytest.mark.parametrize(
  ("settings", "copied"),
  [
    (dict(execution="rank_space"), False),
    (dict(execution="dispatch"), False),
    (dict(level="example"), True),  # the test can fail
  ],
)
def test_float32_copies_of_x(settings, copied):
  """A pass over one would cost more than all of the routing."""
  dtype = jnp.bfloat16
  layer = nnx.Linear(D, 40, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
  model = nnx.List([layer])
  factory = methods.sira(experts=6, rank=4, k=2, expert_dropout=0.0, **settings)
  surgery.adapt(model, [surgery.Rule("0", factory)], rngs=nnx.Rngs(1))
  graph, trainable, rest = nnx.split(model, Trainable, ...)
  x = jnp.zeros((2, 50, D), jnp.bfloat16)

  def loss(trainable, x):
    return nnx.merge(graph, trainable, rest)[0](x).astype(jnp.float32).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(trainable, x)
  large = {
    (v.dtype.name, v.size) for v in shapes_of(jaxpr.jaxpr) if v.size == x.size
  }
  assert (("float32", x.size) in large) == copied
