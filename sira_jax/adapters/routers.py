# SPDX-License-Identifier: Apache-2.0
"""Routers: which experts each token goes to, and with what weight.

Legend: batch, length, d (features of a token), experts.
"""

import dataclasses
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import ambient, sharding
from sira_jax.adapters import capacity as capacity_lib
from sira_jax.adapters import draws, products, records, top_k
from sira_jax.adapters import groups as groups_lib
from sira_jax.adapters.variables import AdapterConstant, AdapterParam, Seed


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["weights", "stats"],
  meta_fields=["slots", "k"],
)
@dataclasses.dataclass(frozen=True)
class Routing:
  """What every execution of an adapter consumes.

  Attributes:
    weights: combine weights, zero where a token is not routed.
    slots: the most tokens of one row that any expert can be given; static.
    k: the most experts that any token can be given; static.
    stats: the report on this batch.
  """

  weights: Float[Array, "batch length experts"]
  slots: int
  k: int
  stats: records.RoutingStats


LEVELS = ("token", "example")


@dataclasses.dataclass(frozen=True)
class TopK:
  """Settings of a router that sends each token to k experts.

      p = softmax(x W_r)              q = dropout(p), per token and expert
      weights = q where q is among the token's k largest, is not dropped, and
                the expert is not yet full for this example; else 0

  k = experts makes the mixture dense. An example offers each expert
  `ceil(capacity_factor * k * tokens / experts)` places, or `capacity` places.
  A token over capacity keeps the frozen path alone. Capacity and dropout act
  in training only.

  Source: Zhu et al. 2023 (SiRA, arXiv 2311.09179) for top-k, capacity per
  example and expert dropout; the balance loss and the order of service are
  GShard's (Lepikhin et al. 2020), the z-loss is ST-MoE's (Zoph et al. 2022),
  the frozen router and the growing k are SMoE-Dropout's (Chen et al. 2023).

  Attributes:
    k: experts a token is sent to.
    first_k: where k grows during training: its first value. Linearly, to k.
    renormalise: divide the weights of a token by the sum of those it chose,
      which is a softmax over the chosen logits.
    level: "token", or "example": all tokens of an example go where their mean
      goes. Such a router needs whole examples: decoding token by token is
      refused, and a causal model would see its future.
    capacity_factor: 1 gives just the places of a uniform load; None: no limit.
    capacity: an absolute number of places instead of a factor.
    priority: whom a full expert turns away; see `capacity.serve`.
    expert_dropout: rate at which a probability is zeroed, before the top-k;
      the others are scaled by 1 / (1 - rate).
    balance_coefficient: weight of the balance loss in the training loss.
    balance_served: count for the balance loss what experts served, instead of
      what was chosen before capacity.
    z_coefficient: weight of the z-loss, mean of logsumexp(logits)**2.
    trained: False for a router that stays as it was initialised.
    shared: one router for all layers of a block that read the same input.
    init_std: standard deviation of the router's normal init.
  """

  k: int
  first_k: int | None = None
  renormalise: bool = False
  level: str = "token"
  capacity_factor: float | None = None
  capacity: int | None = None
  priority: str = "choice"
  expert_dropout: float = 0.0
  balance_coefficient: float = 0.0
  balance_served: bool = False
  z_coefficient: float = 0.0
  trained: bool = True
  shared: bool = False
  init_std: float = 0.02

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f"k must be at least 1, got {self.k}.")
    if self.first_k is not None and not 1 <= self.first_k <= self.k:
      raise ValueError(
        f"first_k must be from 1 to k = {self.k} (None for a constant k), got"
        f" {self.first_k}."
      )
    for name, known in (
      ("level", LEVELS),
      ("priority", capacity_lib.PRIORITIES),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"Unknown {name} {getattr(self, name)!r}; there are"
          f" {', '.join(known)}."
        )
    if not 0 <= self.expert_dropout < 1:
      raise ValueError(
        f"expert_dropout must be in [0, 1), got {self.expert_dropout}."
      )
    self._check_capacity()

  @property
  def limited(self) -> bool:
    """Whether experts have a limited number of places."""
    return self.capacity_factor is not None or self.capacity is not None

  def _check_capacity(self):
    if self.capacity_factor is not None and self.capacity is not None:
      raise ValueError(
        f"Give capacity_factor ({self.capacity_factor}) or capacity"
        f" ({self.capacity}), not both."
      )
    factor = self.capacity_factor
    if factor is not None and not 0 < factor < math.inf:
      raise ValueError(
        "capacity_factor must be a number above 0 (None for no limit), got"
        f" {self.capacity_factor}."
      )
    if self.capacity is not None and self.capacity < 1:
      raise ValueError(
        f"capacity must be at least 1 (None for no limit), got {self.capacity}."
      )
    if self.limited and (self.first_k is not None or self.level == "example"):
      raise ValueError(
        "A capacity limit is for a constant k and routing by token; got"
        f" first_k={self.first_k}, level={self.level!r}."
      )


class Router(nnx.Module):
  """A linear router of float32 with no bias: x -> `Routing`."""

  def __init__(
    self,
    d: int,
    experts: int,
    settings: TopK,
    *,
    key: jax.Array,
    seed: int,
    axis: str | None = None,
  ):
    if settings.k > experts:
      raise ValueError(
        f"k = {settings.k} exceeds the number of experts, {experts}."
      )
    kind = AdapterParam if settings.trained else AdapterConstant
    self.kernel = kind(
      settings.init_std * jax.random.normal(key, (d, experts), jnp.float32),
      axes=(axis, "experts"),
    )
    self.settings = settings
    self.seed = Seed(jnp.asarray(seed, jnp.uint32))
    self.deterministic = False

  def __call__(
    self,
    x: Float[Array, "batch length d"],
    logits: Float[Array, "batch length experts"] | None = None,
  ) -> Routing:
    """Routes each token of x.

    Args:
      x: what the layer reads.
      logits: x times the kernel, where that is computed already.

    Raises:
      ValueError: training with expert dropout and no `ambient.DROPOUT_KEY`, or
        with a growing k and no `ambient.PROGRESS`; routing by example where
        the examples are not whole.
    """
    settings, groups = self.settings, groups_lib.of_batch(*x.shape[:2])
    by_example = settings.level == "example"
    if logits is None:
      logits = self._logits(x, groups)
    # Whole for each token, who compares all experts, wherever these live.
    logits = sharding.constrain(logits, "batch", "length", None)
    k, keep = settings.k, None
    if self.deterministic:
      settings = dataclasses.replace(
        settings, capacity_factor=None, capacity=None, expert_dropout=0.0
      )
    else:
      k = _grown(settings)
      if settings.expert_dropout:
        keep = draws.keep(logits.shape, settings.expert_dropout, self.seed[...])
        keep = groups.first(keep) if by_example else keep
    return route(logits, settings, groups=groups, keep=keep, k=k)

  def _logits(self, x, groups):
    tokens = x
    if self.settings.level == "example":
      if ambient.DECODING.get():
        raise ValueError(
          'level="example" routes by the mean of a whole example, and decoding'
          ' sees it token by token: use level="token".'
        )
      tokens = groups.example_mean(x.astype(jnp.float32))
    flat = tokens.reshape(-1, tokens.shape[-1])
    logits = products.exact(flat, self.kernel[...])
    logits = logits.reshape(*tokens.shape[:-1], -1)
    return jnp.broadcast_to(logits, (*x.shape[:-1], logits.shape[-1]))


def route(
  logits: Float[Array, "batch length experts"],
  settings: TopK,
  *,
  groups: groups_lib.Groups,
  keep: Bool[Array, "batch #length experts"] | None = None,
  k: int | Int[Array, ""] | None = None,
) -> Routing:
  """The routing that `TopK` describes, of router logits.

  Args:
    logits: router logits, float32.
    settings: see `TopK`.
    groups: the examples of the batch.
    keep: the expert dropout's mask; None drops nothing.
    k: instead of the settings' where it grows; may be traced.
  """
  length, experts = logits.shape[1:]
  k = settings.k if k is None else k
  p = jax.nn.softmax(logits, axis=-1)
  q = p
  if keep is not None:
    # A division, because XLA computes cheap operations, and with them the
    # mask's hash, again in each consumer, and divisions once.
    q = p / jnp.where(keep, 1.0 - settings.expert_dropout, jnp.inf)
  eligible = (q > 0) & groups.real[..., None]
  limits, slots = _places(settings, length, experts), length
  if limits is None:
    served = chosen = top_k.mask(q, k) & eligible
    total = groups.counts(chosen)[1]
  else:
    limit = jnp.asarray(limits)[groups.tokens.astype(jnp.int32)][..., None]
    chosen, served, total = capacity_lib.serve(
      q,
      k,
      eligible=eligible,
      limit=limit,
      groups=groups,
      priority=settings.priority,
    )
    if groups.bounds is None:
      slots = min(length, int(limits[-1]))
  weights = jnp.where(served, q, 0.0)
  if settings.renormalise:
    # A token may have lost all its experts to dropout.
    sums = jnp.where(chosen, q, 0.0).sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(sums > 0, sums, 1.0)
  if settings.balance_served:
    total = groups.counts(served)[1]
  if settings.level == "example":
    balance = _balance_of_examples(q, chosen, groups=groups, k=k)
  else:
    balance = balance_loss(q, total, groups=groups, k=k)
  stats = records.rows(
    logits, weights, chosen=chosen, served=served, groups=groups, k=k
  )
  penalty = settings.balance_coefficient * balance
  if settings.z_coefficient:
    z = jax.nn.logsumexp(logits, axis=-1)
    penalty += settings.z_coefficient * groups.mean(jnp.square(z))
  report = records.RoutingStats(balance, penalty, **stats)
  return Routing(weights, slots, settings.k, report)


def balance_loss(
  q: Float[Array, "batch length experts"],
  choices: Float[Array, "batch #length experts"],
  *,
  groups: groups_lib.Groups,
  k: int | Int[Array, ""],
) -> Float[Array, ""]:
  """experts / k * sum_e (c_e / S) m_e, mean over examples: 1 when uniform.

  S are the real tokens of an example, c_e its choices of expert e, counted
  before capacity and without gradient, and m_e the mean of q_e over it. All
  tokens to k experts gives experts / k.

  Source: Lepikhin et al. 2020 (GShard), scaled.

  Args:
    q: router probabilities after expert dropout.
    choices: c_e of each token's example.
    groups: the examples.
    k: experts a token is sent to.
  """
  share = choices / jnp.maximum(groups.tokens, 1)[..., None]
  # mean over tokens of (share * q) is share * mean of q, as share is constant.
  values = (q.shape[-1] / k) * (share * q).sum(axis=-1)
  return groups.mean(values)


def _balance_of_examples(q, chosen, *, groups, k):
  """The balance loss over the batch's examples, each of which counts once."""
  share = jax.lax.stop_gradient(groups.mean(chosen.astype(jnp.float32)))
  return (q.shape[-1] / k) * (share * groups.mean(q)).sum()


def _places(settings, length, experts):
  return capacity_lib.places(
    length,
    experts,
    settings.k,
    capacity=settings.capacity,
    capacity_factor=settings.capacity_factor,
  )


def _grown(settings):
  """k at this point of the run: round(first + (last - first) * progress)."""
  if settings.first_k is None:
    return settings.k
  progress = ambient.PROGRESS.get()
  if progress is None:
    raise ValueError(
      f"k grows from {settings.first_k} to {settings.k} during training:"
      " enter ambient.PROGRESS(fraction of the run) around the forward pass, or"
      " call model.eval()."
    )
  grown = settings.first_k + (settings.k - settings.first_k) * progress
  return jnp.round(grown).astype(jnp.int32)
