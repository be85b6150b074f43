# SPDX-License-Identifier: Apache-2.0
"""The k largest of a token's router probabilities, exactly and without a sort.

Non-negative floats order as their bits do, and the expert's index in the
lowest bits makes every key of a token unique. Values that agree in all but
those bits tie, and ties go to the lower index. Each key is compared with all
others of its token; on a CPU, many experts are done by k maxima instead.
`jax.lax.top_k` would do, but it gathers sharded logits, and its scatter back is
dear.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import sharding

# Of more experts, XLA's CPU compiler compares one pair at a time: 2048 tokens
# took 40 ms with 64 experts, 0.1 ms with 32; four maxima of 64 take 0.6 ms.
_PAIRS = 32


def mask(
  q: Float[Array, "batch length experts"], k: int | Int[Array, ""]
) -> Bool[Array, "batch length experts"]:
  """Marks the k most probable experts of each token; k may be traced."""
  if isinstance(k, int) and k == q.shape[-1]:
    return jnp.ones(q.shape, bool)
  keys = sort_keys(q)
  if q.shape[-1] > _PAIRS and sharding.platform() == "cpu":
    return keys >= _largest(keys, k)
  larger = keys[..., None, :] > keys[..., :, None]
  return larger.sum(axis=-1) < k


def _largest(keys, k):
  """The k-th largest of each token's unique keys."""

  def below(_, best):
    return jnp.where(keys < best, keys, -1).max(axis=-1, keepdims=True)

  return jax.lax.fori_loop(1, k, below, keys.max(axis=-1, keepdims=True))


def choices(
  q: Float[Array, "batch length experts"], k: int
) -> list[Bool[Array, "batch length experts"]]:
  """k masks: the j-th marks each token's j-th most probable expert."""
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
