# SPDX-License-Identifier: Apache-2.0
"""Event files for TensorBoard, of whatever a run logs, if it can write any."""

from collections.abc import Mapping
import os
import pathlib
import shutil
import tempfile

from sira_jax import distributed, storage

FOLDER = "tensorboard"


class Board:
  """A curve for each number, in WORKDIR/tensorboard/KIND.

  Without tensorboardX, or in any process but the first, it takes all and
  writes nothing.

  Args:
    folder: of the run.
    kind: of its numbers: "train" or "validation".
    step: where the run goes on; what was drawn of later steps is dropped.
  """

  def __init__(self, folder: storage.Path, kind: str, *, step: int):
    self._writer = None
    if not distributed.first():
      return
    try:
      import tensorboardX
    except ModuleNotFoundError:  # metrics.jsonl has all of it
      return
    self._target = self._folder = folder / FOLDER / kind
    if storage.in_bucket(folder):
      self._folder = pathlib.Path(tempfile.mkdtemp())
    self._writer = tensorboardX.SummaryWriter(
      str(self._folder),
      purge_step=step + 1,
      # Names have seconds alone, and one file would be written over another.
      filename_suffix=f".{step}.{os.getpid()}",
    )

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a point to the curve of each of `values`."""
    if self._writer is not None:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)

  def sync(self) -> None:
    """Has all points in their files; those in a bucket are written anew."""
    if self._writer is not None:
      self._writer.flush()
      if self._folder != self._target:
        for file in self._folder.iterdir():
          storage.write(self._target / file.name, file.read_bytes())

  def close(self) -> None:
    """Has all points in their files, and closes these."""
    self.sync()
    if self._writer is not None:
      self._writer.close()
      if self._folder != self._target:
        shutil.rmtree(self._folder)
