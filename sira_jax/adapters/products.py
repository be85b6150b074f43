# SPDX-License-Identifier: Apache-2.0
"""Products of activations and a float32 weight, in full float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_PARTS = 3


def exact(
  x: Float[Array, "tokens d"], w: Float[Array, "d n"]
) -> Float[Array, "tokens n"]:
  """x w, with no operand rounded.

  Accelerators multiply bfloat16 many times as fast as float32, which they would
  round by default. Where x is bfloat16, w is written as the sum of three
  bfloat16 numbers, which have all of its 24 bits between them; so has what
  comes back for the gradient of w. The gradient of x is rounded to its dtype
  anyway, and so are the operands that it is made of.
  """
  if x.dtype == jnp.bfloat16:
    return _in_parts(x, w)
  highest = jax.lax.Precision.HIGHEST
  return jnp.matmul(x.astype(jnp.float32), w, precision=highest)


@jax.custom_vjp
def _in_parts(x, w):
  return _sum_of_parts(x, w)


def _back(kept, slope):
  x, w = kept
  to_x = slope.astype(x.dtype) @ w.astype(x.dtype).T
  return to_x, _sum_of_parts(x.T, slope)


_in_parts.defvjp(lambda x, w: (_in_parts(x, w), (x, w)), _back)


def _sum_of_parts(x, w):
  """x w, as one product of bfloat16 that is `_PARTS` times as wide."""
  parts = []
  for _ in range(_PARTS):
    # A conversion there and back is one that XLA takes out.
    part = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    parts.append(part.astype(x.dtype))
    w = w - part
  y = jnp.matmul(
    x, jnp.concatenate(parts, axis=1), preferred_element_type=jnp.float32
  )
  return sum(jnp.split(y, _PARTS, axis=1))
