# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: what they say is not trusted, and slices are read alone.

    length    of the header, 8 bytes, little-endian
    header    JSON: name -> dtype, shape, [begin, end) of its data from here
    data      each tensor's, one after the other

Every size and offset is compared with the file before anything of that size
is made, tensors may neither overlap nor leave bytes between them, and the data
itself stays in the file until a slice of it is asked for.

A folder of several such files has an index, which says where each tensor is.

Source: the README of github.com/huggingface/safetensors, "Format".
"""

import collections
from collections.abc import Mapping
import json
import math
import mmap
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

PathLike = str | os.PathLike[str]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HEADER = 100_000_000  # bytes, as in the library
_DIMENSIONS = 8
_DTYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": jnp.dtype(jnp.bfloat16),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("<i1"),
  "U8": np.dtype("<u1"),
}
# A name, not a path.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")


def read(path: PathLike) -> dict[str, np.ndarray]:
  """Name -> tensor, which stays in the file.

  Raises:
    ValueError: it is no complete and consistent safetensors file.
  """
  try:
    return _tensors(_memory(path))
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(
      f"{path}: expected a complete safetensors file: {error}"
    ) from error


def files(folder: PathLike) -> list[pathlib.Path]:
  """The weight files of a folder: model.safetensors, or what its index names.

  Raises:
    ValueError: there are none, or the index is not one.
  """
  folder = pathlib.Path(folder)
  if (folder / SINGLE).is_file():
    return [folder / SINGLE]
  if not (folder / INDEX).is_file():
    found = sorted(path.name for path in folder.glob("*"))
    raise ValueError(
      f"{folder}: expected {SINGLE} or {INDEX}, found {found[:20]}. Weights of"
      " another format (a .bin can run code when it is read) are converted by"
      " transformers: AutoModel...from_pretrained(...).save_pretrained(...)."
    )
  return [folder / name for name in sorted(set(_index(folder).values()))]


def write(
  path: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  *,
  torch: bool = False,
) -> None:
  """Writes a safetensors file that whoever may read the folder may read.

  Args:
    path: of the file.
    tensors: by name.
    torch: say that it is a PyTorch model's, as Hugging Face's readers want.
  """
  metadata = {"format": "pt"} if torch else None
  safetensors.save_file(dict(tensors), path, metadata=metadata)
  path.chmod(0o644)  # the library leaves it to its owner alone


def forget(tensor: np.ndarray) -> None:
  """Has a tensor's file give back the memory that reading it has taken.

  What was read stays in the system's cache as long as there is room; without
  this it would count as this process's memory for as long as the file is open.
  """
  owner = tensor
  while owner is not None and not isinstance(owner, mmap.mmap):
    owner = getattr(owner, "base", None)
  if owner is not None:
    owner.madvise(mmap.MADV_DONTNEED)


def read_folder(folder: PathLike) -> dict[str, np.ndarray]:
  """Name -> tensor, of all the folder's weight files.

  Raises:
    ValueError: as `read` and `files`; or the index and the files disagree.
  """
  folder = pathlib.Path(folder)
  paths = files(folder)
  if paths == [folder / SINGLE]:
    return read(paths[0])
  places, tensors, problems = _index(folder), {}, []
  for path in paths:
    for name, tensor in read(path).items():
      if places.get(name) != path.name:
        said = places.get(name, "nowhere")
        problems.append(f"{name[:100]} is in {path.name}, said to be {said}")
      tensors[name] = tensor
  problems += [
    f"{name[:100]} is not in {place}"
    for name, place in places.items()
    if name not in tensors
  ]
  if problems:
    raise ValueError(
      f"{folder / INDEX}: it is not the index of these files:\n  "
      + "\n  ".join(problems)
    )
  return tensors


def read_json(path: PathLike) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    ValueError: it cannot be read, is no object, or says something twice.
  """
  try:
    return _object(pathlib.Path(path).read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f"{path}: expected a JSON object: {error}") from error


def _object(text: bytes) -> dict[str, Any]:
  found = json.loads(str(text, "utf-8"), object_pairs_hook=_once)
  if type(found) is not dict:
    raise ValueError(f"it holds a {type(found).__name__}")
  return found


def _once(pairs):
  found = dict(pairs)
  if len(found) < len(pairs):
    ((twice, _),) = collections.Counter(n for n, _ in pairs).most_common(1)
    raise ValueError(f"it says {twice[:100]!r} twice")
  return found


def _index(folder):
  """Tensor -> name of its file."""
  path = folder / INDEX
  places = read_json(path).get("weight_map")
  if type(places) is not dict or not places:
    raise ValueError(f"{path}: expected a weight_map of tensors to files.")
  for place in places.values():
    if type(place) is not str or not _FILE.fullmatch(place):
      raise ValueError(
        f"{path}: expected names of .safetensors files beside it, got"
        f" {str(place)[:100]!r}."
      )
  for place in set(places.values()):
    if not (folder / place).is_file():
      raise ValueError(f"{path}: there is no {place[:100]} beside it.")
  return places


def _memory(path) -> np.ndarray:
  if os.path.getsize(path) < 8:
    raise ValueError("it ends before its header")
  # As a plain array, of which slices cost less than of a memmap.
  return np.asarray(np.memmap(path, np.uint8, mode="r"))


def _tensors(memory):
  size = int.from_bytes(memory[:8].tobytes(), "little")
  if size > min(len(memory) - 8, _HEADER):
    raise ValueError(
      f"its header is said to have {size} bytes; it may have {_HEADER}, and"
      f" {len(memory) - 8} are there"
    )
  header = _object(memory[8 : 8 + size].tobytes())
  header.pop("__metadata__", None)  # Texts for people.
  data, end, tensors = memory[8 + size :], 0, {}
  places = {name: _place(name, entry) for name, entry in header.items()}
  for name, (dtype, shape, begin, stop) in sorted(
    places.items(), key=lambda item: item[1][2:]
  ):
    width = math.prod(shape) * dtype.itemsize
    if begin != end or stop - begin != width or stop > len(data):
      raise ValueError(
        f"the tensor {name[:100]!r} of {width} bytes is said to be at"
        f" [{begin}, {stop}) of {len(data)}, of which the first {end} are taken"
      )
    tensors[name] = data[begin:stop].view(dtype).reshape(shape)
    end = stop
  if end != len(data):
    raise ValueError(f"{len(data) - end} of its bytes belong to no tensor")
  return {name: tensors[name] for name in header}


def _place(name, entry):
  """(dtype, shape, begin, end), of the right types at least."""
  if type(entry) is not dict or entry.keys() != {
    "dtype",
    "shape",
    "data_offsets",
  }:
    raise ValueError(
      f"the tensor {name[:100]!r} is described by {entry!r:.100}, not by dtype,"
      " shape and data_offsets"
    )
  dtype, shape, offsets = (
    entry[key] for key in ("dtype", "shape", "data_offsets")
  )
  if type(dtype) is not str or dtype not in _DTYPES:
    raise ValueError(
      f"the tensor {name[:100]!r} is of dtype {dtype!r:.100}; known are"
      f" {', '.join(_DTYPES)}"
    )
  if not (_sizes(shape, range(_DIMENSIONS + 1)) and _sizes(offsets, [2])):
    raise ValueError(
      f"the tensor {name[:100]!r} is said to be of shape {shape!r:.100} at"
      f" {offsets!r:.100}"
    )
  return _DTYPES[dtype], tuple(shape), *offsets


def _sizes(found, counts):
  return (
    type(found) is list
    and len(found) in counts
    and all(type(n) is int and 0 <= n < 2**48 for n in found)
  )
