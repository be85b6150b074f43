# SPDX-License-Identifier: Apache-2.0
"""The next batch, read and put on the devices while they work on one."""

from collections.abc import Iterator, Mapping
import time

import jax

from sira_jax import run_data, sharding


class Ahead:
  """Batches, each read before it is needed.

  Args:
    batches: endless; the first is read at once.

  Attributes:
    batch: the next, as the data have it.
    rows: the same on the devices.
  """

  def __init__(self, batches: Iterator[run_data.Batch]):
    self._batches = batches
    self._read()

  def read(self, busy: Mapping[str, jax.Array]) -> float:
    """Reads the one after; returns the seconds devices may have waited for it.

    Args:
      busy: what they are computing. If that is ready when the batch is, then
        they may have waited for all of the time that it took; else for none.
    """
    begun = time.monotonic()
    self._read()
    over = all(array.is_ready() for array in busy.values())
    return round(time.monotonic() - begun, 4) if over else 0.0

  def _read(self):
    self.batch = next(self._batches)
    self.rows = sharding.rows(self.batch)
