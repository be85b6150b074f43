# SPDX-License-Identifier: Apache-2.0
"""Answers of an evaluation, kept as they come, so that none is asked twice.

Decoding a large test set takes hours, and a run may be stopped in them. So the
answers of each batch are a line of a file in the run's folder, and the same
evaluation, begun again, asks only for the rest. What holds:

- The rest is asked in the batches in which it would have been, so that scores
  and answers are those of an evaluation that was never interrupted, bit for bit
  on the same devices. Every prompt has one answer.
- The file's first line says of what weights and what question its answers are:
  the base, checksums of the adapters, the data, the prompts and the settings of
  decoding. A file of others is discarded, and that is said.
- A line has its own checksum. One that is damaged, such as the half line of a
  process that was killed, is dropped, and its prompts are asked again.
- Where routing statistics are gathered, a line has what routers reported of its
  prompts, too, so that statistics are never of the rest alone.
- Of several processes the first reads and writes the file, and tells the others
  what is in it, so that all ask the same. Their number may be another one when
  an evaluation is continued.
- The file goes when what it was for is written (`storage.remove`).

On a disk a line is in the file at once, and outlives the machine after half a
minute; an object in a bucket is written every half a minute.
"""

import base64
from collections.abc import Mapping, Sequence
import hashlib
import io
import json
import time
from typing import Any
import zlib

from flax import nnx
import numpy as np

from sira_jax import analysis, checksums, distributed, storage
from sira_jax.adapters import records, variables

# Seconds from one `storage.Lines.sync` to the next.
_SYNC = 30


def key(
  model: nnx.Module, sets: Sequence[Any], **settings: Any
) -> dict[str, Any]:
  """Of what weights and what question answers are.

  Args:
    model: whose trained arrays, and what is saved with them, are summed up.
    sets: with `task`, `language`, `inputs` and `choices`.
    settings: all else that answers depend on, as JSON has it.
  """
  state = nnx.state(
    model, nnx.Any(variables.Trainable, variables.AdapterConstant)
  )
  asked = [
    [one.task, one.language, list(map(list, one.inputs)), list(one.choices)]
    for one in sets
  ]
  found = {
    "adapters": _digest(checksums.of(state)),
    "prompts": _digest(asked),
    **settings,
  }
  return json.loads(json.dumps(found))  # as it is read again


class KeptAnswers:
  """The answers that a file has, and those that are added to it.

  Args:
    file: that keeps them; may be missing.
    key: see `key`; a file of another one is discarded.
    recorder: is told what the file's prompts had reported, if any is to be.

  Attributes:
    answers: of each prompt that has one, by its number.
  """

  def __init__(
    self,
    file: storage.Path,
    key: Mapping[str, Any],
    *,
    recorder: analysis.Recorder | None = None,
  ):
    self.answers: dict[int, str] = {}
    self._recorder, self._reported = recorder, None
    lines = distributed.told(
      "\n".join(_lines(file, key)) if distributed.first() else ""
    ).splitlines()
    for line in lines:
      self._take(_read(line))
    if lines:
      print(f"{len(self.answers)} answers are kept already.", flush=True)
    self._lines = storage.Lines(file, [_line({"key": key}), *lines])
    self._synced = time.monotonic()

  def record(self, numbers: Sequence[int], reports: records.Recorded) -> None:
    """Tells the recorder, and keeps it with the answers that come next."""
    self._reported = self._recorder.part(numbers, reports)
    self._recorder(*self._reported)

  def add(self, numbers: Sequence[int], answers: Sequence[str]) -> None:
    """Keeps the answers of the prompts that have these numbers."""
    self.answers.update(zip(numbers, answers, strict=True))
    line = {"numbers": list(numbers), "answers": list(answers)}
    if self._reported is not None:
      line |= {"reported": _packed(*self._reported)}
    self._reported = None
    self._lines.append(_line(line))
    if time.monotonic() - self._synced > _SYNC:
      self._lines.sync()
      self._synced = time.monotonic()

  def close(self) -> None:
    """Closes the file, which stays."""
    self._lines.close()

  def _take(self, line):
    self.answers.update(zip(line["numbers"], line["answers"], strict=True))
    if self._recorder is not None:
      self._recorder(*_unpacked(line["reported"]))


def _lines(file, key):
  """The lines of answers that a file has; none if they are of another key."""
  first, *others = storage.text(file).splitlines() or [""]
  found = _read(first)
  if found is None or found.get("key") != key:
    if first:
      print(f"Discarded {file.name}: {_other(found, key)}.", flush=True)
    return []
  return [line for line in others if _read(line) is not None]


def _other(found, key):
  if found is None or "key" not in found:
    return "it cannot be read"
  names = sorted({**found["key"], **key})
  changed = [n for n in names if found["key"].get(n) != key.get(n)]
  return f"its answers are of other {', '.join(changed)}"


def _line(values):
  """Of letters of ASCII, so that its end is the only one."""
  return json.dumps({**values, "crc32": _crc32(values)})


def _read(line):
  """What `_line` was given; None where the line is damaged."""
  try:
    found = json.loads(line)
    return found if found.pop("crc32") == _crc32(found) else None
  except (ValueError, TypeError, KeyError, AttributeError):
    return None


def _crc32(values):
  return zlib.crc32(json.dumps(values).encode())


def _packed(numbers, reports):
  """What routers reported, as JSON has it: {} of no prompt."""
  if not numbers:
    return {}
  stream = io.BytesIO()
  arrays = {
    f"{i}.{field}": values
    for i, fields in enumerate(reports.values())
    for field, values in fields.items()
  }
  np.savez_compressed(stream, **arrays)
  return {
    "numbers": list(numbers),
    "layers": [list(names) for names in reports],
    "values": base64.b64encode(stream.getvalue()).decode(),
  }


def _unpacked(packed):
  """The numbers of prompts, and what routers reported of them."""
  if not packed:
    return [], {}
  content = io.BytesIO(base64.b64decode(packed["values"], validate=True))
  with np.load(content, allow_pickle=False) as found:
    reports = {
      tuple(names): {field: found[f"{i}.{field}"] for field in records.FIELDS}
      for i, names in enumerate(packed["layers"])
    }
  return packed["numbers"], reports


def _digest(what):
  return hashlib.sha256(json.dumps(what).encode()).hexdigest()
