# SPDX-License-Identifier: Apache-2.0
"""What routed layers report of a forward pass.

Legend: batch, length, experts.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import sharding
from sira_jax.adapters import groups as groups_lib
from sira_jax.adapters import top_k
from sira_jax.adapters.variables import RoutingRecord

T = TypeVar("T")
# Layers with as many experts as each other -> a field of `RoutingStats` -> its
# values [layers batch ...].
Recorded = Mapping[tuple[str, ...], Mapping[str, Float[Array, "..."]]]
# What an analysis reads.
FIELDS = ("load", "weight", "entropy", "margin", "tokens")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingStats:
  """What one routed layer reports of one batch.

  Attributes:
    balance_loss: its balance loss, mean over examples; 1 when uniform.
    penalty: the balance loss and the z-loss, each times its coefficient.
    load: tokens each expert served in each row, after capacity.
    dropped: expert choices of each row that exceeded a capacity.
    chosen: expert choices of each row, the dropped ones included.
    entropy: sum over each row's tokens of the entropy of the router's
      probabilities, in nats.
    margin: sum over each row's tokens of its k-th largest router logit less
      the next one, before expert dropout; 0 where k is all experts.
    tokens: real tokens of each row.
    weight: sum over each row's tokens of each expert's combine weight.
  """

  balance_loss: Float[Array, ""]
  penalty: Float[Array, ""]
  load: Float[Array, "batch experts"]
  dropped: Float[Array, "batch"]
  chosen: Float[Array, "batch"]
  entropy: Float[Array, "batch"]
  margin: Float[Array, "batch"]
  tokens: Float[Array, "batch"]
  weight: Float[Array, "batch experts"]


def rows(
  logits: Float[Array, "batch length experts"],
  weights: Float[Array, "batch length experts"],
  *,
  chosen: Bool[Array, "batch length experts"],
  served: Bool[Array, "batch length experts"],
  groups: groups_lib.Groups,
  k: int | Int[Array, ""],
) -> dict[str, Float[Array, "batch *experts"]]:
  """The fields of `RoutingStats` that are of each row.

  A training step, which reads two of them, compiles no more.

  Args:
    logits: of the router.
    weights: combine weights.
    chosen: what tokens chose, but for padding.
    served: what of it was served.
    groups: the examples.
    k: experts a token is sent to.
  """
  log_p = jax.nn.log_softmax(logits, axis=-1)
  entropy = -(jnp.exp(log_p) * log_p).sum(axis=-1)
  total = chosen.sum(axis=(1, 2)).astype(jnp.float32)
  load = served.sum(axis=1).astype(jnp.float32)
  real = lambda values: jnp.where(groups.real, values, 0.0).sum(axis=1)  # noqa: E731
  return dict(
    load=load,
    dropped=total - load.sum(axis=-1),
    chosen=total,
    entropy=real(entropy),
    margin=real(_margin(logits, k)),
    tokens=groups.real.sum(axis=1).astype(jnp.float32),
    weight=weights.sum(axis=1),
  )


def _margin(logits, k):
  """Of each token, the k-th largest logit less the next."""
  inside = top_k.mask(jax.nn.softmax(logits, axis=-1), k)
  last = jnp.where(inside, logits, jnp.inf).min(axis=-1)
  next_one = jnp.where(inside, -jnp.inf, logits).max(axis=-1)
  # Logits that tie but for rounding may be taken in either order.
  return jnp.where(jnp.isfinite(next_one), jnp.maximum(last - next_one, 0), 0)


def captured(
  function: Callable[[nnx.Module], T], model: nnx.Module
) -> tuple[T, Recorded]:
  """function(model), and what its routed layers report of each row.

  Of layers that run several times, the last. To be traced, within `jax.jit`.
  """
  result, found = nnx.capture(function, RoutingRecord)(model)
  groups: dict[int, dict[str, RoutingStats]] = {}
  for path, record in nnx.to_flat_state(found):
    name = ".".join(map(str, path[:-2]))
    for stats in record.get_value():
      groups.setdefault(stats.load.shape[1], {})[name] = stats
  return result, {
    tuple(members): {
      field: _stacked([getattr(stats, field) for stats in members.values()])
      for field in FIELDS
    }
    for members in groups.values()
  }


def _stacked(values):
  """One array, for every process."""
  stacked = jnp.stack(values)
  return sharding.constrain(stacked, *[None] * stacked.ndim)
