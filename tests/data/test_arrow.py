# SPDX-License-Identifier: Apache-2.0
"""Arrow's files, as Hugging Face's datasets leaves them on a disk."""

import datetime
import io
import json

import numpy as np
import pyarrow
from pyarrow import ipc, parquet
import pytest

from sira_jax.data import files, tables

ROWS = [
  {
    "text": f"Nr. {i}, «so»\n",
    "stars": None if i % 7 == 3 else i,
    "good": i % 2 == 0,
    "words": ["a"] * (i % 3),
    "answers": {"text": [str(i)], "start": [i]},
  }
  for i in range(25)
]


def stream(table, *, size=10):
  """As `save_to_disk` writes it: batches in the IPC stream format."""
  # What datasets keeps of a column's features is in the schema.
  table = table.replace_schema_metadata({"huggingface": '{"info": {}}'})
  sink = io.BytesIO()
  with ipc.RecordBatchStreamWriter(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=size)
  return sink.getvalue()


def file(table, *, size=10):
  sink = io.BytesIO()
  with ipc.RecordBatchFileWriter(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=size)
  return sink.getvalue()


def as_parquet(table):
  sink = io.BytesIO()
  parquet.write_table(table, sink)
  return sink.getvalue()


FORMS = {"stream": stream, "file": file}


@pytest.fixture
def written(tmp_path):
  def write(content, name="data-00000-of-00001.arrow"):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)

  return write


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_json(written, form):
  path = written(FORMS[form](pyarrow.Table.from_pylist(ROWS)))
  lines = "".join(json.dumps(row) + "\n" for row in ROWS)
  expected = tables.read(written(lines.encode(), "rows.jsonl"))
  found = list(tables.read(path))
  assert [one.values for one in found] == [one.values for one in expected]
  assert found[24].place == "row 25" and len(found) == 25
  # A Dataset of no rows, which has a schema and no batch.
  path = written(FORMS[form](pyarrow.Table.from_pylist(ROWS)[:0]))
  assert list(tables.read(path)) == []


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_parquet(written, form):
  """Of the types that JSON does not have, too."""
  table = pyarrow.table(
    {
      "bytes": [b"\xff\x00", None],
      "day": [datetime.date(2028, 3, 3), None],
      "half": pyarrow.array(np.array([0.5, 2.0], np.float16)),
      "class": pyarrow.array(["b", "a"]).dictionary_encode(),
      "large": pyarrow.array(["x", "y"], pyarrow.large_string()),
    }
  )
  found = tables.read(written(FORMS[form](table)))
  expected = tables.read(written(as_parquet(table), "rows.parquet"))
  assert list(found) == list(expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_task_of_it(written, form):
  path = written(FORMS[form](pyarrow.Table.from_pylist(ROWS)))
  source = dict(inputs="{text}{good}", targets="{stars}")
  with pytest.raises(
    ValueError, match=r"4 bad rows:\n  row 4, field 'stars': n"
  ):
    files.read(files.Source(path=path, **source))
  found = files.read(files.Source(path=path, bad_rows="skip", **source))
  rows = [row for rows in found.rows("en").values() for row in rows]
  assert ("Nr. 23, «so»\nfalse", "23") in rows and len(rows) == 21


@pytest.mark.parametrize("form", FORMS)
def test_bad_utf8_is_of_its_row(written, form):
  binary = pyarrow.array([b"good", b"a\xff"], pyarrow.binary())
  text = pyarrow.Array.from_buffers(pyarrow.string(), 2, binary.buffers())
  path = written(FORMS[form](pyarrow.table({"text": text, "stars": [1, 2]})))
  with pytest.raises(ValueError, match=r"row 2, field 'text': not UTF-8"):
    files.read(files.Source(path=path, inputs="{text}", targets="{stars}"))


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1", b"{}\n" * 9])
def test_what_is_none(written, name, content):
  path, kind = written(content, name), name[2:].title()
  message = rf"^{path}, row 1: no {kind} that pyarrow reads: \w"
  with pytest.raises(ValueError, match=message):
    list(tables.read(path))


@pytest.mark.parametrize("form", FORMS)
def test_damage(written, form):
  """A part of one; and one that would have values from beyond its end."""
  table = pyarrow.Table.from_pylist(ROWS)
  whole = FORMS[form](table)
  # Without its end, but with all batches, a writer that was killed leaves it.
  for length in (*range(9, len(whole) - 8, 97), len(whole) - 8):
    path = written(whole[:length])
    with pytest.raises(ValueError, match=rf"^{path}, row 1: no Arrow that "):
      list(tables.read(path))
  buffers = pyarrow.array(["abc", "def"]).buffers()
  buffers[1] = pyarrow.py_buffer(np.array([0, 1 << 30, 6], np.int32))
  text = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)
  path = written(FORMS[form](pyarrow.table({"text": text})))
  with pytest.raises(ValueError, match=rf"^{path}, row 1: no Arrow that "):
    list(tables.read(path))


@pytest.mark.parametrize("form", FORMS)
def test_two_columns_of_one_name(written, form):
  table = pyarrow.table([[1], [2]], names=["a", "a"])
  path = written(FORMS[form](table))
  with pytest.raises(ValueError, match="row 1: expected each column once"):
    list(tables.read(path))
