# SPDX-License-Identifier: Apache-2.0
"""The adapter: a low-rank term, or a mixture of them, beside a frozen layer.

    y = x W0 + scale * [ (x A) * m(x) ] B           W0 frozen

    x [batch length d]    A [d experts rank]    B [experts rank f]
    m(x)  the router's weight of each expert, the same for all its ranks, zero
          where a token is not routed; one where there is no router
    scale alpha / rank

Source: Hu et al. 2021 (LoRA) for one expert; Zhu et al. 2023 (SiRA) for the
routed mixture.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sira_jax.adapters import execution as executions
from sira_jax.adapters import routers
from sira_jax.adapters.variables import AdapterParam, RoutingRecord


@dataclasses.dataclass(frozen=True)
class AdapterFactory:
  """What a method returns: the settings of an adapter, for any layer's sizes.

  Attributes:
    method: the name in `METHODS` that it came from.
    rank: of each expert.
    scale: multiplies the adapter's term.
    experts: their number.
    router: settings of the router; None for a single expert.
    execution: a name in `execution.EXECUTIONS`.
  """

  method: str
  rank: int
  scale: float
  experts: int = 1
  router: routers.TopK | None = None
  execution: str = "rank_space"

  def __post_init__(self):
    for name in ("rank", "experts"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{self.method}: {name} must be at least 1, got"
          f" {getattr(self, name)}."
        )
    if self.router is not None and self.router.k > self.experts:
      raise ValueError(
        f"{self.method}: k = {self.router.k} exceeds the number of experts,"
        f" {self.experts}."
      )
    if self.execution not in executions.EXECUTIONS:
      raise ValueError(
        f"{self.method}: unknown execution {self.execution!r}; there are"
        f" {sorted(executions.EXECUTIONS)}."
      )

  def parameters(self, d: int, f: int) -> int:
    """How many numbers the adapter of a d -> f layer trains."""
    router = d * self.experts if self.router else 0
    return self.experts * self.rank * (d + f) + router


class Adapter(nnx.Module):
  """The term beside one frozen layer. Its parameters are float32.

  A is uniform in +-1/sqrt(d), different for each expert, and B zero: at
  step 0 the term is exactly zero.

  Args:
    d: features in.
    f: features out.
    factory: the settings.
    key: for A and the router.
    seed: an integer of its own for each layer, so that layers drop different
      experts under one dropout key.
  """

  def __init__(
    self, d: int, f: int, *, factory: AdapterFactory, key: jax.Array, seed: int
  ):
    key_a, key_router = jax.random.split(key)
    shape = (d, factory.experts, factory.rank)
    self.factory = factory
    self.A = AdapterParam(
      jax.random.uniform(key_a, shape, jnp.float32, -1, 1) / d**0.5
    )
    self.B = AdapterParam(jnp.zeros((*shape[1:], f), jnp.float32))
    self.router = factory.router and routers.Router(
      d, factory.experts, factory.router, key=key_router, seed=seed
    )

  def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch f"]:
    """The adapter's term for x, in x's dtype.

    A routed adapter reads x as [batch length d]: of two axes it makes examples
    of one token, of more than three it flattens all but the last two.
    """
    tokens = _batch_length(x)
    routing = None
    if self.router is not None:
      routing = self.router(tokens)
      # Outside `nnx.capture`, sow would add a Variable to the module.
      if hasattr(self, "__captures__"):
        self.sow(RoutingRecord, "routing", routing.stats)
    run = executions.EXECUTIONS[self.factory.execution]
    y = run(
      tokens,
      self.A[...],
      self.B[...],
      routing=routing,
      scale=self.factory.scale,
    )
    return y.reshape(*x.shape[:-1], y.shape[-1])

  def delta(self) -> Float[Array, "d f"]:
    """The weight that this adapter adds to its layer.

    Raises:
      ValueError: the term depends on the token, so that no weight equals it.
    """
    if self.router is not None:
      raise ValueError(
        f"{self.factory.method} routes each token to experts of its own: no"
        " single weight equals it, so it cannot be merged. Keep the adapter"
        " beside the base."
      )
    flat_a = self.A[...].reshape(self.A.shape[0], -1)
    flat_b = self.B[...].reshape(-1, self.B.shape[-1])
    product = jnp.matmul(flat_a, flat_b, precision=jax.lax.Precision.HIGHEST)
    return self.factory.scale * product


def _batch_length(x):
  if x.ndim == 1:
    return x[None, None]
  if x.ndim == 2:
    return x[:, None]
  return x.reshape(-1, *x.shape[-2:])
