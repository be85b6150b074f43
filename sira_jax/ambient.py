# SPDX-License-Identifier: Apache-2.0
"""Values that every layer of one forward pass may ask for.

A model says which tokens belong to which example (`SEGMENTS`), a training
step gives the key of this step's dropout (`DROPOUT_KEY`) and how much of the
run is behind it (`PROGRESS`), decoding with a cache says so (`DECODING`); a
layer deep inside asks, and nobody between them hands anything through:

    with ambient.SEGMENTS(ambient.Segments(ids, packed=False)):
      hidden = block(hidden)

The values are often tracers. JAX caches inner traces (remat, scan, nested
jit) by the identity of the traced function, so a tracer met inside one would
come back, stale, in the next trace; each entry therefore also changes a JAX
user context, which is part of every cache key. Enter it inside the jitted
function: entered outside, each call would compile anew.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import dataclasses
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

T = TypeVar("T")

_entries = jax.make_user_context(default_value=None)


class Ambient(Generic[T]):
  """One such value: call it to set, `get` to read; None where nobody set it."""

  def __init__(self, name: str):
    self._variable = contextvars.ContextVar(name, default=None)

  @contextlib.contextmanager
  def __call__(self, value: T | None) -> Iterator[None]:
    """Gives the value to everything inside the `with`; None takes it away."""
    token = self._variable.set(value)
    try:
      with _entries(object()):
        yield
    finally:
      self._variable.reset(token)

  def get(self) -> T | None:
    """The value of the innermost entry around the caller."""
    return self._variable.get()


@dataclasses.dataclass(frozen=True)
class Segments:
  """Which example each token of a batch belongs to.

  What follows from the ids is computed here, once for all layers.

  Attributes:
    ids: 0 for padding; tokens of a row with equal ids are one example.
    packed: whether a row may hold several examples, which are then contiguous.
      Static: an unpacked batch takes cheaper programs.
    tokens: how many real tokens each token's example has.
    bounds: of a packed batch, the positions of the first token of each
      token's segment and of the token after its last; else None.
  """

  ids: Int[Array, "batch length"]
  packed: bool
  tokens: Float[Array, "batch #length"] = dataclasses.field(init=False)
  bounds: tuple[Int[Array, "batch length"], ...] | None = dataclasses.field(
    init=False
  )

  def __post_init__(self):
    real = self.ids > 0
    if self.packed:
      bounds = _bounds(self.ids)
      tokens = jnp.where(real, bounds[1] - bounds[0], 0)
    else:
      bounds, tokens = None, real.sum(axis=1, keepdims=True)
    object.__setattr__(self, "bounds", bounds)
    object.__setattr__(self, "tokens", tokens.astype(jnp.float32))


def _bounds(ids):
  length = ids.shape[1]
  changes = ids[:, 1:] != ids[:, :-1]
  edge = jnp.ones((ids.shape[0], 1), bool)
  position = jnp.arange(length, dtype=jnp.int32)
  starts = jnp.concatenate([edge, changes], axis=1)
  ends = jnp.concatenate([changes, edge], axis=1)
  first = jax.lax.cummax(jnp.where(starts, position, 0), axis=1)
  end = jax.lax.cummin(
    jnp.where(ends, position + 1, length), axis=1, reverse=True
  )
  return first, end


SEGMENTS: Ambient[Segments] = Ambient("segments")
DROPOUT_KEY: Ambient[jax.Array] = Ambient("dropout_key")
# From 0 at the first step of a run to just below 1 at its last.
PROGRESS: Ambient[jax.Array] = Ambient("progress")
# True where a forward pass sees a part of each example, the rest being cached.
DECODING: Ambient[bool] = Ambient("decoding")
