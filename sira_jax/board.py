# SPDX-License-Identifier: Apache-2.0
"""Event files for TensorBoard, of whatever a run logs, if it can write any."""

from collections.abc import Mapping
import os
import pathlib

from sira_jax import distributed

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

  def __init__(self, folder: pathlib.Path, kind: str, *, step: int):
    self._writer = None
    if not distributed.first():
      return
    try:
      import tensorboardX
    except ModuleNotFoundError:  # metrics.jsonl has all of it
      return
    self._writer = tensorboardX.SummaryWriter(
      str(folder / FOLDER / kind),
      purge_step=step + 1,
      # Names have seconds alone, and one file would be written over another.
      filename_suffix=f".{step}.{os.getpid()}",
    )

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a point to the curve of each of `values`."""
    if self._writer is not None:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    """Has all points on the disk."""
    if self._writer is not None:
      self._writer.close()
