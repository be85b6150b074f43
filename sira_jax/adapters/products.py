# SPDX-License-Identifier: Apache-2.0
"""Products of activations with what must not be rounded, a router's kernel.

Its logits decide who goes where, so they are float32 whatever x is.
Accelerators multiply bfloat16 many times as fast as float32, and x is large: of
a bfloat16 x no float32 copy is made. The kernel is the sum of three bfloat16
matrices, which have all of its 24 bits between them, and a product of two
bfloat16 numbers is exact in float32, in which they are summed. The gradient of
x is rounded to its dtype anyway, and so are the operands that it is made of.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sira_jax import sharding

_PARTS = 3


def exact(
  x: Float[Array, "tokens d"], w: Float[Array, "d n"]
) -> Float[Array, "tokens n"]:
  """x w in float32, with no operand rounded."""
  return beside(x, w[:, :0], w)[1]


def beside(
  x: Float[Array, "tokens d"],
  a: Float[Array, "d m"],
  w: Float[Array, "d n"],
) -> tuple[Float[Array, "tokens m"], Float[Array, "tokens n"]]:
  """x a in x's dtype, and x w as `exact`: one product, and so in gradients.

  Two would pass over x twice, and over its gradient. Of float32 on an
  accelerator they are two, since x a is rounded there, and fast. On a CPU the
  gradient of x is of two: XLA would keep [a w] from one pass to the other.

  Args:
    x: what a layer reads.
    a: float32; rounded to a bfloat16 x's dtype.
    w: float32.
  """
  if x.dtype == jnp.bfloat16:
    return _of_bfloat16(x, a, w)
  if x.dtype == jnp.float32 and sharding.platform() == "cpu":
    return _of_float32(x, a, w)
  highest = jax.lax.Precision.HIGHEST
  slow = jnp.matmul(x.astype(jnp.float32), w, precision=highest)
  return x @ a.astype(x.dtype), slow


@jax.custom_vjp
def _of_float32(x, a, w):
  found, m = x @ jnp.concatenate([a, w], axis=1), a.shape[1]
  return found[:, :m], found[:, m:]


def _back_of_float32(kept, slopes):
  (x, a, w), (to_a, to_w) = kept, slopes
  found, m = x.T @ jnp.concatenate(slopes, axis=1), a.shape[1]
  return to_a @ a.T + to_w @ w.T, found[:, :m], found[:, m:]


_of_float32.defvjp(
  lambda x, a, w: (_of_float32(x, a, w), (x, a, w)), _back_of_float32
)


@jax.custom_vjp
def _of_bfloat16(x, a, w):
  found = _product(x, [a.astype(x.dtype), *_parts(w)])
  m = a.shape[1]
  return found[:, :m].astype(x.dtype), _sum_of_parts(found[:, m:])


def _back(kept, slopes):
  (x, a, w), (to_a, to_w) = kept, slopes
  slope = jnp.concatenate([to_a, to_w.astype(x.dtype)], axis=1)
  to_x = slope @ jnp.concatenate([a, w], axis=1).astype(x.dtype).T
  found, m = _product(x.T, [to_a, *_parts(to_w)]), a.shape[1]
  return to_x, found[:, :m], _sum_of_parts(found[:, m:])


_of_bfloat16.defvjp(lambda x, a, w: (_of_bfloat16(x, a, w), (x, a, w)), _back)


def _product(x, columns):
  return jnp.matmul(
    x, jnp.concatenate(columns, axis=1), preferred_element_type=jnp.float32
  )


def _parts(w):
  """bfloat16 matrices whose sum is w, all 24 bits of it."""
  parts = []
  for _ in range(_PARTS):
    # A conversion there and back is one that XLA takes out.
    part = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    parts.append(part.astype(jnp.bfloat16))
    w = w - part
  return parts


def _sum_of_parts(found):
  return sum(jnp.split(found, _PARTS, axis=1))
