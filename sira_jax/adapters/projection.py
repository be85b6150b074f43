# SPDX-License-Identifier: Apache-2.0
"""One product for all that a routed adapter reads of x: x A, and x W_r.

    z [tokens ranks] = x A, in x's dtype        logits [tokens experts] = x W_r

Apart, they and the products of their gradients would each pass over x, which is
much larger than what becomes of it.

The logits decide who goes where, so they are float32 whatever x is. Of a
bfloat16 x they are as exact as of its float32 copy, which is never made: W_r is
the sum of three bfloat16 matrices, and a product of two bfloat16 numbers is
exact in float32, in which they are summed. Gradients are rounded to bfloat16,
as those of the frozen layers are.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EXACT = jax.lax.Precision.HIGHEST


def project(
  x: Float[Array, "tokens d"],
  a: Float[Array, "d ranks"],
  router: Float[Array, "d experts"],
) -> tuple[Float[Array, "tokens ranks"], Float[Array, "tokens experts"]]:
  """x A in x's dtype, and the router's logits in float32.

  Args:
    x: what the layer reads.
    a: the experts' projections down, float32.
    router: the router's kernel, float32.
  """
  if x.dtype == jnp.bfloat16:
    return _of_bfloat16(x, a, router)
  # Accelerators would round float32 operands by default.
  both = jnp.concatenate([a, router], axis=1)
  found = jnp.matmul(x.astype(jnp.float32), both, precision=_EXACT)
  ranks = a.shape[1]
  return found[:, :ranks].astype(x.dtype), found[:, ranks:]


@jax.custom_vjp
def _of_bfloat16(x, a, router):
  ranks, experts = a.shape[1], router.shape[1]
  columns = jnp.concatenate([a.astype(x.dtype), *_parts(router)], axis=1)
  found = _product(x, columns)
  parts = found[:, ranks:].reshape(-1, 3, experts)
  return found[:, :ranks].astype(x.dtype), parts.sum(axis=1)


def _forward(x, a, router):
  return _of_bfloat16(x, a, router), (x, a, router)


def _backward(saved, cotangents):
  x, a, router = saved
  back = jnp.concatenate([c.astype(x.dtype) for c in cotangents], axis=1)
  columns = jnp.concatenate([a, router], axis=1).astype(x.dtype)
  dx = jnp.matmul(back, columns.T)
  both = _product(x.T, back)
  ranks = a.shape[1]
  return dx, both[:, :ranks], both[:, ranks:]


_of_bfloat16.defvjp(_forward, _backward)

_product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _parts(kernel):
  """Three bfloat16 matrices whose sum is the float32 kernel, all 24 bits."""
  parts = []
  for _ in range(3):
    # A conversion there and back XLA may leave out.
    part = jax.lax.reduce_precision(kernel, exponent_bits=8, mantissa_bits=7)
    parts.append(part.astype(jnp.bfloat16))
    kernel = kernel - part
  return parts
