# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what training changed, never the frozen base.

Each is a step's folder of separate orbax items: `adapter` (what was trained,
and constants beside it, such as a frozen router), `optimizer`, `random` (step
and key), `data` (position in the data) and `meta` (what the numbers belong
to, and the checksum of each array and of `meta` itself). The base is named in
`meta` by its hash.

A damaged checkpoint is never used and never deleted: the one before it is
taken.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import gc
import json
import os
import re
from typing import Any
import zlib

from etils import epath
from flax import nnx
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sira_jax import checkpoint_items, checksums, distributed, storage
from sira_jax.adapters.variables import AdapterConstant, Trainable
from sira_jax.training.step import TrainState


class Checkpoints:
  """The checkpoints of one run; use it as a context, so that writes finish.

  A save returns at once and is written in the background; one that was
  interrupted is not seen by the next start. If it cannot be written, the next
  save raises the OSError, or the end of the context.

  Args:
    directory: of this run's checkpoints; made if need be.
    keep: how many of the newest to keep.
    best: the step that is never removed, if there is one by then.
    writable: False for who only reads, perhaps while a run still writes.

  Raises:
    ValueError: nothing to read.
  """

  def __init__(
    self,
    directory: storage.Path,
    *,
    keep: int = 2,
    best: Callable[[], int | None] = lambda: None,
    writable: bool = True,
  ):
    self._directory = directory
    if not storage.in_bucket(directory):
      self._directory = directory.absolute()
    self._writable = writable
    if not writable and not self._directory.exists():
      raise self._nothing()
    if writable and distributed.first():
      # By ourselves, since orbax would do it in a thread that may outlive us.
      for left in self._directory.glob("*.orbax-checkpoint-tmp*"):
        # Of a write that was interrupted; of one that failed in this process,
        # threads may not have ended, and the next start removes the rest.
        with contextlib.suppress(OSError):
          epath.Path(left).rmtree()
    distributed.wait("checkpoints are opened")
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        create=writable,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
          [checkpoint_managers.LatestN(keep), _Best(best)]
        ),
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    with _write_errors():
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

    Raises:
      OSError: this one or the one before it could not be written.
    """
    if step in self._manager.all_steps():
      return
    items = checkpoint_items.of(state)
    meta = dict(meta) | {"arrays": checksums.of(items)}
    meta["checksum"] = _checksum(meta)
    with _write_errors():
      self._manager.save(
        step,
        force=True,
        args=ocp.args.Composite(
          **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
          data=ocp.args.JsonSave({"batches": step}),
          meta=ocp.args.JsonSave(meta),
        ),
      )

  def restore(
    self, like: TrainState, *, base: str, data: str, logged: int | None = None
  ) -> TrainState:
    """Reads the newest good checkpoint, placed as `like`'s arrays are.

    Args:
      like: a state of the same shapes.
      base: the hash of the base model at hand.
      data: the hash of the data at hand.
      logged: up to which step the run's metrics are whole; an older checkpoint
        is taken, if there is one, so that the steps after it are logged again.

    Raises:
      ValueError: no good checkpoint, another base, other data or other shapes.
    """
    step, found = self._newest(
      checkpoint_items.of(like), {"base": base, "data": data}, logged
    )
    if logged is not None and logged < step:
      print(f"The metrics are whole up to step {logged} only.", flush=True)
    return checkpoint_items.state(like, found)

  def restore_adapter(
    self, model: nnx.Module, *, base: str, best: int | None = None
  ) -> int:
    """Reads adapters alone into `model`; returns their step.

    Args:
      model: of the shapes that were saved.
      base: the hash of the base model at hand.
      best: the step to take if it is good; else the newest good one, which is
        said.

    Raises:
      ValueError: no good checkpoint, another base or other shapes.
    """
    state = nnx.state(model, nnx.Any(Trainable, AdapterConstant))
    items = {"adapter": nnx.to_pure_dict(state)}
    step, found = self._newest(items, {"base": base}, best=best)
    nnx.replace_by_pure_dict(state, found["adapter"])
    nnx.update(model, state)
    return step

  def _newest(self, items, hashes, logged=None, best=None):
    """The step and the arrays of the newest checkpoint that is not damaged.

    If `best` is one of them, of that.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps:
      raise self._nothing()
    if logged is not None:
      steps = [step for step in steps if step <= logged] or steps
    damaged = {}
    if best in steps:
      steps = [best, *(step for step in steps if step != best)]
    elif best is not None:
      print(f"MISSING: the checkpoint of step {best}, the best.", flush=True)
    for step in steps:
      try:
        meta = self._meta(step)
        _check_hashes(meta, hashes)
        self._check_kinds(step, meta, items)
        found = self._read(step, items)
      except _Damaged as error:
        found, damaged[step] = None, str(error)
      # A process reads the parts of its devices, and others may be damaged.
      if not distributed.everywhere(found is not None):
        damaged.setdefault(step, "another process cannot read its part")
        continue
      wrong = _wrong(found, meta)  # the same on all, for all take part in sums
      if wrong:
        damaged[step] = f"{wrong} does not have its checksum"
      else:
        self._set_aside(damaged, step)
        return step, found
    lines = [f"step {step}: {why}" for step, why in damaged.items()]
    raise ValueError(
      f"No checkpoint in {self._directory} is whole:\n  "
      + "\n  ".join(lines)
      + "\nThey are left as they are. Put a copy of one back, or give another"
      " --workdir to train from the start."
    )

  def _set_aside(self, damaged, step):
    """Says which checkpoints are damaged, and moves them out of the way."""
    for bad, why in damaged.items():
      print(
        f"DAMAGED: the checkpoint of step {bad} in {self._directory}: {why}."
        f" That of step {step} is used instead.",
        flush=True,
      )
      if self._writable:
        aside = storage.set_aside(self._directory / str(bad))
        print(f"The damaged one is kept as {aside.name}.", flush=True)
    if damaged and self._writable:
      distributed.wait("damaged checkpoints are aside")
      self._manager.reload()

  def _nothing(self):
    return ValueError(
      f"There is no checkpoint in {self._directory}: train first."
    )

  def _meta(self, step):
    """What a checkpoint says of itself, whole."""
    with _damage("meta"):
      meta = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )["meta"]
    if set(meta) == {"base", "data"}:
      raise ValueError(
        f"The checkpoint of step {step} in {self._directory} is of an earlier"
        " version of sira_jax, without checksums: give another --workdir."
      )
    if meta.get("checksum") != _checksum(meta):
      raise _Damaged("its meta does not have its checksum")
    return meta

  def _check_kinds(self, step, meta, items):
    """Raises ValueError where the arrays are not of the shapes at hand."""
    here = checksums.kinds(items)
    there = {
      path: text.split()[0]
      for path, text in meta["arrays"].items()
      if path.partition(".")[0] in items
    }
    for path in sorted(here.keys() | there.keys()):
      one, other = there.get(path, "nothing"), here.get(path, "nothing")
      if one != other:
        raise ValueError(
          f"The checkpoint of step {step} in {self._directory} does not fit the"
          f" adapters of this config: {path} is {one} there, and {other} here."
        )

  def _read(self, step, items):
    args = {
      name: ocp.args.StandardRestore(checkpoint_items.abstract(tree))
      for name, tree in items.items()
    }
    for name in [*args, "data"]:
      with _damage(name), _silence():
        arg = args.get(name, ocp.args.JsonRestore())
        args[name] = self._manager.restore(
          step, args=ocp.args.Composite(**{name: arg})
        )[name]
    if args.pop("data") != {"batches": step}:
      raise _Damaged("its data is not of its step")
    return args


def _wrong(found, meta):
  """The path of an array that is not what was saved; None if all are."""
  sums = checksums.of(found)
  return next(
    (p for p, text in sums.items() if meta["arrays"][p] != text), None
  )


@dataclasses.dataclass(frozen=True)
class _Best(checkpoint_managers.PreservationPolicy):
  """Keeps the checkpoint of the step that is best by now."""

  step: Callable[[], int | None]

  def should_preserve(self, checkpoints, *, context):
    del context
    best = self.step()
    return [checkpoint.step == best for checkpoint in checkpoints]


class _Damaged(Exception):
  """A checkpoint cannot be read as it was written; the text says what."""


@contextlib.contextmanager
def _damage(item):
  """Takes any error of reading an item for damage to it.

  Orbax raises nearly anything there; memory that runs out is no damage, nor is
  a file that this user may not read.
  """
  try:
    yield
  except (MemoryError, PermissionError):
    raise
  except Exception as error:
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise _Damaged(f"its {item} cannot be read ({why})") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
  """Discards what is written to file descriptor 2.

  Where a file is damaged, TensorStore's threads print pages about the other
  files; the error itself is raised.
  """
  saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 2)
  try:
    yield
  except Exception:
    gc.collect()  # coroutines that nobody awaits would complain later
    raise
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(null)


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
  """Makes TensorStore's errors of the system the OSErrors that they are."""
  try:
    yield
  except ValueError as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if not code:
      raise
    number = int(code[1])
    raise OSError(number, f"{os.strerror(number)}, for a checkpoint") from error


def _checksum(meta):
  """Of all else in `meta`."""
  rest = {name: value for name, value in meta.items() if name != "checksum"}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _check_hashes(meta, hashes):
  """Raises ValueError where the numbers belong to another base or data."""
  if meta["base"] != hashes["base"]:
    raise ValueError(
      "The adapters were trained on another base model: its sha256 was"
      f" {meta['base']}, the one at hand is {hashes['base']}. Name the same"
      " base."
    )
  if meta["data"] != hashes.get("data", meta["data"]):
    raise ValueError(
      "The run was trained on other data: the fingerprint of its mixture"
      f" was {meta['data'][:12]}, now it is {hashes['data'][:12]}. Was a data"
      " package updated? Restore it, or start a new --workdir."
    )
