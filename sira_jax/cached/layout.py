# SPDX-License-Identifier: Apache-2.0
"""What a cache's folder holds, and how it is written and read.

    cache.json              what it was made of, and the size and the sha256 of
                            every other file; the last to be written
    evaluation.json         what is decoded and scored, what is remembered, and
                            what checkpoints are chosen by
    TASK_LANGUAGE.array_record    a record an example
    TASK_LANGUAGE.npy       tokens of its inputs, and of its targets, uint32
                            [examples 2]

A record is the number of its inputs' ids in 4 bytes, then these ids and those
of its targets with their end, each in 2 bytes or 4, as `ids` in cache.json
says; the lowest byte first. With a head, a target is one id: its label's
number, from 1. An encoder's inputs have their end added when they are read.
"""

from collections.abc import Mapping, Sequence
import hashlib
import io
import json
from typing import Any

from array_record.python import array_record_module
from etils import epath
import numpy as np

from sira_jax import local_copies, metrics, run_data

FORMAT = 2
MANIFEST = "cache.json"
EVALUATION = "evaluation.json"
# What cache.json has, beside its format.
KEYS = ("config", "encoder", "evaluation", "files", "ids", "labels", "notes")
KEYS += ("numbers", "tokenizer", "train")
_COUNT = np.dtype("<u4")
_IDS = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_CHUNK = 2**24


def place(folder: str) -> epath.Path:
  """The folder to write a cache to.

  Raises:
    ValueError: it is in cloud storage.
  """
  if "://" in folder:
    raise ValueError(
      f"Expected a folder on a disk of this machine to write a cache to, got"
      f" {folder}. Write it to a disk and copy it there; a run reads it there."
    )
  return epath.Path(folder).expanduser()


def on_disk(folder: str) -> epath.Path:
  """The folder of a cache that is there; in cloud storage, of a copy of it.

  Each machine copies it once, whole, since array_record opens files alone.

  Raises:
    ValueError: it cannot be copied.
  """
  if "://" not in folder:
    return place(folder)
  there = epath.Path(folder.rstrip("/"))
  here = local_copies.place(str(there))
  try:
    local_copies.copy(there / MANIFEST, here / MANIFEST)
    for name in _manifest(here)["files"]:
      local_copies.copy(there / name, here / name)
  except (OSError, ImportError, RuntimeError) as error:
    raise ValueError(
      f"The cache in {folder} could not be had: {type(error).__name__}: {error}"
    ) from error
  return epath.Path(here)


def ids_type(vocabulary_size: int) -> str:
  """The smaller of "uint16" and "uint32" that has all ids."""
  return "uint16" if vocabulary_size <= 2**16 else "uint32"


def encode(inputs: Sequence[int], targets: Sequence[int], ids: str) -> bytes:
  """An example's record; see above."""
  count = np.array(len(inputs), _COUNT)
  tokens = np.array([*inputs, *targets], np.int64)
  return count.tobytes() + tokens.astype(_IDS[ids]).tobytes()


def decode(record: bytes, ids: str) -> tuple[np.ndarray, np.ndarray]:
  """Its inputs and targets, of int32 ids."""
  count = int(np.frombuffer(record, _COUNT, count=1)[0])
  tokens = np.frombuffer(record, _IDS[ids], offset=_COUNT.itemsize)
  tokens = tokens.astype(np.int32)
  return tokens[:count], tokens[count:]


def names(entry: run_data.Entry) -> tuple[str, str]:
  """The files of an entry: its records, and their lengths."""
  return f"{entry.name}.array_record", f"{entry.name}.npy"


def write_entry(
  folder: epath.Path,
  entry: run_data.Entry,
  examples: Sequence[tuple[Sequence[int], Sequence[int]]],
  ids: str,
) -> None:
  """Writes an entry's two files; its examples are ids, targets with an end."""
  records, lengths = names(entry)
  # Records are read one by one, in any order.
  writer = array_record_module.ArrayRecordWriter(
    str(folder / records), "group_size:1,uncompressed"
  )
  try:
    for inputs, targets in examples:
      writer.write(encode(inputs, targets, ids))
  finally:
    writer.close()
  content = io.BytesIO()
  np.save(content, np.array([[len(x), len(y)] for x, y in examples], "<u4"))
  (folder / lengths).write_bytes(content.getvalue())


def read_lengths(folder: epath.Path, entry: run_data.Entry) -> np.ndarray:
  """Tokens of its inputs and of its targets, [examples 2]."""
  content = (folder / names(entry)[1]).read_bytes()
  return np.load(io.BytesIO(content)).astype(np.int64)


def write_sets(
  folder: epath.Path,
  sets: Sequence[run_data.EvaluationSet],
  memory: Sequence[run_data.EvaluationSet],
  validation: Sequence[run_data.EvaluationSet],
) -> None:
  """Writes evaluation.json.

  Raises:
    ValueError: a metric that is none of `metrics.METRICS`.
  """
  content = {
    "sets": [_as_json(one) for one in sets],
    "memory": [_as_json(one) for one in memory],
    "validation": [_as_json(one) for one in validation],
  }
  (folder / EVALUATION).write_text(json.dumps(content, ensure_ascii=False))


def read_sets(
  folder: epath.Path,
) -> dict[str, list[run_data.EvaluationSet]]:
  """The arguments that `write_sets` was given."""
  content = json.loads((folder / EVALUATION).read_text())
  return {
    name: [_from_json(one) for one in found] for name, found in content.items()
  }


def _as_json(one: run_data.EvaluationSet) -> dict[str, Any]:
  known = {function: name for name, function in metrics.METRICS.items()}
  lost = [f for f in one.metric_fns if f not in known]
  if lost:
    raise ValueError(
      f"The task {one.task} has the metric"
      f" {getattr(lost[0], '__name__', lost[0])}, which cannot be cached:"
      " reading a cache takes metrics by name, and sira_jax.metrics.METRICS has"
      f" {', '.join(metrics.METRICS)}. Add it there."
    )
  fields = vars(one) | {"metrics": [known[f] for f in one.metric_fns]}
  del fields["metric_fns"]
  return fields


def _from_json(fields: Mapping[str, Any]) -> run_data.EvaluationSet:
  fields = dict(fields)
  named = fields.pop("metrics")
  for name in ("inputs", "targets", "prompts", "choices", "choice_ids"):
    fields[name] = tuple(fields[name])
  return run_data.EvaluationSet(
    **fields, metric_fns=tuple(metrics.METRICS[name] for name in named)
  )


def contents(folder: epath.Path) -> dict[str, dict[str, Any]]:
  """Size and sha256 of every file but cache.json, by name."""
  return {
    file.name: _digest(file)
    for file in sorted(folder.iterdir())
    if file.name != MANIFEST
  }


def _digest(file: epath.Path) -> dict[str, Any]:
  found, size = hashlib.sha256(), 0
  with file.open("rb") as stream:
    while chunk := stream.read(_CHUNK):
      found.update(chunk)
      size += len(chunk)
  return {"size": size, "sha256": found.hexdigest()}


def write_manifest(
  folder: epath.Path, manifest: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes cache.json; returns its content as it will be read."""
  text = json.dumps(manifest, indent=1)
  (folder / MANIFEST).write_text(text)
  return json.loads(text)


def identity(manifest: Mapping[str, Any]) -> str:
  """Hash of all that a cache's data are, but for where they are from."""
  kept = {k: v for k, v in manifest.items() if k not in ("config", "notes")}
  text = json.dumps(kept, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def load(folder: epath.Path) -> dict[str, Any]:
  """The content of cache.json.

  Raises:
    ValueError: there is no cache, it is of another format, or a file of it is
      missing or damaged.
  """
  manifest = _manifest(folder)
  for name, expected in manifest["files"].items():
    file, anew = folder / name, f"Copy the cache again, or write it anew: {HOW}"
    if not file.exists():
      raise ValueError(f"The cache in {folder} lacks its file {name}. {anew}")
    size = file.stat().length
    if size != expected["size"]:
      raise ValueError(
        f"{file} is damaged: expected {expected['size']} bytes, got {size}."
        f" {anew}"
      )
    found = _digest(file)["sha256"]
    if found != expected["sha256"]:
      raise ValueError(
        f"{file} is damaged: expected the sha256 {expected['sha256'][:12]}...,"
        f" got {found[:12]}... {anew}"
      )
  return manifest


HOW = "python -m sira_jax.data.cache --config=CONFIG --out=FOLDER"


def _manifest(folder: epath.Path) -> dict[str, Any]:
  file = folder / MANIFEST
  if not file.exists():
    raise ValueError(
      f"There is no cache in {folder} (no {MANIFEST}). Write it where"
      f" TensorFlow is installed: {HOW}"
    )
  try:
    manifest = json.loads(file.read_text())
    number = manifest["format"]
    if number == FORMAT:  # it has all that is read of it
      _ = [manifest[name] for name in KEYS]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{file} cannot be read: {error}. Write the cache anew: {HOW}"
    ) from None
  if number != FORMAT:
    raise ValueError(
      f"{file} has the format {number!r}, expected {FORMAT}: another version"
      f" of sira_jax wrote it. Write the cache anew: {HOW}"
    )
  return manifest
