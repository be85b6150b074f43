# SPDX-License-Identifier: Apache-2.0
"""A model of shapes alone, for a loader to fill."""

from collections.abc import Callable

from flax import nnx
import jax


class _OneKey(nnx.Rngs):
  """Every draw is the same: what is traced to count them takes longest."""

  def params(self) -> jax.Array:
    return self.default.key[...]


def outline(make: Callable[..., nnx.Module]) -> nnx.Module:
  """The model that `make(rngs=...)` makes, of shapes; it may draw `params`."""
  return nnx.eval_shape(lambda: make(rngs=_OneKey(0)))
