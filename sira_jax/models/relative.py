# SPDX-License-Identifier: Apache-2.0
"""T5's relative position bias: one number per head and bucket of distance.

Of the buckets that a direction has, half are the distances 0, 1, 2, ...; the
others widen logarithmically up to `max_distance`, from where all is one:

    bucket(n) = n                                        n < half
    half + floor(half log(n / half) / log(max_distance / half)), to the last

A decoder's tokens see what is before them, with all buckets. An encoder's see
both directions, with half of the buckets each.

Source: Raffel et al. 2020, section 2.1; mesh_tensorflow's
`_relative_position_bucket` for the numbers.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np


def check(buckets: int, max_distance: int) -> None:
  """Raises a ValueError unless there can be so many buckets."""
  if buckets < 4 or buckets % 4 or not buckets // 2 < max_distance < 2**20:
    raise ValueError(
      "Expected buckets of relative distances to be a multiple of 4 and"
      " max_distance more than half as many (and less than 2**20), got"
      f" buckets={buckets} and max_distance={max_distance}."
    )


def buckets_of(
  distances: Int[np.ndarray, "*n"], *, buckets: int, max_distance: int
) -> Int[np.ndarray, "*n"]:
  """The formula above, of distances >= 0."""
  half = buckets // 2
  ratio = np.log(np.maximum(distances, half) / half) / np.log(
    max_distance / half
  )
  # Distances at a border belong to the bucket that begins there.
  far = half + np.floor(ratio * (buckets - half) + 1e-9).astype(int)
  return np.where(distances < half, distances, np.minimum(far, buckets - 1))


class Bias(nnx.Module):
  """What a head adds to the score of a slot at some distance."""

  def __init__(
    self,
    heads: int,
    *,
    buckets: int,
    max_distance: int,
    causal: bool,
    rngs: nnx.Rngs,
    dtype,
  ):
    self.max_distance = max_distance
    self.causal = causal
    # Whole on every device: it is small, and heads need not be divisible.
    self.embedding = nnx.Param(
      jax.random.normal(rngs.params(), (buckets, heads), dtype),
      axes=(None, None),
    )

  def __call__(
    self,
    queries: Int[Array, "#batch length"],
    slots: Int[Array, "#batch slots"],
  ) -> Float[Array, "#batch heads length slots"]:
    """float32 bias of each position's view of each slot's."""
    far = self.max_distance
    ahead = jnp.clip(slots[:, None] - queries[:, :, None], -far, far)
    by_distance = self.embedding[...].astype(jnp.float32)[self._buckets()]
    return by_distance[ahead + far].transpose(0, 3, 1, 2)

  def _buckets(self):
    """Of the relative positions from -max_distance to max_distance."""
    ahead = np.arange(-self.max_distance, self.max_distance + 1)
    count = self.embedding.shape[0]
    if self.causal:
      ahead, count, later = np.minimum(ahead, 0), count, 0
    else:
      count //= 2
      later = np.where(ahead > 0, count, 0)
    return later + buckets_of(
      np.abs(ahead), buckets=count, max_distance=self.max_distance
    )
