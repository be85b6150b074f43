# SPDX-License-Identifier: Apache-2.0
"""Which examples share a row: as many as follow one another and fit.

Where row r begins depends on all before it, of which nothing but the lengths is
needed. They are added up in numpy, about a million examples a second, so that a
run that goes on finds its place without reading what it has seen.
"""

from collections.abc import Callable
import threading

import numpy as np

_FEWEST, _MOST = 2**12, 2**17


class Packed:
  """Where the rows of an endless sequence of examples begin.

  Args:
    sizes: (start, stop) -> what the examples from `start` to before `stop`
      take of each limit, [examples limits]; none takes more than there is.
    limits: of a row.
  """

  def __init__(
    self, sizes: Callable[[int, int], np.ndarray], limits: np.ndarray
  ):
    self._sizes, self._limits = sizes, limits
    self._begin = [0]  # of each row that is known, and of the next
    self._step = _FEWEST
    self._lock = threading.Lock()  # grain reads in threads

  def __call__(self, start: int, stop: int) -> list[int]:
    """Where rows `start` to `stop` begin, both included."""
    with self._lock:
      while len(self._begin) <= stop:
        self._extend()
      return self._begin[start : stop + 1]

  def _extend(self) -> None:
    """Adds the rows that the next examples fill."""
    first = self._begin[-1]
    sizes = self._sizes(first, first + self._step)
    following = np.full(len(sizes), len(sizes))
    for column, limit in zip(sizes.T, self._limits, strict=True):
      total = np.concatenate([[0], np.cumsum(column)])
      fitting = np.searchsorted(total, total[:-1] + limit, side="right") - 1
      following = np.minimum(following, fitting)
    # What is not followed by an example that does not fit is not full yet.
    row, following = following[0], following.tolist()
    while row < len(following):
      self._begin.append(first + row)
      row = following[row]
    self._step = min(2 * self._step, _MOST)
