# SPDX-License-Identifier: Apache-2.0
"""Routers: which experts each token goes to, and with what weight.

Legend: batch, length, d (features of a token), experts.
"""

import dataclasses
import fractions
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from sira_jax import ambient
from sira_jax.adapters import groups as groups_lib
from sira_jax.adapters.variables import AdapterParam


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingStats:
  """What one routed layer reports of one batch.

  Attributes:
    balance_loss: its balance loss, mean over examples; 1 when uniform.
    penalty: the balance loss times the layer's coefficient.
    load: tokens each expert served in each row, after capacity.
    dropped: expert choices of each row that exceeded a capacity.
    chosen: expert choices of each row, the dropped ones included.
    entropy: sum over each row's tokens of the entropy of the router's
      probabilities, in nats.
    tokens: real tokens of each row.
  """

  balance_loss: Float[Array, ""]
  penalty: Float[Array, ""]
  load: Float[Array, "batch experts"]
  dropped: Float[Array, "batch"]
  chosen: Float[Array, "batch"]
  entropy: Float[Array, "batch"]
  tokens: Float[Array, "batch"]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["weights", "stats"],
  meta_fields=["slots"],
)
@dataclasses.dataclass(frozen=True)
class Routing:
  """What every execution of an adapter consumes.

  Attributes:
    weights: combine weights, zero where a token is not routed.
    slots: the most tokens of one row that any expert can be given; static.
    stats: the report on this batch.
  """

  weights: Float[Array, "batch length experts"]
  slots: int
  stats: RoutingStats


@dataclasses.dataclass(frozen=True)
class TopK:
  """Settings of a trained top-k router, as in SiRA.

      p = softmax(x W_r)              q = dropout(p), per token and expert
      weights = q where q is among the token's k largest, is not dropped, and
                the expert is not yet full for this example; else 0

  An example offers each expert `ceil(capacity_factor * k * tokens / experts)`
  places, or `capacity` places; first choices are served before second ones,
  each from left to right. A token over capacity keeps the frozen path alone.
  Capacity and dropout act in training only.

  Source: Zhu et al. 2023 (SiRA, arXiv 2311.09179) for top-k, capacity per
  example and expert dropout; the balance loss and the order of service are
  GShard's (Lepikhin et al. 2020). The weights are not renormalised after the
  cut.

  Attributes:
    k: experts a token is sent to.
    capacity_factor: 1 gives just the places of a uniform load; None: no limit.
    capacity: an absolute number of places instead of a factor.
    expert_dropout: rate at which a probability is zeroed, before the top-k;
      the others are scaled by 1 / (1 - rate).
    balance_coefficient: weight of the balance loss in the training loss.
    init_std: standard deviation of the router's normal init.
  """

  k: int
  capacity_factor: float | None = None
  capacity: int | None = None
  expert_dropout: float = 0.0
  balance_coefficient: float = 0.0
  init_std: float = 0.02

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f"k must be at least 1, got {self.k}.")
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
    if not 0 <= self.expert_dropout < 1:
      raise ValueError(
        f"expert_dropout must be in [0, 1), got {self.expert_dropout}."
      )


class Router(nnx.Module):
  """A linear router of float32 with no bias: x -> `Routing`."""

  def __init__(
    self, d: int, experts: int, settings: TopK, *, key: jax.Array, seed: int
  ):
    if settings.k > experts:
      raise ValueError(
        f"k = {settings.k} exceeds the number of experts, {experts}."
      )
    self.kernel = AdapterParam(
      settings.init_std * jax.random.normal(key, (d, experts), jnp.float32)
    )
    self.settings = settings
    self.seed = seed
    self.deterministic = False

  def __call__(self, x: Float[Array, "batch length d"]) -> Routing:
    """Routes each token of x.

    Raises:
      ValueError: training with expert dropout and no `ambient.DROPOUT_KEY`.
    """
    # Accelerators would round float32 operands by default.
    logits = jnp.matmul(
      x.reshape(-1, x.shape[-1]).astype(jnp.float32),
      self.kernel[...],
      precision=jax.lax.Precision.HIGHEST,
    ).reshape(*x.shape[:-1], -1)
    settings, keep = self.settings, None
    if self.deterministic:
      settings = dataclasses.replace(
        settings, capacity_factor=None, capacity=None, expert_dropout=0.0
      )
    elif settings.expert_dropout:
      keep = _keep(logits.shape, settings.expert_dropout, self.seed)
    return route(
      logits, settings, groups=groups_lib.of_batch(*x.shape[:2]), keep=keep
    )


def route(
  logits: Float[Array, "batch length experts"],
  settings: TopK,
  *,
  groups: groups_lib.Groups,
  keep: Bool[Array, "batch length experts"] | None = None,
) -> Routing:
  """The routing that `TopK` describes, of router logits.

  Args:
    logits: router logits, float32.
    settings: see `TopK`.
    groups: the examples of the batch.
    keep: the expert dropout's mask; None drops nothing.
  """
  length, experts = logits.shape[1:]
  p = jax.nn.softmax(logits, axis=-1)
  q = p
  if keep is not None:
    # A division, because XLA computes cheap operations, and with them the
    # mask's hash, again in each consumer, and divisions once.
    q = p / jnp.where(keep, 1.0 - settings.expert_dropout, jnp.inf)
  eligible = (q > 0) & groups.real[..., None]
  choices = [choice & eligible for choice in choose(q, settings.k)]
  before, total = groups.counts(jnp.concatenate(choices, axis=-1))
  before, total = (jnp.split(x, settings.k, axis=-1) for x in (before, total))
  limits, slots = places(settings, length, experts), length
  served = chosen = functools.reduce(jnp.logical_or, choices)
  if limits is not None:
    limit = jnp.asarray(limits)[groups.tokens.astype(jnp.int32)][..., None]
    served = _serve(choices, before, total, limit)
    if groups.bounds is None:
      slots = min(length, int(limits[-1]))
  report = _stats(logits, chosen, served, groups)
  balance = balance_loss(q, sum(total), groups=groups, k=settings.k)
  stats = RoutingStats(
    balance_loss=balance,
    penalty=settings.balance_coefficient * balance,
    **report,
  )
  return Routing(jnp.where(served, q, 0.0), slots, stats)


def choose(
  q: Float[Array, "batch length experts"], k: int
) -> list[Bool[Array, "batch length experts"]]:
  """k masks: the j-th marks each token's j-th most probable expert.

  Exact and without a sort: non-negative floats order as their bits do, and the
  expert's index in the lowest bits makes every key of a token unique. Values
  that agree in all but those bits tie, and ties go to the lower index.
  """
  keys = sort_keys(q)
  masks, best = [], None
  for _ in range(k):
    left = keys if best is None else jnp.where(keys < best, keys, -1)
    best = left.max(axis=-1, keepdims=True)
    masks.append(keys == best)
  return masks


def sort_keys(
  q: Float[Array, "batch length experts"],
) -> Int[Array, "batch length experts"]:
  """Unique integers that order as q does, ties to the lower expert."""
  experts = q.shape[-1]
  low = (1 << max(1, (experts - 1).bit_length())) - 1
  bits = jax.lax.bitcast_convert_type(
    jax.lax.stop_gradient(q).astype(jnp.float32), jnp.int32
  )
  return (bits & ~low) | (experts - 1 - jnp.arange(experts, dtype=jnp.int32))


@functools.lru_cache(maxsize=64)
def places(settings: TopK, length: int, experts: int) -> np.ndarray | None:
  """The places of each expert for examples of 0 .. length tokens, exactly.

  None where nothing is limited. The factor is taken as the decimal number that
  was written, so that 1.1 * 10 is 11 and its ceiling is no 12.
  """
  if settings.capacity is not None:
    return np.full(length + 1, settings.capacity, np.int32)
  if settings.capacity_factor is None:
    return None
  share = fractions.Fraction(str(settings.capacity_factor))
  share *= fractions.Fraction(settings.k, experts)
  return np.array([math.ceil(share * n) for n in range(length + 1)], np.int32)


def balance_loss(
  q: Float[Array, "batch length experts"],
  choices: Float[Array, "batch #length experts"],
  *,
  groups: groups_lib.Groups,
  k: int,
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


def _serve(choices, before, total, limit):
  """The choices within capacity: first choices first, then left to right."""
  served, taken = jnp.zeros_like(choices[0]), 0
  for choice, earlier, all_of_it in zip(choices, before, total, strict=True):
    served |= choice & (taken + earlier < limit)
    taken = taken + all_of_it
  return served


def _keep(shape, rate, seed):
  """A dropout mask from the step's key, the layer's seed and the position.

  A hash (two rounds of MurmurHash3's finalizer) instead of a threefry draw:
  masks over [tokens, experts] at every adapted layer would otherwise be a
  noticeable part of the step, and most of its compilation.
  """
  key = ambient.DROPOUT_KEY.get()
  if key is None:
    raise ValueError(
      f"expert_dropout={rate} needs a key in training: enter"
      " ambient.DROPOUT_KEY(key) around the forward pass, or call model.eval()."
    )
  words = jax.random.key_data(key).reshape(-1)
  strides = np.cumprod([1, *shape[:0:-1]])[::-1].astype(np.uint32)
  index = sum(
    jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    for axis, stride in enumerate(strides)
  )
  bits = _mix(_mix(index + words[0]) ^ (words[-1] + np.uint32(seed)))
  return bits >= np.uint32(round(rate * 2**32))


def _mix(bits):
  bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)


def _stats(logits, chosen, served, groups):
  """The fields of `RoutingStats` that only reports read."""
  log_p = jax.nn.log_softmax(logits, axis=-1)
  entropy = -(jnp.exp(log_p) * log_p).sum(axis=-1)
  total = chosen.sum(axis=(1, 2)).astype(jnp.float32)
  load = served.sum(axis=1).astype(jnp.float32)
  return dict(
    load=load,
    dropped=total - load.sum(axis=-1),
    chosen=total,
    entropy=jnp.where(groups.real, entropy, 0.0).sum(axis=1),
    tokens=groups.real.sum(axis=1).astype(jnp.float32),
  )
