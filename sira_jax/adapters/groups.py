# SPDX-License-Identifier: Apache-2.0
"""Counts over the tokens of one training example, for rows and packed rows.

Capacity and balance are counted per example. An example is a row of the batch
or, in a packed batch, one segment of a row; the functions here give every
token the counts of its own example, so that code above them is the same for
both and packing changes nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import ambient

# One matmul with a triangle of this size costs less than a scan's many steps.
_BLOCK = 128
# Means decide who goes where: accelerators would round their float32 operands.
_EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Groups:
  """The examples of one batch.

  Attributes:
    real: False for padding.
    tokens: how many real tokens each token's example has.
    bounds: see `ambient.Segments`; None where each row is one example.
  """

  real: Bool[Array, "batch length"]
  tokens: Float[Array, "batch #length"]
  bounds: tuple[Int[Array, "batch length"], ...] | None

  def counts(
    self, marks: Bool[Array, "batch length n"]
  ) -> tuple[Float[Array, "batch length n"], Float[Array, "batch #length n"]]:
    """Marked tokens before each token in its example, and in all of it.

    Exact below 2**24. Marks of padding count too: give none there.
    """
    values = jax.lax.stop_gradient(marks).astype(jnp.float32)
    before = running(values)
    if self.bounds is None:
      return before, values.sum(axis=1, keepdims=True)
    first, end = self.bounds
    ends = jnp.pad(before, ((0, 0), (0, 1), (0, 0)))
    ends = ends.at[:, -1].set(before[:, -1] + values[:, -1])
    earlier = _rows(ends, first)
    return before - earlier, _rows(ends, end) - earlier

  def mean(self, values: Float[Array, "batch length *n"]) -> Float[Array, "*n"]:
    """The mean over examples of the mean over an example's real tokens."""
    share = self.real / jnp.maximum(self.tokens, 1)
    total = jnp.tensordot(share, values, axes=2, precision=_EXACT)
    return total / jnp.maximum(share.sum(), 1e-9)

  def example_mean(
    self, values: Float[Array, "batch length d"]
  ) -> Float[Array, "batch #length d"]:
    """The mean over the real tokens of each token's own example."""
    share = self.real / jnp.maximum(self.tokens, 1)
    if self.bounds is None:
      return jnp.einsum("bl,bld->bd", share, values, precision=_EXACT)[:, None]
    first, end = (bound[..., None] for bound in self.bounds)
    position = jnp.arange(values.shape[1])
    own = (first <= position) & (position < end)
    return jnp.einsum("bij,bj,bjd->bid", own, share, values, precision=_EXACT)

  def first(
    self, values: Bool[Array, "batch length n"]
  ) -> Bool[Array, "batch #length n"]:
    """The values of the first token of each token's example."""
    if self.bounds is None:
      return values[:, :1]
    return _rows(values, self.bounds[0])

  def order(
    self, keys: Float[Array, "batch length"]
  ) -> Int[Array, "batch length"]:
    """Positions that sort each example's tokens by key, stably, in place."""
    keys = jnp.where(self.real, jax.lax.stop_gradient(keys), jnp.inf)
    if self.bounds is None:
      return jnp.argsort(keys, axis=1, stable=True)
    return jnp.lexsort((keys, self.bounds[0]), axis=1)


def of_batch(batch: int, length: int) -> Groups:
  """The groups that `ambient.SEGMENTS` tells of; else each row is one example.

  Raises:
    ValueError: the segments told are not [batch, length].
  """
  segments = ambient.SEGMENTS.get()
  if segments is None:
    real = jnp.ones((batch, length), bool)
    return Groups(real, jnp.full((batch, 1), length, jnp.float32), None)
  ids = segments.ids
  if ids.shape != (batch, length):
    raise ValueError(
      f"A routed adapter sees tokens [batch, length] = {[batch, length]}, but"
      f" the segments told for this forward pass are {list(ids.shape)}. Enter"
      " ambient.SEGMENTS with the ids of the tokens that this layer sees."
    )
  return Groups(ids > 0, segments.tokens, segments.bounds)


def running(
  values: Float[Array, "batch length n"],
) -> Float[Array, "batch length n"]:
  """The sum of the values before each position, by triangular matmuls.

  Within blocks of `_BLOCK` positions, then over the blocks' sums.
  """
  batch, length, n = values.shape
  size = min(length, _BLOCK)
  blocks = -(-length // size)
  values = jnp.pad(values, ((0, 0), (0, blocks * size - length), (0, 0)))
  values = values.reshape(batch, blocks, size, n)
  inside = jnp.einsum("ij,bkjn->bkin", _triangle(size), values)
  if blocks > 1:
    sums = jnp.einsum("kj,bjn->bkn", _triangle(blocks), values.sum(axis=2))
    inside += sums[:, :, None]
  return inside.reshape(batch, blocks * size, n)[:, :length]


def _triangle(size):
  """Made by the program; as a constant it would be in there for each layer."""
  return jnp.tri(size, k=-1, dtype=jnp.float32)


def _rows(values, index):
  return jax.vmap(lambda v, i: v[i])(values, index)
