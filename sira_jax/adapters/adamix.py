# SPDX-License-Identifier: Apache-2.0
"""AdaMix: a random expert in each training step, their average afterwards.

    training     y = x W0 + scale * x A_i B_j      i, j drawn anew for each
                                                   layer, step and forward pass,
                                                   and the same for all tokens
    evaluation   y = x W0 + scale * x mean(A) mean(B)

A and B are drawn and averaged apart, so this is not a mixture with router
weights: there is no router, and it costs what LoRA of one expert's rank does.

Source: Wang et al. 2022 (AdaMix, arXiv 2205.12410) and its released code:
draws of A and B are independent, one of the two is shared by all experts (B in
its LoRA), and the experts start as copies of one another. Of the averaged
adapter with a shared B, mean(A) B is the mean of all products.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sira_jax.adapters import adapter as adapter_lib
from sira_jax.adapters import draws
from sira_jax.adapters import execution as executions
from sira_jax.adapters.variables import AdapterParam, Axes, Seed


@dataclasses.dataclass(frozen=True)
class AdaMixFactory:
  """Settings of an AdaMix adapter, for any layer's sizes.

  Attributes:
    method: the name in `METHODS` that it came from.
    experts: of A, and of B where it is not shared.
    rank: of each.
    scale: multiplies the adapter's term.
    shared_b: one B for all experts.
    consistency: weight of the loss between two random passes; see
      `training.losses.consistency`.
  """

  method: str
  experts: int
  rank: int
  scale: float
  shared_b: bool
  consistency: float

  def __post_init__(self):
    adapter_lib.check_sizes(self.method, rank=self.rank, experts=self.experts)
    if self.consistency < 0:
      raise ValueError(
        f"{self.method}: consistency must not be negative, got"
        f" {self.consistency}."
      )

  def parameters(self, d: int, f: int) -> int:
    """How many numbers the adapter of a d -> f layer trains."""
    ups = 1 if self.shared_b else self.experts
    return self.rank * (d * self.experts + f * ups)

  def active(self, d: int, f: int) -> int:
    """How many of them one token uses."""
    return self.rank * (d + f)

  def flops(self, d: int, f: int) -> int:
    """Of the matmuls of a token's forward pass."""
    return 2 * self.rank * (d + f)

  def describe(self) -> str:
    """In a few words, for a run's reader."""
    return f"{self.method}: {self.experts} experts, rank {self.rank}"

  def make(
    self,
    d: int,
    f: int,
    *,
    key: jax.Array,
    seed: int,
    axes: Axes = (None, None),
  ) -> "AdaMix":
    """The adapter of a d -> f layer."""
    return AdaMix(d, f, factory=self, key=key, seed=seed, axes=axes)


class AdaMix(nnx.Module):
  """The term beside one frozen layer; zero at step 0, since B is."""

  def __init__(
    self,
    d: int,
    f: int,
    *,
    factory: AdaMixFactory,
    key: jax.Array,
    seed: int,
    axes: Axes = (None, None),
  ):
    one = adapter_lib.uniform(key, (d, 1, factory.rank))
    ups = 1 if factory.shared_b else factory.experts
    self.A = AdapterParam(
      jnp.tile(one, (1, factory.experts, 1)),
      axes=(axes[0], "experts", "rank"),
    )
    self.B = AdapterParam(
      jnp.zeros((ups, factory.rank, f), jnp.float32),
      axes=("experts", "rank", axes[1]),
    )
    self.factory = factory
    self.seed = Seed(jnp.asarray(seed, jnp.uint32))
    self.deterministic = False

  def __call__(
    self, x: Float[Array, "*batch d"], frozen: Float[Array, "*batch f"]
  ) -> Float[Array, "*batch f"]:
    """The adapter's term for x, in x's dtype; see `adapter.Adapter`.

    Raises:
      ValueError: training with several experts and no `ambient.DROPOUT_KEY`.
    """
    del frozen
    a, b = self._average() if self.deterministic else self._draw()
    experts = executions.Experts(
      a, b, g=None, activation="identity", scale=self.factory.scale
    )
    y = executions.rank_space(
      adapter_lib.batch_length(x), experts, weights=None
    )
    return y.reshape(*x.shape[:-1], y.shape[-1])

  def low_rank(self) -> adapter_lib.LowRank:
    """The averaged adapter's pair; see `adapter.Adapter.low_rank`."""
    a, b = self._average()
    return adapter_lib.LowRank(a[:, 0], b[0] * self.factory.scale)

  def merged(
    self, kernel: jax.Array, bias: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """The layer's weights with the averaged adapter's added."""
    return (kernel + self.low_rank().product()).astype(kernel.dtype), bias

  def _average(self):
    return (
      self.A[...].mean(axis=1, keepdims=True),
      self.B[...].mean(axis=0, keepdims=True),
    )

  def _draw(self):
    i, j = draws.choice(self.factory.experts, 2, self.seed[...])
    a = jax.lax.dynamic_slice_in_dim(self.A[...], i, 1, axis=1)
    if self.factory.shared_b:
      return a, self.B[...]
    return a, jax.lax.dynamic_slice_in_dim(self.B[...], j, 1, axis=0)
