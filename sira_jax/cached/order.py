# SPDX-License-Identifier: Apache-2.0
"""Which example comes when: an endless mixture, shuffled, by index.

The sequence is cut into blocks of `BLOCK` examples. How many of a block are an
entry's is exact: after b blocks, of the n = b * BLOCK examples so far,

    count_i = n_i - floor(n_i * (R_i - r_i) / R_i)    R_i = sum of r_j, j >= i
    n_0 = n, n_{i+1} = n_i - count_i

are the i-th's, as in grain's `MapDataset.mix`, for rates r. Which places of the
block are whose is random. An entry's examples come in a random permutation of
all of them, then in another. All of it is a function of the seed and the
index: nothing has to be read, or to have been read, to know example n. grain's
shuffle and mix are as well, but were measured to take some 40 us an example;
this, 1 us.
"""

from collections.abc import Sequence
import functools

import numpy as np

BLOCK = 1024
# Rates as whole numbers: a share is exact to a millionth.
_PARTS = 2**20


def permutation(size: int, *keys: int) -> np.ndarray:
  """0 to size - 1 in an order that depends on the keys only.

  Of raw bits, for numpy may change what its generators make of them.
  """
  bits = np.random.PCG64(np.random.SeedSequence(keys)).random_raw(size)
  return np.argsort(bits, kind="stable")


class Order:
  """The endless sequence of examples that a mixture is.

  Args:
    entries: the numbers of each entry's examples; none is empty.
    rates: of the entries, positive.
    seed: of the order.
  """

  def __init__(
    self,
    entries: Sequence[np.ndarray],
    rates: Sequence[float],
    *,
    seed: int,
  ):
    self._entries = entries
    whole = sum(rates)
    self._rates = [max(1, round(rate / whole * _PARTS)) for rate in rates]
    self._seed = seed % 2**64
    self.block = functools.lru_cache(maxsize=8)(self._block)
    self._epoch = functools.lru_cache(maxsize=2 * len(entries))(self._shuffled)

  def __call__(self, start: int, stop: int) -> np.ndarray:
    """The examples from position `start` to before `stop`."""
    first, last = start // BLOCK, -(-stop // BLOCK)
    found = [self.block(number) for number in range(first, last)]
    if not found:
      return np.zeros(0, np.int64)
    at = first * BLOCK
    return np.concatenate(found)[start - at : stop - at]

  def counts(self, examples: int) -> list[int]:
    """How many of the first `examples` are each entry's, to a block."""
    found, left = [], sum(self._rates)
    for rate in self._rates:
      others = examples * (left - rate) // left
      found.append(examples - others)
      examples, left = others, left - rate
    return found

  def _block(self, number: int) -> np.ndarray:
    begun = self.counts(number * BLOCK)
    ended = self.counts((number + 1) * BLOCK)
    spans = list(zip(begun, ended, strict=True))
    owners = np.repeat(
      range(len(spans)), [stop - start for start, stop in spans]
    )
    owners = owners[permutation(BLOCK, self._seed, 1, number)]
    found = np.empty(BLOCK, np.int64)
    # Each entry's in turn, or its epochs would run into each other.
    found[np.argsort(owners, kind="stable")] = np.concatenate(
      [self._taken(entry, *span) for entry, span in enumerate(spans)]
    )
    return found

  def _taken(self, entry: int, start: int, stop: int) -> np.ndarray:
    """The examples that an entry gives as its `start`-th to `stop`-th."""
    size = len(self._entries[entry])
    found = []
    while start < stop:
      epoch, at = divmod(start, size)
      end = min(size, at + stop - start)
      found.append(self._epoch(entry, epoch)[at:end])
      start += end - at
    return np.concatenate([*found, np.zeros(0, np.int64)])

  def _shuffled(self, entry: int, epoch: int) -> np.ndarray:
    examples = self._entries[entry]
    order = permutation(len(examples), self._seed, 2, entry, epoch)
    return examples[order].astype(np.int64)
