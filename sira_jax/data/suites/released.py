# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a suite's task in a folder, and reads their rows.

A split `train` of the task in `place` may be

    place/train.jsonl                        or .csv, .tsv, .parquet, .arrow
    place/train-00000-of-00002.parquet ...   as the Hugging Face hub shows it
    place/train/0000.parquet ...             as it converts it
    place/train/data-00000-of-00002.arrow    as its datasets saves it to a disk
    place/train/sw.jsonl                     where its name is train/{language}

or of a data set that TFDS prepared in the folder.
"""

from collections.abc import Iterator, Sequence
import re
from typing import Any

from etils import epath
import numpy as np

from sira_jax.data import quiet, tables
from sira_jax.data.suites import forms


def find(
  task: forms.Task, folder: str, *, names: Sequence[str], language: str
) -> list[str]:
  """The files of the split that may be called one of `names`, in order.

  What TFDS prepared is one "file", `<folder>/<version>#<split>`. None if there
  is none.

  Raises:
    ValueError: if there are several to choose from, or not all shards.
  """
  root = epath.Path(folder).expanduser()
  for place in task.places:
    where = root / place.format(language=language)
    for name in (name.format(language=language) for name in names):
      found = _alone(where, name) or _shards(where, name)
      if found:
        return found
  return _prepared(task, root, names, language)


def _alone(where: epath.Path, name: str) -> list[str]:
  found = [
    str(where / f"{name}{ending}")
    for ending in tables.FORMATS
    if (where / f"{name}{ending}").is_file()
  ]
  if len(found) > 1:
    raise ValueError(f"Expected one file for {name}, got {', '.join(found)}.")
  return found


def _shards(where: epath.Path, name: str) -> list[str]:
  """Those of a folder, or beside each other with their number in the name."""
  for ending in tables.FORMATS:
    if (where / name).is_dir():
      # Beside "data" there may be what datasets keeps for itself.
      found = _numbered(where / name, "data", ending)
      found = found or sorted(map(str, (where / name).glob(f"*{ending}")))
    else:
      found = _numbered(where, name, ending)
    if found:
      return found
  return []


def _numbered(where: epath.Path, name: str, ending: str) -> list[str]:
  found = sorted(map(str, where.glob(f"{name}-*-of-*{ending}")))
  numbers = {int(re.findall(r"-of-(\d+)", path)[-1]) for path in found}
  if found and numbers != {len(found)}:
    raise ValueError(
      f"{where} has {len(found)} of the {max(numbers)} files of {name}:"
      f" {', '.join(path.rpartition('/')[2] for path in found)}."
    )
  return found


def _prepared(task, root, names, language) -> list[str]:
  if not task.tfds:
    return []
  infos = (root / task.tfds.format(language=language)).glob(
    "*/dataset_info.json"
  )
  versions = {
    tuple(map(int, info.parent.name.split("."))): info.parent
    for info in infos
    if re.fullmatch(r"[\d.]+", info.parent.name)
  }
  if not versions:
    return []
  newest = versions[max(versions)]
  have = _builder(str(newest)).info.splits
  return [f"{newest}#{name}" for name in names if name in have][:1]


def read(task: forms.Task, path: str) -> Iterator[tables.Record]:
  """The rows of a file that `find` found.

  Raises:
    ValueError: as `tables.read`.
  """
  if "#" in path.rpartition("/")[2]:
    where, _, split = path.rpartition("#")
    yield from _rows(_builder(where), split)
  else:
    yield from tables.read(path, header=task.header)


def _builder(where: str) -> Any:
  import tensorflow_datasets as tfds  # a second that others need not wait

  with quiet.logs():
    return tfds.builder_from_directory(where)


def _rows(builder: Any, split: str) -> Iterator[tables.Record]:
  with quiet.logs():
    rows = builder.as_dataset(split=split, shuffle_files=False)
  for number, row in enumerate(rows.as_numpy_iterator(), 1):
    yield tables.Record(f"example {number}", _value(row))


def _value(value: Any) -> Any:
  """As Python has it: text, numbers, lists and dicts."""
  match value:
    case dict():
      return {key: _value(one) for key, one in value.items()}
    case bytes():
      return value.decode("utf-8", "surrogateescape")
    case np.ndarray():
      return [_value(one) for one in value.tolist()]
    case np.generic():
      return value.item()
  return value
