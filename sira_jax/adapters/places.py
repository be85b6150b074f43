# SPDX-License-Identifier: Apache-2.0
"""Moves tokens to places in their experts' buffers and back, by gathers alone.

The transpose of a gather is a scatter, which is slow. Here both directions are
known, the token of each place and the places of each token, so the transpose
of either move is the other.

Legend: batch, length, tokens (batch * length), k (choices of a token), experts,
buffers (each of one expert), size (places of a buffer).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax.adapters import groups

# Places of a buffer where an expert has as many buffers as it needs: from 8,
# to 128, a quarter of what a uniform load would fill.
_SMALLEST, _LARGEST, _SHARE = 8, 128, 4


@dataclasses.dataclass(frozen=True)
class Places:
  """Where each token goes.

  Attributes:
    expert: of each buffer.
    token: at each place; the number of tokens where it is empty.
    place: of each choice of a token; the number of places where it has less.
    own: whether the buffers are the experts', one each, in their order.
  """

  expert: Int[Array, "buffers"]
  token: Int[Array, "buffers*size"]
  place: Int[Array, "tokens k"]
  own: bool

  def fill(self, x: Float[Array, "tokens d"]) -> Float[Array, "buffers size d"]:
    """The tokens in their buffers; empty places are zero."""
    filled = _there(x, self.token, self.place)
    return filled.reshape(len(self.expert), -1, x.shape[1])

  def gather(
    self, y: Float[Array, "buffers size f"]
  ) -> Float[Array, "tokens f"]:
    """The sum over each token's places."""
    return _back(y.reshape(-1, y.shape[-1]), self.token, self.place)

  def weights(
    self, weights: Float[Array, "tokens experts"]
  ) -> Float[Array, "buffers size 1"]:
    """The weight of the expert for the token at each place; zero if empty."""
    experts = weights.shape[1]
    token = self.token.reshape(len(self.expert), -1)
    index = token * experts + self.expert[:, None]
    return _rows(weights.reshape(-1, 1), index)

  def each(
    self, parameters: Float[Array, "experts *n"]
  ) -> Float[Array, "buffers *n"]:
    """The parameters of each buffer's expert."""
    return parameters if self.own else parameters[self.expert]


def find(
  routed: Bool[Array, "batch length experts"], *, slots: int, k: int
) -> Places:
  """Places for every routed token.

  Either each expert has one buffer, with `slots` places for each row; or,
  where that would be much emptier, small buffers, as many as its tokens fill.

  Args:
    routed: the experts of each token.
    slots: the most tokens of one row that any expert is given.
    k: the most experts that a token is given.
  """
  batch, length, experts = routed.shape
  tokens = batch * length
  buffers, size = shape(batch, length, experts, slots=slots, k=k)
  own = buffers == experts
  if own:
    before = groups.running(routed.astype(jnp.float32)).astype(jnp.int32)
    rows = jnp.arange(experts) * batch + jnp.arange(batch)[:, None, None]
    place = rows * slots + before
    expert = jnp.arange(experts)
  else:
    marks = routed.reshape(1, tokens, experts).astype(jnp.float32)
    before = groups.running(marks).astype(jnp.int32)
    needed = -(-marks.sum(axis=(0, 1)).astype(jnp.int32) // size)
    ends = jnp.cumsum(needed)
    place = (ends - needed) * size + before
    expert = (jnp.arange(buffers)[:, None] >= ends).sum(axis=1)
    expert = jnp.minimum(expert, experts - 1)
  place = _of_choices(
    routed.reshape(tokens, experts), place.reshape(tokens, experts), k=k
  )
  count = buffers * size
  place = jnp.where(place < 0, count, place)
  # All distinct but for those of no choice, which are dropped.
  owners = jnp.broadcast_to(jnp.arange(tokens)[:, None], place.shape)
  token = jnp.full((count,), tokens).at[place].set(owners, mode="drop")
  return Places(expert, token, place, own)


def shape(
  batch: int, length: int, experts: int, *, slots: int, k: int
) -> tuple[int, int]:
  """How many buffers `find` takes, and the places of each."""
  tokens = batch * length
  size = min(max(tokens * k // experts // _SHARE, _SMALLEST), _LARGEST)
  buffers = -(-tokens * k // size) + experts
  if experts * batch * slots <= buffers * size:
    return experts, batch * slots
  return buffers, size


def _of_choices(routed, place, *, k):
  """The places where `routed`, in columns; -1 where there are fewer than k."""
  index, left, found = jnp.arange(routed.shape[1]), routed, []
  for _ in range(k):
    first = jnp.where(left, index, len(index)).min(axis=1, keepdims=True)
    found.append(jnp.where(index == first, place, -1).max(axis=1))
    left &= index != first
  return jnp.stack(found, axis=1)


def _rows(x, index):
  return x.at[index].get(mode="fill", fill_value=0)


def _sum_of_rows(x, index):
  return sum(_rows(x, index[:, j]) for j in range(index.shape[1]))


@jax.custom_vjp
def _there(x, token, place):
  del place
  return _rows(x, token)


@jax.custom_vjp
def _back(y, token, place):
  del token
  return _sum_of_rows(y, place)


_there.defvjp(
  lambda x, token, place: (_rows(x, token), place),
  lambda place, dy: (_sum_of_rows(dy, place), None, None),
)
_back.defvjp(
  lambda y, token, place: (_sum_of_rows(y, place), token),
  lambda token, dy: (_rows(dy, token), None, None),
)
