# SPDX-License-Identifier: Apache-2.0
"""MoV: a routed mixture of vectors that rescale what a frozen layer gives.

    y = x W0 * (1 + sum_e m_e(x) delta_e)         W0 frozen, delta [experts f]

One expert without a router is (IA)3. The vectors are written as differences
from one, because weights of a softmax do not sum to exactly one in floating
point: so the term is exactly zero at step 0, when delta is.

Source: Zadouri et al. 2023 (MoV, arXiv 2309.05444); Liu et al. 2022 ((IA)3).
The released MoV routes the keys and values of each head apart; here a token is
routed once for a layer, by what the layer reads.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sira_jax.adapters import adapter as adapter_lib
from sira_jax.adapters import routers
from sira_jax.adapters.variables import AdapterParam, Axes


@dataclasses.dataclass(frozen=True)
class RescalingFactory:
  """Settings of a rescaling adapter, for any layer's sizes.

  Attributes:
    method: the name in `METHODS` that it came from.
    experts: number of vectors.
    router: settings of the router; None for a single vector.
  """

  method: str
  experts: int
  router: routers.TopK | None

  def __post_init__(self):
    adapter_lib.check_sizes(self.method, experts=self.experts)

  def parameters(self, d: int, f: int) -> int:
    """How many numbers the adapter of a d -> f layer trains."""
    return self.experts * f + (d * self.experts if self.router else 0)

  def active(self, d: int, f: int) -> int:
    """How many of them one token uses."""
    k = self.router.k if self.router else self.experts
    return k * f + (d * self.experts if self.router else 0)

  def flops(self, d: int, f: int) -> int:
    """Of the matmuls of a token's forward pass."""
    return 2 * self.experts * (d + f) if self.router else 0

  def describe(self) -> str:
    """In a few words, for a run's reader."""
    return f"{self.method}: {self.experts} vectors"

  def make(
    self,
    d: int,
    f: int,
    *,
    key: jax.Array,
    seed: int,
    axes: Axes = (None, None),
  ) -> "Rescaling":
    """The adapter of a d -> f layer."""
    return Rescaling(d, f, factory=self, key=key, seed=seed, axes=axes)


class Rescaling(nnx.Module):
  """The term beside one frozen layer: its output times the mixed vector."""

  def __init__(
    self,
    d: int,
    f: int,
    *,
    factory: RescalingFactory,
    key: jax.Array,
    seed: int,
    axes: Axes = (None, None),
  ):
    self.factory = factory
    self.delta = AdapterParam(
      jnp.zeros((factory.experts, f), jnp.float32), axes=("experts", axes[1])
    )
    self.router = factory.router and routers.Router(
      d, factory.experts, factory.router, key=key, seed=seed, axis=axes[0]
    )

  def __call__(
    self, x: Float[Array, "*batch d"], frozen: Float[Array, "*batch f"]
  ) -> Float[Array, "*batch f"]:
    """The adapter's term, in x's dtype; see `adapter.Adapter`."""
    delta = self.delta[0]
    if self.router is not None:
      tokens = adapter_lib.batch_length(x)
      weights = adapter_lib.route(self, self.router, tokens).weights
      delta = weights @ self.delta[...]
      delta = delta.reshape(*x.shape[:-1], -1)
    return frozen * delta.astype(frozen.dtype)

  def low_rank(self) -> adapter_lib.LowRank:
    """Refused: what it adds to a weight has the weight's own rank.

    Raises:
      ValueError: always.
    """
    raise ValueError(
      f"{self.factory.method} rescales what the layer gives, which no pair of"
      " low rank does."
    )

  def merged(
    self, kernel: jax.Array, bias: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """The layer's weights with the vector multiplied in.

    Raises:
      ValueError: the vector depends on the token, so that no weight equals it.
    """
    if self.router is not None:
      raise ValueError(
        f"{self.factory.method} routes each token to vectors of its own: no"
        " single weight equals it, so it cannot be merged. Keep the adapter"
        " beside the base."
      )
    factor = 1 + self.delta[0]
    if bias is not None:
      bias = (bias * factor).astype(bias.dtype)
    return (kernel * factor).astype(kernel.dtype), bias
