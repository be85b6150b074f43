# SPDX-License-Identifier: Apache-2.0
"""Which examples share an unpacked batch: as they come, those of one bucket.

A batch is of `batch_size` examples whose lengths lie between the same two
`buckets`; batches follow one another as they become full. Which is which
depends on all examples before, of which nothing but the lengths is needed, as
in `packing`.
"""

from collections.abc import Callable, Sequence
import threading

import numpy as np

_FEWEST, _MOST = 2**12, 2**17


class Bucketed:
  """An endless sequence of examples in another order: batch by batch.

  Args:
    examples: (start, stop) -> the numbers of the examples from place `start` to
      before `stop` of the sequence, [examples].
    sizes: of those numbers, the tokens of each.
    buckets: lengths, the smallest first; what is longer than the last is a
      bucket, too.
    batch_size: examples of a batch.
  """

  def __init__(
    self,
    examples: Callable[[int, int], np.ndarray],
    sizes: Callable[[np.ndarray], np.ndarray],
    *,
    buckets: Sequence[int],
    batch_size: int,
  ):
    self._examples, self._sizes = examples, sizes
    self._buckets, self._batch_size = np.asarray(buckets), batch_size
    self._batches: list[np.ndarray] = []
    empty = np.zeros((2, 0), np.int64)  # places and numbers of examples
    self._waiting = [empty] * (len(buckets) + 1)
    self._read, self._step = 0, _FEWEST
    self._lock = threading.Lock()  # grain reads in threads

  def __call__(self, batch: int) -> np.ndarray:
    """The numbers of a batch's examples."""
    with self._lock:
      while len(self._batches) <= batch:
        self._extend()
      return self._batches[batch]

  def _extend(self) -> None:
    """Adds the batches that the next examples fill."""
    places = np.arange(self._read, self._read + self._step)
    numbers = self._examples(self._read, self._read + self._step)
    found = np.stack([places, numbers])
    bucket = np.searchsorted(self._buckets, self._sizes(numbers))
    full = []
    for one, waiting in enumerate(self._waiting):
      own = np.concatenate([waiting, found[:, bucket == one]], axis=1)
      count = own.shape[1] // self._batch_size * self._batch_size
      full.append(own[:, :count].reshape(2, -1, self._batch_size))
      self._waiting[one] = own[:, count:]
    places, numbers = np.concatenate(full, axis=1)
    # In the order in which their last examples came.
    self._batches += list(numbers[np.argsort(places[:, -1])])
    self._read += self._step
    self._step = min(2 * self._step, _MOST)
