# SPDX-License-Identifier: Apache-2.0
"""Programs for one function, the mixture of low-rank experts.

    y[t] = scale * sum_e weights[t, e] * (act(x[t] A_e) * g_e) B_e

Legend: batch, length, d (in), f (out), experts, rank (of one expert), slots
(places in an expert's buffer for one row), k (choices of a token). All programs
take the same arguments and agree in value and gradient.

* `rank_space` computes every x A_e, since rank is tiny, and multiplies by the
  weights there; no token moves. Its cost does not depend on k or capacity.
* `dispatch` is Switch Transformer's program: a one-hot tensor [batch length
  experts slots] gathers each expert's tokens into a buffer of fixed capacity,
  the experts work on their buffers, and the same tensor, weighted, combines.
  Experts may live on different devices; the one-hot products grow with the
  square of the length.
* `gather` fills such buffers, or as many small ones as the tokens need, by
  indices. It computes what the tokens chose and no more, and moves x for each
  choice: for a large total rank and a small k.
* `auto` is the faster of `rank_space` and `gather` on this backend.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sira_jax import sharding
from sira_jax.adapters import places as places_lib

# Of x A. With another than identity each expert is a bottleneck adapter.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "identity": lambda z: z,
  "relu": jax.nn.relu,
  "gelu": jax.nn.gelu,
  "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class Experts:
  """The experts of one layer.

  Attributes:
    a: projections down.
    b: projections up.
    g: SoRA's gate over ranks; None for ones.
    activation: a name in `ACTIVATIONS`; of zero, zero.
    scale: of the term.
  """

  a: Float[Array, "d experts rank"]
  b: Float[Array, "experts rank f"]
  g: Float[Array, "experts rank"] | None
  activation: str
  scale: float

  @property
  def down(self) -> Float[Array, "d ranks"]:
    """A as one matrix, of all experts' ranks."""
    return self.a.reshape(self.a.shape[0], -1)

  @property
  def act(self) -> Callable[[jax.Array], jax.Array]:
    """The activation."""
    return ACTIVATIONS[self.activation]

  @property
  def gate(self) -> Float[Array, "experts rank"] | float:
    """scale * g."""
    return self.scale if self.g is None else self.scale * self.g


def rank_space(
  x: Float[Array, "batch length d"],
  experts: Experts,
  *,
  weights: Float[Array, "batch length experts"] | None,
  slots: int = 0,
  k: int = 0,
) -> Float[Array, "batch length f"]:
  """The mixture with the weights applied in rank space.

  `weights=None` means a weight of one for every expert (plain LoRA). Matmuls
  run on [tokens, d]: XLA's CPU backend is slow on the three-dimensional ones
  that a weight's gradient would need.
  """
  del slots, k  # there are no buffers
  z = x.reshape(-1, x.shape[-1]) @ experts.down.astype(x.dtype)
  return of_ranks(z.reshape(*x.shape[:-1], -1), experts, weights=weights)


def of_ranks(
  z: Float[Array, "batch length ranks"],
  experts: Experts,
  *,
  weights: Float[Array, "batch length experts"] | None,
) -> Float[Array, "batch length f"]:
  """`rank_space` from z = x A, of all experts' ranks, on."""
  n, rank, f = experts.b.shape
  shape = z.shape[:-1]
  z = experts.act(z).reshape(-1, n, rank)
  gate = jnp.asarray(experts.gate)
  if weights is not None:
    gate = gate * weights.reshape(-1, n, 1)
  z = (z * gate.astype(z.dtype)).reshape(-1, n * rank)
  y = z @ experts.b.reshape(n * rank, f).astype(z.dtype)
  return y.reshape(*shape, f)


def dispatch(
  x: Float[Array, "batch length d"],
  experts: Experts,
  *,
  weights: Float[Array, "batch length experts"],
  slots: int,
  k: int = 0,
) -> Float[Array, "batch length f"]:
  """The mixture by fixed-capacity dispatch and combine tensors.

  `slots` is the most tokens of one row that any expert can be given.
  """
  del k  # what is not chosen has a weight of zero
  # Or the routing itself would be done in parts, where the experts are.
  weights = sharding.constrain(weights, "batch", "length", None)
  routed = weights > 0
  slot = jnp.cumsum(routed, axis=1) - 1
  places = jax.nn.one_hot(jnp.where(routed, slot, -1), slots, dtype=x.dtype)
  combine = places * weights.astype(x.dtype)[..., None]
  # Filled where the rows are, worked on where the experts are.
  words = ("experts", "batch", ..., ...)
  buffers = jnp.einsum("btes,btd->ebsd", places, x)
  buffers = sharding.constrain(buffers, *words)
  buffers = sharding.constrain(buffers, *words, first="experts")
  z = jnp.einsum("ebsd,der->ebsr", buffers, experts.a.astype(x.dtype))
  gate = jnp.asarray(experts.gate).astype(x.dtype)
  z = experts.act(z) * (gate[:, None, None] if gate.ndim else gate)
  y = jnp.einsum("ebsr,erf->ebsf", z, experts.b.astype(x.dtype))
  y = sharding.constrain(y, *words, first="experts")
  y = sharding.constrain(y, *words)
  return jnp.einsum("btes,ebsf->btf", combine, y)


def gather(
  x: Float[Array, "batch length d"],
  experts: Experts,
  *,
  weights: Float[Array, "batch length experts"],
  slots: int,
  k: int,
) -> Float[Array, "batch length f"]:
  """The mixture with the tokens moved to their experts; see `places`.

  `slots` is the most tokens of one row that any expert can be given, `k` the
  most experts that a token can be given. Rows of different devices share
  buffers, so on a mesh the tokens travel.
  """
  n, d = weights.shape[-1], x.shape[-1]
  places = places_lib.find(weights > 0, slots=slots, k=k)
  gate = jnp.asarray(experts.gate)
  if gate.ndim:
    gate = places.each(gate)[:, None]
  gate = gate * places.weights(weights.reshape(-1, n))
  a = places.each(experts.a.swapaxes(0, 1)).astype(x.dtype)
  z = jnp.einsum("nsd,ndr->nsr", places.fill(x.reshape(-1, d)), a)
  z = experts.act(z) * gate.astype(x.dtype)
  b = places.each(experts.b).astype(x.dtype)
  y = places.gather(jnp.einsum("nsr,nrf->nsf", z, b))
  return y.reshape(*x.shape[:-1], -1)


# Total rank, for each place of a token, from which `gather` is taken, by
# backend: with one buffer for each expert, and with several small ones. A
# backend that is not here was not measured. On two CPU cores (d 512, 2048
# tokens, forward and backward, benchmarks/execution.py) `gather` took, of the
# time of `rank_space`, with one buffer each 1.2 at 51, 0.8 at 205 and 0.3 at
# 410, and with small ones 1.1 at 410. On an H200 (d 4096, 16384 tokens,
# bfloat16, --large) it was 1.6 at 13 and 1.03 at 410, the most measured.
CROSSOVERS = {"cpu": (128, 512)}


def auto(
  x: Float[Array, "batch length d"],
  experts: Experts,
  *,
  weights: Float[Array, "batch length experts"] | None,
  slots: int = 0,
  k: int = 0,
) -> Float[Array, "batch length f"]:
  """`gather` where it is the faster on this backend, else `rank_space`.

  On a mesh always `rank_space`, where no token travels.
  """
  run = rank_space
  crossovers = CROSSOVERS.get(jax.default_backend())
  if weights is not None and crossovers and not sharding.in_use():
    batch, length, n = weights.shape
    buffers, size = places_lib.shape(batch, length, n, slots=slots, k=k)
    ranks = n * experts.a.shape[-1] * batch * length
    if ranks >= crossovers[buffers != n] * buffers * size:
      run = gather
  return run(x, experts, weights=weights, slots=slots, k=k)


def by_ranks(name: str) -> bool:
  """Whether it is `rank_space`, as `auto` is here whatever the sizes."""
  measured = jax.default_backend() in CROSSOVERS and not sharding.in_use()
  return name == "rank_space" or (name == "auto" and not measured)


EXECUTIONS = {
  "rank_space": rank_space,
  "dispatch": dispatch,
  "gather": gather,
  "auto": auto,
}
