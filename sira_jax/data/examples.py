# SPDX-License-Identifier: Apache-2.0
"""What a task's rows are and which split each belongs to.

All is decided by hashes of text, never by Python's `hash`, so that every
process on every machine has the same rows in the same order.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
from typing import NamedTuple

SPLITS = ("train", "validation", "test")


class Example(NamedTuple):
  """One row: the prompt and the text that is to follow it."""

  inputs: str
  targets: str


Rows = Mapping[str, tuple[Example, ...]]
"""The examples of a task in one language, by split."""


def digest(*parts: object) -> int:
  """A 64-bit hash of the parts' texts."""
  text = "\x1f".join(str(part) for part in parts)
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def split_of(key: str) -> str:
  """The split of what is known by `key`: train 80 %, the others 10 % each."""
  tenth = digest("split", key) % 10
  return {8: "validation", 9: "test"}.get(tenth, "train")


def shuffled(
  examples: Iterable[Example], *, seed: int = 0
) -> tuple[Example, ...]:
  """The examples in an order that depends on their text and `seed` only."""
  return tuple(sorted(examples, key=lambda row: (digest(seed, *row), row)))


def few(examples: Sequence[Example], limit: int) -> tuple[Example, ...]:
  """At most `limit` of the examples, in their order.

  Which ones depends on their text only, and those of a smaller limit are among
  those of a larger.
  """
  ranked = sorted(
    range(len(examples)),
    key=lambda i: (digest("few", *examples[i]), examples[i], i),
  )
  return tuple(examples[i] for i in sorted(ranked[:limit]))
