# SPDX-License-Identifier: Apache-2.0
"""The adapter: a low-rank term, or a mixture of them, beside a frozen layer.

    y = x W0 + scale * [ act(x A) * m(x) * g ] B        W0 frozen

    x [batch length d]    A [d experts rank]    B [experts rank f]
    m(x)  the router's weight of each expert, the same for all its ranks, zero
          where a token is not routed; one where there is no router
    g     SoRA's gate over ranks; one where there is none
    act   identity for LoRA experts; a nonlinearity makes each expert a parallel
          bottleneck adapter
    scale alpha / rank

Source: Hu et al. 2021 (LoRA) for one expert; Zhu et al. 2023 (SiRA) for the
routed mixture; Ding et al. 2023 (SoRA) for the gate; He et al. 2022 for the
parallel bottleneck.
"""

from collections.abc import Iterable
import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sira_jax.adapters import execution as executions
from sira_jax.adapters import products, routers
from sira_jax.adapters.variables import (
  AdapterParam,
  Axes,
  GateParam,
  RoutingRecord,
)


class LowRank(NamedTuple):
  """A weight of low rank, A B: all of an adapter's scales are in B."""

  a: Float[Array, "d rank"]
  b: Float[Array, "rank f"]

  def product(self) -> Float[Array, "d f"]:
    """A B, in full float32 on every backend."""
    return jnp.matmul(self.a, self.b, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Gate:
  """How SoRA's gates start: normal, of this mean and deviation.

  Attributes:
    mean: 1 with no deviation changes nothing at the start.
    std: the released code's gates have mean 0 and deviation 1.
  """

  mean: float = 1.0
  std: float = 0.0

  def __post_init__(self):
    if self.std < 0 or self.mean == self.std == 0:
      raise ValueError(
        "A gate needs a mean or a deviation that is not 0, got mean"
        f" {self.mean}, std {self.std}."
      )


@dataclasses.dataclass(frozen=True)
class AdapterFactory:
  """What a method returns: the settings of an adapter, for any layer's sizes.

  Attributes:
    method: the name in `METHODS` that it came from.
    rank: of each expert.
    scale: multiplies the adapter's term.
    experts: their number.
    router: settings of the router; None for a single expert.
    gate: how its gates start; None for no gate.
    activation: a name in `execution.ACTIVATIONS`.
    execution: a name in `execution.EXECUTIONS`.
    live: of the router's experts, those that have a term; None for all. What
      pruning leaves.
  """

  method: str
  rank: int
  scale: float
  experts: int = 1
  router: routers.TopK | None = None
  gate: Gate | None = None
  activation: str = "identity"
  execution: str = "rank_space"
  live: tuple[int, ...] | None = None

  def __post_init__(self):
    check_sizes(self.method, rank=self.rank, experts=self.experts)
    if self.router is not None and self.router.k > self.experts:
      raise ValueError(
        f"{self.method}: k = {self.router.k} exceeds the number of experts,"
        f" {self.experts}."
      )
    for name, known in (
      ("execution", executions.EXECUTIONS),
      ("activation", executions.ACTIVATIONS),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{self.method}: unknown {name} {getattr(self, name)!r}; there are"
          f" {sorted(known)}."
        )

  @property
  def projects(self) -> bool:
    """Whether x A and the router's logits are one product.

    Not of a router that layers share: its logits are computed once for all.
    """
    router = self.router
    by_token = router and router.level == "token" and not router.shared
    return bool(by_token) and executions.by_ranks(self.execution)

  @property
  def terms(self) -> int:
    """How many experts have a term."""
    return self.experts if self.live is None else len(self.live)

  def parameters(self, d: int, f: int) -> int:
    """How many numbers the adapter of a d -> f layer trains."""
    gates = self.terms * self.rank if self.gate else 0
    trained = self.router is not None and self.router.trained
    return self.terms * self.rank * (d + f) + gates + d * self.experts * trained

  def active(self, d: int, f: int) -> int:
    """How many of them, and of a frozen router's, one token uses."""
    k = self.router.k if self.router else self.experts
    gates = min(k, self.terms) * self.rank if self.gate else 0
    router = d * self.experts if self.router else 0
    return min(k, self.terms) * self.rank * (d + f) + gates + router

  def flops(self, d: int, f: int) -> int:
    """Of the matmuls of a token's forward pass in rank space."""
    router = 2 * d * self.experts if self.router else 0
    return 2 * self.terms * self.rank * (d + f) + router

  def describe(self) -> str:
    """In a few words, for a run's reader."""
    mixture = ""
    if self.router is not None:
      mixture = f"{self.experts} experts, k {self.router.k}, "
    return f"{self.method}: {mixture}rank {self.rank}"

  def make(
    self,
    d: int,
    f: int,
    *,
    key: jax.Array,
    seed: int,
    axes: Axes = (None, None),
  ) -> "Adapter":
    """The adapter of a d -> f layer."""
    return Adapter(d, f, factory=self, key=key, seed=seed, axes=axes)


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
    axes: the words of d and f.
  """

  def __init__(
    self,
    d: int,
    f: int,
    *,
    factory: AdapterFactory,
    key: jax.Array,
    seed: int,
    axes: Axes = (None, None),
  ):
    key_a, key_router = jax.random.split(key)
    shape = (d, factory.terms, factory.rank)
    self.factory = factory
    inner = ("experts", "rank")
    self.A = AdapterParam(uniform(key_a, shape), axes=(axes[0], *inner))
    self.B = AdapterParam(
      jnp.zeros((*shape[1:], f), jnp.float32), axes=(*inner, axes[1])
    )
    self.g = factory.gate and GateParam(
      factory.gate.mean
      + factory.gate.std
      * jax.random.normal(jax.random.fold_in(key_a, 1), shape[1:]),
      axes=inner,
    )
    self.router = factory.router and routers.Router(
      d,
      factory.experts,
      factory.router,
      key=key_router,
      seed=seed,
      axis=axes[0],
    )

  def __call__(
    self, x: Float[Array, "*batch d"], frozen: Float[Array, "*batch f"]
  ) -> Float[Array, "*batch f"]:
    """The adapter's term for x, in x's dtype.

    A routed adapter reads x as [batch length d]: of two axes it makes examples
    of one token, of more than three it flattens all but the last two.

    Args:
      x: what the layer reads.
      frozen: what it gives without the adapter.
    """
    del frozen  # which only an adapter that rescales reads
    tokens, experts = batch_length(x), self.experts()
    if self.router is None:
      y = executions.rank_space(tokens, experts, weights=None)
    elif self.factory.projects:
      z, logits = products.beside(
        tokens.reshape(-1, tokens.shape[-1]),
        experts.down,
        self.router.kernel[...],
      )
      z, logits = (v.reshape(*tokens.shape[:-1], -1) for v in (z, logits))
      routing = route(self, self.router, tokens, logits)
      y = executions.of_ranks(z, experts, weights=self._weights(routing))
    else:
      routing = route(self, self.router, tokens)
      y = executions.EXECUTIONS[self.factory.execution](
        tokens,
        experts,
        weights=self._weights(routing),
        slots=routing.slots,
        k=min(routing.k, self.factory.terms),
      )
    return y.reshape(*x.shape[:-1], y.shape[-1])

  def _weights(self, routing):
    """Those of the experts that have a term."""
    if self.factory.live is None:
      return routing.weights
    return routing.weights[..., list(self.factory.live)]

  def experts(self) -> executions.Experts:
    """What an execution reads."""
    return executions.Experts(
      self.A[...],
      self.B[...],
      g=None if self.g is None else self.g[...],
      activation=self.factory.activation,
      scale=self.factory.scale,
    )

  def low_rank(self) -> LowRank:
    """The one pair whose product is the weight that the adapter adds.

    Raises:
      ValueError: the term depends on the token, so that no weight equals it.
    """
    if self.router is not None:
      raise ValueError(
        f"{self.factory.method} routes each token to experts of its own: no"
        " single weight equals it, so it cannot be merged. Keep the adapter"
        " beside the base."
      )
    return concatenated(self.expert_pairs().values())

  def expert_pairs(self) -> dict[int, LowRank]:
    """The router's number of an expert -> its pair, by the router's weight.

    Raises:
      ValueError: the experts are not linear.
    """
    if self.factory.activation != "identity":
      raise ValueError(
        f"{self.factory.method} is not linear: no single weight equals it, so"
        " it cannot be merged. Keep the adapter beside the base."
      )
    experts = self.experts()
    b = experts.b * experts.scale
    if experts.g is not None:
      b = b * experts.g[..., None]
    numbers = self.factory.live or range(self.factory.experts)
    return {e: LowRank(experts.a[:, i], b[i]) for i, e in enumerate(numbers)}

  def merged(
    self, kernel: jax.Array, bias: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """The layer's weights with the adapter's added.

    Raises:
      ValueError: as `low_rank`.
    """
    return (kernel + self.low_rank().product()).astype(kernel.dtype), bias


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """A's start: uniform in +-1 / sqrt(d), as in LoRA's code."""
  return jax.random.uniform(key, shape, jnp.float32, -1, 1) / shape[0] ** 0.5


def concatenated(pairs: Iterable[LowRank]) -> LowRank:
  """One pair, of all their ranks, whose product is the sum of theirs."""
  a, b = zip(*((pair.a, pair.b) for pair in pairs), strict=True)
  return LowRank(jnp.concatenate(a, axis=1), jnp.concatenate(b, axis=0))


def route(
  module: nnx.Module,
  router: routers.Router,
  tokens: jax.Array,
  logits: jax.Array | None = None,
) -> routers.Routing:
  """The routing of the tokens, recorded in `module` under `nnx.capture`."""
  routing = router(tokens, logits)
  # Outside `nnx.capture`, sow would add a Variable to the module.
  if hasattr(module, "__captures__"):
    module.sow(RoutingRecord, "routing", routing.stats)
  return routing


def batch_length(x: Float[Array, "*batch d"]) -> Float[Array, "batch length d"]:
  """x as rows of tokens; see `Adapter.__call__`."""
  if x.ndim == 1:
    return x[None, None]
  if x.ndim == 2:
    return x[:, None]
  return x.reshape(-1, *x.shape[-2:])


def check_sizes(method: str, **sizes: int) -> None:
  """Raises a ValueError that names the first size below 1."""
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{method}: {name} must be at least 1, got {size}.")
