# SPDX-License-Identifier: Apache-2.0
"""Reads what a GGUF file consists of, and trusts nothing that it says.

    "GGUF", version, number of tensors, number of entries
    entries   name, type, value
    tensors   name, sizes (the fastest axis first), type, offset
    data      each tensor's, at its offset from here

All little-endian; a text is its number of bytes and UTF-8. Every size, count
and offset is compared with the bytes that are left before anything of that
size is made: what is made here is at most some forty times as large as the
file, and the data itself stays in the file until it is asked for.

Source: ggml's docs/gguf.md, versions 2 and 3. Arrays of arrays, which it
allows and no model's file has, are refused; so are files of the other byte
order.
"""

import dataclasses
import functools
import math
import os
import struct
from typing import Any

import gguf
import numpy as np

PathLike = str | os.PathLike[str]

_REQUIRED: Any = object()

_VERSIONS = (2, 3)
_DIMENSIONS = 4  # ggml has no more
_STRING, _BOOL = gguf.GGUFValueType.STRING, gguf.GGUFValueType.BOOL
_NUMBERS = {
  gguf.GGUFValueType.UINT8: np.dtype("<u1"),
  gguf.GGUFValueType.INT8: np.dtype("<i1"),
  gguf.GGUFValueType.UINT16: np.dtype("<u2"),
  gguf.GGUFValueType.INT16: np.dtype("<i2"),
  gguf.GGUFValueType.UINT32: np.dtype("<u4"),
  gguf.GGUFValueType.INT32: np.dtype("<i4"),
  gguf.GGUFValueType.FLOAT32: np.dtype("<f4"),
  gguf.GGUFValueType.BOOL: np.dtype("<u1"),
  gguf.GGUFValueType.UINT64: np.dtype("<u8"),
  gguf.GGUFValueType.INT64: np.dtype("<i8"),
  gguf.GGUFValueType.FLOAT64: np.dtype("<f8"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
  """One tensor, its numbers still packed.

  Attributes:
    name: unlike any other's.
    tensor_type: how its numbers are packed.
    shape: the fastest axis first; no axis is 0.
    data: in the file, its bytes [rows, bytes of a row].
  """

  name: str
  tensor_type: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  data: np.ndarray


@dataclasses.dataclass(frozen=True)
class File:
  """What a file consists of.

  Attributes:
    entries: name -> a number, a bool, a text, a list of texts, or an array of
      numbers, which stays in the file.
    tensors: in the file's order; no two share a byte.
  """

  entries: dict[str, Any]
  tensors: tuple[Tensor, ...]


def read(path: PathLike) -> File:
  """Reads a file's entries, and where its tensors are.

  Raises:
    ValueError: it is no complete and consistent GGUF file.
    OSError: it cannot be opened.
  """
  # As a plain array, of which slices cost less than of a memmap.
  at = _Cursor(np.asarray(np.memmap(path, np.uint8, mode="r")))
  if at.take(4).tobytes() != b"GGUF":
    raise ValueError("it does not begin with GGUF")
  version = at.number("I")
  if version not in _VERSIONS:
    raise ValueError(f"its version is {version}; known are {_VERSIONS}")
  tensor_count, entry_count = at.number("Q"), at.number("Q")
  entries = {}
  # However many are announced, each takes some of the bytes that are left.
  for _ in range(entry_count):
    name = at.text()
    if name in entries:
      raise ValueError(f"it has two entries {name[:100]!r}")
    entries[name] = _value(at, at.number("I"))
  found = {}
  for _ in range(tensor_count):
    name = at.text()
    if name in found:
      raise ValueError(f"it has two tensors {name[:100]!r}")
    found[name] = _place(at)
  alignment = _alignment(entries)
  at.align(alignment)
  return File(entries, _tensors(at, found, alignment))


class _Cursor:
  """A place in the bytes of a file; never behind their end."""

  def __init__(self, data: np.ndarray):
    self.data, self.place = data, 0

  def take(self, size: int) -> np.ndarray:
    """The next bytes."""
    if size > len(self.data) - self.place:
      raise ValueError(
        f"it ends after {len(self.data)} bytes, and says that {size} follow"
        f" the first {self.place}"
      )
    self.place += size
    return self.data[self.place - size : self.place]

  def number(self, kind: str) -> int:
    """The next number, of one of `struct`'s kinds."""
    (number,) = struct.unpack("<" + kind, self.take(struct.calcsize(kind)))
    return number

  def text(self) -> str:
    """The next text."""
    return str(self.take(self.number("Q")), "utf-8")

  def align(self, alignment: int) -> None:
    """Goes on to the next multiple; perhaps the end, where no data follows."""
    self.place = min(-(-self.place // alignment) * alignment, len(self.data))


def _value(at, kind):
  """The entry's value that comes next."""
  if kind == _STRING:
    return at.text()
  if kind == gguf.GGUFValueType.ARRAY:
    kind, count = at.number("I"), at.number("Q")
    if kind == _STRING:
      return [at.text() for _ in range(count)]
    return _numbers(at, kind, count)
  return _numbers(at, kind, 1)[0].item()


def _numbers(at, kind, count):
  if kind not in _NUMBERS:
    raise ValueError(
      f"it has an entry of type {kind}; known are texts, numbers, and arrays"
      " of one of them"
    )
  values = at.take(count * _NUMBERS[kind].itemsize).view(_NUMBERS[kind])
  if kind != _BOOL:
    return values
  if (values > 1).any():
    raise ValueError("it has a bool that is neither 0 nor 1")
  return values.view(np.bool_)


def _place(at):
  """(shape, type, offset) of the tensor that comes next."""
  dimensions = at.number("I")
  if dimensions > _DIMENSIONS:
    raise ValueError(f"it has a tensor of {dimensions} axes")
  shape = tuple(at.number("Q") for _ in range(dimensions))
  if 0 in shape:
    raise ValueError(f"it has a tensor of shape {shape}")
  # Of an unknown type, ValueError.
  return shape, gguf.GGMLQuantizationType(at.number("I")), at.number("Q")


def _alignment(entries):
  alignment = entries.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
  if type(alignment) is not int or alignment < 1 or alignment % 8:
    raise ValueError(
      "its general.alignment must be a multiple of 8, got"
      f" {str(alignment)[:100]}"
    )
  return alignment


def _tensors(at, found, alignment):
  """The tensors in what follows the cursor.

  That no two overlap keeps their sum within the file.
  """
  data, made = at.data[at.place :], {}
  end = 0
  for name, (shape, kind, offset) in sorted(
    found.items(), key=lambda item: item[1][2]
  ):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns, *others = shape or (1,)
    if columns % block:
      raise ValueError(
        f"rows of {columns} numbers of the tensor {name[:100]!r} are no blocks"
        f" of {block}, as {kind.name} packs them"
      )
    rows, width = math.prod(others), columns // block * size
    if offset < end or rows * width > len(data) - offset or offset % alignment:
      raise ValueError(
        f"the tensor {name[:100]!r} is said to have {rows * width} bytes from"
        f" {offset}; those from {end} to {len(data)} are free"
      )
    end = offset + rows * width
    packed = data[offset:end].reshape(rows, width)
    made[name] = Tensor(name, kind, shape, packed)
  return tuple(made[name] for name in found)


def opened(path: PathLike) -> File:
  """The file, read once while it does not change.

  Raises:
    ValueError: it cannot be read, or is no complete GGUF file.
  """
  try:
    stat = os.stat(path)
    return _read(os.fspath(path), stat.st_size, stat.st_mtime_ns)
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{path}: expected a complete GGUF file: {error}"
    ) from error


# A program asks for the sizes, the weights and the tokenizer in turn.
@functools.lru_cache(maxsize=1)
def _read(path: str, size: int, mtime_ns: int) -> File:
  del size, mtime_ns  # A changed file is another one.
  return read(path)


def entry(
  path: PathLike, name: str, kind: type, default: Any = _REQUIRED
) -> Any:
  """A metadata entry of this type; without a default it must be there.

  Raises:
    ValueError: it is not there, or of another type.
  """
  entries = opened(path).entries
  if name not in entries and default is _REQUIRED:
    raise ValueError(f"{path}: expected a metadata entry {name}, found none.")
  value = entries.get(name, default)
  if name in entries and type(value) is not kind:
    raise ValueError(
      f"{path}: expected the metadata entry {name} to be of type"
      f" {kind.__name__}, got {type(value).__name__}."
    )
  return value
