# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what training changed, never the frozen base.

Each is a step's folder of separate orbax items: `adapter`, `optimizer`,
`random` (step and key), `data` (position in the data) and `meta` (what the
numbers belong to). The base is named in `meta` by its hash.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from flax import nnx
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sira_jax.adapters.variables import Trainable
from sira_jax.training.step import TrainState


class Checkpoints:
  """The checkpoints of one run; use it as a context, so that writes finish.

  A save returns at once and is written in the background; one that was
  interrupted is not seen by the next start.

  Args:
    directory: of this run's checkpoints; made if need be.
    keep: how many of the newest to keep.
    writable: False for who only reads, perhaps while a run still writes.

  Raises:
    ValueError: nothing to read.
  """

  def __init__(
    self, directory: pathlib.Path, *, keep: int = 2, writable: bool = True
  ):
    self._directory = pathlib.Path(directory).absolute()
    if not writable and not self._directory.exists():
      raise self._nothing()
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        create=writable,
        preservation_policy=checkpoint_managers.LatestN(keep),
        # What is left of a write that was interrupted.
        cleanup_tmp_directories=writable,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def latest(self) -> int | None:
    """The newest complete checkpoint's step; None where there is none."""
    return self._manager.latest_step()

  def save(
    self, state: TrainState, *, step: int, meta: Mapping[str, Any]
  ) -> None:
    """Saves `state` as `step`, unless that step is saved already.

    Args:
      state: as it is after `step` steps.
      step: its number, known to the host.
      meta: what the numbers belong to: the hashes "base" and "data".
    """
    if step in self._manager.all_steps():
      return
    items = {
      name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()
    }
    self._manager.save(
      step,
      force=True,
      args=ocp.args.Composite(
        **items,
        data=ocp.args.JsonSave({"batches": step}),
        meta=ocp.args.JsonSave(dict(meta)),
      ),
    )

  def restore(self, like: TrainState, *, base: str, data: str) -> TrainState:
    """Reads the newest checkpoint, placed as `like`'s arrays are.

    Args:
      like: a state of the same shapes.
      base: the hash of the base model at hand.
      data: the hash of the data at hand.

    Raises:
      ValueError: no checkpoint, another base, other data, or other shapes.
    """
    step = self._newest()
    meta = self._check_base(step, base)
    if meta["data"] != data:
      raise ValueError(
        "The run was trained on other data: the fingerprint of its mixture"
        f" was {meta['data'][:12]}, now it is {data[:12]}. Was a data package"
        " updated? Restore it, or start a new --workdir."
      )
    found = self._read(step, _items(like))
    return _state(like, found)

  def restore_adapter(self, model: nnx.Module, *, base: str) -> int:
    """Reads the newest adapters alone into `model`; returns their step.

    Raises:
      ValueError: no checkpoint, another base, or other shapes.
    """
    step = self._newest()
    self._check_base(step, base)
    state = nnx.state(model, Trainable)
    found = self._read(step, {"adapter": nnx.to_pure_dict(state)})
    nnx.replace_by_pure_dict(state, found["adapter"])
    nnx.update(model, state)
    return step

  def _newest(self):
    step = self.latest()
    if step is None:
      raise self._nothing()
    return step

  def _nothing(self):
    return ValueError(
      f"There is no checkpoint in {self._directory}: train first."
    )

  def _check_base(self, step, base):
    meta = self._manager.restore(
      step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
    )["meta"]
    if meta["base"] != base:
      raise ValueError(
        "The adapters were trained on another base model: its sha256 was"
        f" {meta['base']}, the one at hand is {base}. Name the same base."
      )
    return meta

  def _read(self, step, items):
    args = {
      name: ocp.args.StandardRestore(_abstract(tree))
      for name, tree in items.items()
    }
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**args))
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"The checkpoint of step {step} in {self._directory} does not fit the"
        f" adapters of this config: {str(error).splitlines()[0]}"
      ) from error


def _items(state):
  return {
    "adapter": nnx.to_pure_dict(state.trainable),
    "optimizer": _leaves(state.optimizer),
    "random": {"step": state.step, "key": jax.random.key_data(state.key)},
  }


def _leaves(tree):
  """Leaves by path: optax's states are tuples, which orbax would rename."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def _state(like, found):
  trainable = jax.tree.map(lambda leaf: leaf, like.trainable)
  nnx.replace_by_pure_dict(trainable, found["adapter"])
  paths = jax.tree_util.tree_flatten_with_path(like.optimizer)[0]
  leaves = [found["optimizer"][jax.tree_util.keystr(p)] for p, _ in paths]
  return TrainState(
    step=found["random"]["step"],
    trainable=trainable,
    optimizer=jax.tree.unflatten(jax.tree.structure(like.optimizer), leaves),
    key=jax.random.wrap_key_data(found["random"]["key"]),
  )


def _abstract(tree):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
    ),
    tree,
  )
