# SPDX-License-Identifier: Apache-2.0
"""Programs for one function, the mixture of low-rank experts.

    y[t] = scale * sum_e weights[t, e] * (x[t] A_e) B_e

Legend: batch, length, d (in), f (out), experts, rank (of one expert), slots
(places in an expert's buffer for one row). Both programs take the same
arguments and agree in value and gradient.

* `rank_space` computes every x A_e, since rank is tiny, and multiplies by the
  weights there; no token moves. Its cost does not depend on k or capacity.
* `dispatch` is Switch Transformer's program: a one-hot tensor [batch length
  experts slots] gathers each expert's tokens into a buffer of fixed capacity,
  the experts work on their buffers, and the same tensor, weighted, combines.
  Experts may live on different devices; the one-hot products grow with the
  square of the length.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sira_jax.adapters.routers import Routing


def rank_space(
  x: Float[Array, "batch length d"],
  a: Float[Array, "d experts rank"],
  b: Float[Array, "experts rank f"],
  *,
  routing: Routing | None,
  scale: float,
) -> Float[Array, "batch length f"]:
  """The mixture with the weights applied in rank space.

  `routing=None` means a weight of one for every expert (plain LoRA). Matmuls
  run on [tokens, d]: XLA's CPU backend is slow on the three-dimensional ones
  that a weight's gradient would need.
  """
  d, experts, rank = a.shape
  tokens = x.reshape(-1, d)
  z = tokens @ a.reshape(d, experts * rank).astype(x.dtype)
  if routing is None:
    z = z * jnp.asarray(scale, z.dtype)
  else:
    weights = (scale * routing.weights).reshape(-1, experts, 1)
    z = z.reshape(-1, experts, rank) * weights.astype(z.dtype)
    z = z.reshape(-1, experts * rank)
  y = z @ b.reshape(experts * rank, -1).astype(x.dtype)
  return y.reshape(*x.shape[:-1], -1)


def dispatch(
  x: Float[Array, "batch length d"],
  a: Float[Array, "d experts rank"],
  b: Float[Array, "experts rank f"],
  *,
  routing: Routing,
  scale: float,
) -> Float[Array, "batch length f"]:
  """The mixture by fixed-capacity dispatch and combine tensors."""
  routed = routing.weights > 0
  slot = jnp.cumsum(routed, axis=1) - 1
  places = jax.nn.one_hot(
    jnp.where(routed, slot, -1), routing.slots, dtype=x.dtype
  )
  weights = (scale * routing.weights).astype(x.dtype)
  combine = places * weights[..., None]
  buffers = jnp.einsum("btes,btd->ebsd", places, x)
  z = jnp.einsum("ebsd,der->ebsr", buffers, a.astype(x.dtype))
  y = jnp.einsum("ebsr,erf->ebsf", z, b.astype(x.dtype))
  return jnp.einsum("btes,ebsf->btf", combine, y)


EXECUTIONS = {"rank_space": rank_space, "dispatch": dispatch}
