# SPDX-License-Identifier: Apache-2.0
"""What devices exchange in a compiled program, read from its HLO text."""

from collections.abc import Iterator
import dataclasses
import math
import re

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_OPCODE = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_INTEGER = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b(pred|bf16|token|[a-z]+\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """Those of one kind, in one step of one device.

  Attributes:
    kind: one of `KINDS`.
    count: how often it runs, turns of loops included.
    bytes: of all their results on one device.
  """

  kind: str
  count: int
  bytes: int


def collectives(text: str) -> tuple[Collective, ...]:
  """Those of a compiled program, the one with the most bytes first.

  What stands in the body of a loop counts once a turn, if the text says how
  many turns there are, and else once. Both branches of a conditional count.
  An asynchronous collective counts where it starts; one that XLA:TPU has cut
  into fusions (equal channel ids in one loop) counts once.

  Args:
    text: `compiled.as_text()`, the HLO of one device.
  """
  computations = _computations(text)
  found = {}
  seen = set()
  for name, turns in _turns(computations).items():
    for line in computations[name]:
      match = _OPCODE.search(line)
      if not match:
        continue
      channel = _CHANNEL.search(line)
      if channel and (channel[1], turns) in seen:
        continue
      if channel:
        seen.add((channel[1], turns))
      count, size = found.get(match[1], (0, 0))
      result = line[: match.start()].partition(" = ")[2]
      own = _size(result, started=bool(match[2]), kind=match[1])
      found[match[1]] = (count + turns, size + turns * own)
  every = [Collective(kind, *numbers) for kind, numbers in found.items()]
  return tuple(sorted(every, key=lambda one: -one.bytes))


def _computations(text: str) -> dict[str, list[str]]:
  """name -> lines; the program's own is named "ENTRY"."""
  found, lines = {}, []
  for line in text.splitlines():
    match = _COMPUTATION.match(line)
    if match:
      lines = found["ENTRY" if match[1] else match[2]] = []
    lines.append(line)
  return found


def _turns(computations) -> dict[str, int]:
  """How often each computation that the program reaches runs in a step."""
  turns = {}

  def visit(name, times):
    if name in turns or name not in computations:
      return
    turns[name] = times
    for line in computations[name]:
      loop = _WHILE.search(line)
      inside = (
        times * _trips(line, computations.get(loop[1], ())) if loop else 0
      )
      for called in _called(line):
        visit(called, inside or times)

  visit("ENTRY", 1)
  return turns


def _called(line: str) -> Iterator[str]:
  for one, several in _CALLED.findall(line):
    if one:
      yield one
    yield from re.findall(r"[\w.\-]+", several)


def _trips(line: str, condition) -> int:
  """A loop's turns: said beside it, or the one number that it counts up to."""
  known = _KNOWN.search(line)
  if known:
    return int(known[1])
  limits = [int(n) for line in condition for n in _INTEGER.findall(line)]
  less = any("direction=LT" in line for line in condition)
  return limits[0] if less and len(limits) == 1 else 1


def _size(result: str, *, started: bool, kind: str) -> int:
  """Bytes of an instruction's result, an array or a tuple of arrays."""
  arrays = [_bytes(*array) for array in _ARRAY.findall(result)]
  if started and kind in ("all-gather", "collective-permute"):
    # (operands, results, contexts of 4 bytes); other starts have results alone.
    arrays = [array for array in arrays if array > 4]
    arrays = arrays[len(arrays) // 2 :]
  return sum(arrays)


def _bytes(dtype: str, shape: str) -> int:
  """Of an array as XLA writes it: f32[2,3] has 24."""
  digits = re.search(r"\d+", dtype)
  bits = 8 if dtype == "pred" else int(digits[0]) if digits else 0
  return math.ceil(
    math.prod(map(int, filter(None, shape.split(",")))) * bits / 8
  )
