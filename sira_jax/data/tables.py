# SPDX-License-Identifier: Apache-2.0
"""The rows of a JSONL, CSV, TSV, Parquet or Arrow file, each with its place.

Text is UTF-8; a byte that is not becomes a lone surrogate, which whoever uses
the text can find. A file is read whole, and once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import functools
import io
import json
import pathlib
from typing import Any, NamedTuple

from etils import epath
import tensorflow as tf


class Record(NamedTuple):
  """One row of a file.

  Attributes:
    place: where it is, such as "line 3".
    values: by column.
    fault: why it has no values; "" if it has.
  """

  place: str
  values: Mapping[str, Any]
  fault: str = ""


def read(path: str, *, header: Sequence[str] = ()) -> Iterator[Record]:
  """The rows of a file whose name ends as a key of `FORMATS` does.

  `path` may be any that `etils.epath` knows, such as gs://bucket/rows.jsonl.
  `header` has the columns of a TSV file whose first line is a row.

  Raises:
    ValueError: the file cannot be read, its format is unknown, or it is so
      broken that no row can be told from the next.
  """
  suffix = pathlib.PurePath(path).suffix.lower()
  if suffix not in FORMATS:
    raise ValueError(
      f"{path} is of an unknown format; a file's name must end in one of"
      f" {', '.join(FORMATS)}."
    )
  try:
    content = epath.Path(path).expanduser().read_bytes()
  except (OSError, ImportError, tf.errors.OpError) as error:
    raise ValueError(
      f"{path} cannot be read: {getattr(error, 'strerror', None) or error}."
      f" The working directory is {pathlib.Path.cwd()}."
    ) from None
  rows = FORMATS[suffix]
  if header and suffix == ".tsv":
    rows = functools.partial(_tsv, header=header)
  try:
    yield from rows(content)
  except _Broken as error:
    raise ValueError(f"{path}, {error}") from None


class _Broken(Exception):
  """A file of which no more rows can be read, with the place."""


def _jsonl(content: bytes) -> Iterator[Record]:
  """An object a line; a line of white space is none."""
  # Not by str.splitlines, which ends lines at U+2028 and the like, too.
  for number, line in enumerate(io.BytesIO(content), 1):
    text, place = _decoded(line), f"line {number}"
    if number == 1:
      text = text.removeprefix("\ufeff")
    if not text.strip():
      continue
    try:
      values = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
      yield Record(place, {}, f"no JSON: {error}")
      continue
    if isinstance(values, dict):
      yield Record(place, values)
    else:
      kind = type(values).__name__
      yield Record(place, {}, f"no JSON object but {kind}")


def _csv(content: bytes) -> Iterator[Record]:
  """RFC 4180: commas, double quotes where needed, names in the first line."""
  return _delimited(content, delimiter=",", strict=True)


def _tsv(content: bytes, *, header: Sequence[str] = ()) -> Iterator[Record]:
  """IANA's: tabs, no quotes (one is text), names in the first line."""
  return _delimited(
    content, header=header, delimiter="\t", quoting=csv.QUOTE_NONE
  )


def _delimited(
  content: bytes, *, header: Sequence[str] = (), **settings: Any
) -> Iterator[Record]:
  csv.field_size_limit(2**31 - 1)  # else 131,072 characters are an error
  text = _decoded(content).removeprefix("\ufeff")
  reader = csv.reader(io.StringIO(text, newline=""), **settings)
  names = list(header) or None
  while True:
    place = f"line {reader.line_num + 1}"
    try:
      cells = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      # Where a quote is not closed, one "row" has swallowed all that follow.
      raise _Broken(f"{place}: {error} in the row that begins here.") from None
    if not cells:
      continue
    if names is None:
      names = _distinct(cells, place)
    elif len(cells) == len(names):
      yield Record(place, dict(zip(names, cells, strict=True)))
    else:
      fault = f"{len(cells)} cells, not {len(names)} as the header"
      yield Record(place, {}, fault)


def _parquet(content: bytes) -> Iterator[Record]:
  """Rows are counted from 1."""

  def table(pyarrow):
    from pyarrow import parquet

    return parquet.read_table(pyarrow.BufferReader(content))

  return _columnar("Parquet", table)


_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def _arrow(content: bytes) -> Iterator[Record]:
  """Arrow IPC: streams, as Hugging Face's datasets saves them, or files."""

  def table(pyarrow):
    from pyarrow import ipc

    is_file = content.startswith(b"ARROW1")
    opened = ipc.open_file if is_file else ipc.open_stream
    with opened(pyarrow.BufferReader(content)) as reader:
      found = reader.read_all()
    # A killed writer leaves whole batches, which pyarrow takes for all.
    if not is_file and not content.endswith(_END_OF_STREAM):
      raise pyarrow.ArrowInvalid("the stream has no end; is the file whole?")
    for column in found.columns:
      _check_offsets(pyarrow, column)
    return found

  return _columnar("Arrow", table)


def _columnar(kind: str, read_table: Callable[[Any], Any]) -> Iterator[Record]:
  """The rows of the table that `read_table` reads with pyarrow."""
  try:
    import pyarrow
  except ModuleNotFoundError:
    raise _Broken(
      f"row 1: {kind} is read with pyarrow, which is not installed: pip install"
      " pyarrow."
    ) from None
  try:
    table = read_table(pyarrow)
    names = _distinct(table.column_names, "row 1")
    columns = [_values(pyarrow, column) for column in table.columns]
  except (pyarrow.ArrowException, OSError) as error:
    raise _Broken(f"row 1: no {kind} that pyarrow reads: {error}") from None
  for number in range(table.num_rows):
    values = [column[number] for column in columns]
    yield Record(f"row {number + 1}", dict(zip(names, values, strict=True)))


def _check_offsets(pyarrow: Any, column: Any) -> None:
  """That values are within the file, which is not checked as it is read."""
  try:
    column.validate(full=True)
  except pyarrow.ArrowInvalid as error:
    if "UTF8" not in str(error):  # whose row `_values` finds
      raise


def _values(pyarrow: Any, column: Any) -> list[Any]:
  try:
    return column.to_pylist()
  except UnicodeDecodeError:
    found = column.cast(pyarrow.large_binary()).to_pylist()
    return [None if one is None else _decoded(one) for one in found]


def _decoded(content: bytes) -> str:
  return content.decode("utf-8", "surrogateescape")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  values = dict(pairs)
  if len(values) != len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the field {twice!r} is there twice")
  return values


def _distinct(names: list[str], place: str) -> list[str]:
  """The names, if they can be told apart."""
  if len(set(names)) != len(names):
    raise _Broken(f"{place}: expected each column once, got {names}.")
  return names


FORMATS = {
  ".jsonl": _jsonl,
  ".csv": _csv,
  ".tsv": _tsv,
  ".parquet": _parquet,
  ".arrow": _arrow,
}
"""How a name ends -> the rows of a file's content."""
