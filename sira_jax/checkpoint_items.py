# SPDX-License-Identifier: Apache-2.0
"""The arrays of a training state as a checkpoint's items, and back."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax

from sira_jax.adapters.variables import AdapterConstant, Trainable
from sira_jax.training.step import TrainState


def of(state: TrainState) -> dict[str, Any]:
  """The arrays of a state, by item."""
  return {
    "adapter": nnx.to_pure_dict(
      nnx.merge_state(state.trainable, state.constants)
    ),
    "optimizer": _leaves(state.optimizer),
    "random": {"step": state.step, "key": jax.random.key_data(state.key)},
  }


def state(like: TrainState, found: Mapping[str, Any]) -> TrainState:
  """The state of these arrays, in the structure of `like`."""
  adapter = nnx.merge_state(like.trainable, like.constants)
  adapter = jax.tree.map(lambda leaf: leaf, adapter)
  nnx.replace_by_pure_dict(adapter, found["adapter"])
  trainable, constants = nnx.filter_state(adapter, Trainable, AdapterConstant)
  paths = jax.tree_util.tree_flatten_with_path(like.optimizer)[0]
  leaves = [found["optimizer"][jax.tree_util.keystr(p)] for p, _ in paths]
  return TrainState(
    step=found["random"]["step"],
    trainable=trainable,
    constants=constants,
    optimizer=jax.tree.unflatten(jax.tree.structure(like.optimizer), leaves),
    key=jax.random.wrap_key_data(found["random"]["key"]),
  )


def abstract(tree: Any) -> Any:
  """The shapes of its arrays, and where they are."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
    ),
    tree,
  )


def _leaves(tree):
  """Leaves by path: optax's states are tuples, which orbax would rename."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in flat}
