# SPDX-License-Identifier: Apache-2.0
"""Tasks of a user's files: what rows become, and what is refused of them."""

import csv
import datetime
import decimal
import io
import json

import pyarrow
from pyarrow import ipc, parquet
import pytest

from sira_jax.data import examples, files, tables

ROWS = [
  {"text": f"It is no. {i}, «so» | there", "stars": i, "lang": language}
  for i in range(60)
  for language in ("en", "de")
]


def as_jsonl(rows):
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows, delimiter=","):
  stream = io.StringIO(newline="")
  writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
  writer.writeheader()
  writer.writerows(rows)
  return stream.getvalue().encode()


def as_parquet(rows):
  stream = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
  return stream.getvalue()


def as_arrow(rows):
  stream, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
  with ipc.RecordBatchStreamWriter(stream, table.schema) as writer:
    writer.write_table(table)
  return stream.getvalue()


FORMATS = {
  ".jsonl": as_jsonl,
  ".csv": as_csv,
  ".tsv": lambda rows: as_csv(rows, "\t"),
  ".parquet": as_parquet,
  ".arrow": as_arrow,
}


def source(**settings):
  settings = {"inputs": "{text}\n", "targets": "{stars}"} | settings
  return files.Source(**settings)


@pytest.fixture
def written(tmp_path):
  """Writes a file; its path."""

  def write(content, name="rows.jsonl"):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)

  return write


def every(definition, language):
  return [row for rows in definition.rows(language).values() for row in rows]


@pytest.mark.parametrize("suffix", tables.FORMATS)
def test_every_format_gives_the_same_rows(written, suffix):
  path = written(FORMATS[suffix](ROWS), f"rows{suffix}")
  found = files.read(source(path=path, language="{lang}"))
  assert found.languages == ("de", "en")
  assert found.notes == (f"{path}: 120 of 120 rows",)
  for language in found.languages:
    assert sorted(every(found, language)) == sorted(
      (row["text"] + "\n", str(row["stars"]))
      for row in ROWS
      if row["lang"] == language
    )
  # The order of the rows, and of what they are written in, is forgotten.
  other = written(as_jsonl(ROWS[::-1]), "other.jsonl")
  again = files.read(source(path=other, language="{lang}"))
  assert again.rows("de") == found.rows("de")


def test_one_file_is_split_by_the_prompts(written):
  path = written(as_jsonl(ROWS))
  rows = files.read(source(path=path, language="{lang}")).rows("en")
  assert set(rows) == set(examples.SPLITS)
  for split in rows:
    assert rows[split]
    assert {examples.split_of(row.inputs) for row in rows[split]} == {split}
  # The other rows stay where they are.
  fewer = written(as_jsonl(ROWS[20:]), "fewer.jsonl")
  left = files.read(source(path=fewer, language="{lang}")).rows("en")
  assert all(set(left[split]) <= set(rows[split]) for split in rows)


def test_files_of_a_split_each(written):
  train, test = (
    written(as_jsonl(ROWS[:4:2]), "a.jsonl"),
    written(as_csv(ROWS[4:10:2]), "b.csv"),
  )
  found = files.read(source(train=train, test=test))
  sizes = {split: len(rows) for split, rows in found.rows("en").items()}
  assert sizes == {"train": 2, "validation": 0, "test": 3}


@pytest.mark.parametrize(
  ("value", "text"),
  [
    ("a", "a"),
    (" a ", " a "),
    (3, "3"),
    (-0.5, "-0.5"),
    (True, "true"),
    (datetime.date(2028, 3, 3), "2028-03-03"),
    (decimal.Decimal("1.50"), "1.50"),
  ],
)
def test_what_values_become(written, value, text):
  path = written(as_parquet([{"text": value, "stars": 1}]), "rows.parquet")
  assert every(files.read(source(path=path)), "en") == [(f"{text}\n", "1")]


def test_templates(written):
  rows = [{"a b": "x", "c.d": 2, "e": "y"}]
  made = source(
    path=written(as_jsonl(rows)), inputs="{{{a b}}} {c.d}:", targets="{e}{e}"
  )
  assert every(files.read(made), "en") == [("{x} 2:", "yy")]


def test_json_lines_end_at_line_feeds_alone(written):
  content = '\ufeff{"text": "a\u2028b\x85", "stars": "1"}\r\n\n'.encode()
  found = files.read(source(path=written(content)))
  assert every(found, "en") == [("a\u2028b\x85\n", "1")]


def test_a_csv_cell_may_have_lines_quotes_and_any_length(written):
  text = 'a\n"b",' + "c" * 200_000
  path = written(as_csv([{"text": text, "stars": 1}]), "rows.csv")
  assert every(files.read(source(path=path)), "en") == [(f"{text}\n", "1")]


def test_a_quote_is_text_in_a_tsv(written):
  path = written(b'text\tstars\n"a\t1\nb"\t2\n', "rows.tsv")
  assert sorted(every(files.read(source(path=path)), "en")) == [
    ('"a\n', "1"),
    ('b"\n', "2"),
  ]


GOOD = '{"text": "good", "stars": 5}\n'
# What a bad row between two good ones is called: kind, field.
BAD = {
  '{"txt": "a", "stars": 1}': "'text': no such field: there are txt, stars",
  '{"text": null, "stars": 1}': "'text': null",
  '{"text": "", "stars": 1}': "'text': empty",
  '{"text": " \\n", "stars": 1}': "'text': empty",
  '{"text": ["a"], "stars": 1}': "'text': wrong type: list, neither text nor",
  '{"text": {"a": 1}, "stars": 1}': "'text': wrong type: dict",
  '{"text": "a", "stars": NaN}': "'stars': not finite: nan",
  '{"text": "a", "stars": 1e999}': "'stars': not finite: inf",
  '{"text": "a\\ud800", "stars": 1}': r"'text': not UTF-8: 'a\ud800'",
  '{"text": "a\udcff", "stars": 1}': r"'text': not UTF-8: 'a\udcff'",
  '{"text": "a", "text": "b", "stars": 1}': "no JSON: the field 'text' is th",
  '{"text": "a"': "unreadable: no JSON",
  '["a", 1]': "unreadable: no JSON object but list",
  "[" * 100_000: "unreadable: no JSON",
  '{"text": "good", "stars": 5}': "repeated: the prompt of FILE, line 1, with",
  '{"text": "good", "stars": 4}': "repeated: the prompt of FILE, line 1, with",
  '{"text": "a", "stars": 6}': "'stars': unknown label: '6' is none of the l",
  '{"text": "a", "stars": 5, "lang": "?!"}': "wrong language: Expected a langu",
}


@pytest.mark.parametrize("row", BAD, ids=lambda row: row[:40])
def test_a_bad_row_is_an_error_or_counted(written, row):
  content = GOOD + row + "\n" + GOOD.replace("good", "also good")
  content = content.encode("utf-8", "surrogateescape")
  settings = {
    "path": written(content),
    "language": "{lang}" if "lang" in row else "en",
    "labels": ("1", "nan", "4", "5"),
  }
  if "lang" in row:
    content = content.replace(b"5}", b'5, "lang": "en"}')
    settings["path"] = written(content)
  with pytest.raises(ValueError) as caught:
    files.read(source(**settings))
  message = str(caught.value)
  assert f"{settings['path']} has 1 bad rows:\n  line 2" in message
  assert BAD[row].replace("FILE", settings["path"]) in message
  assert 'bad_rows="skip"' in message
  found = files.read(source(**settings, bad_rows="skip"))
  assert sorted(every(found, "en")) == [("also good\n", "5"), ("good\n", "5")]
  (note,) = found.notes
  assert "2 of 3 rows; left out: 1 " in note and "(first: line 2)" in note


def test_a_csv_row_of_more_or_fewer_cells_is_bad(written):
  path = written(b"text,stars\na,1\n\nb\nc,2,3\nd,4\n", "rows.csv")
  with pytest.raises(ValueError) as caught:
    files.read(source(path=path))
  assert "  line 4: unreadable: 1 cells, not 2" in str(caught.value)
  assert "  line 5: unreadable: 3 cells, not 2" in str(caught.value)
  found = files.read(source(path=path, bad_rows="skip"))
  assert sorted(every(found, "en")) == [("a\n", "1"), ("d\n", "4")]


def test_many_bad_rows_are_listed_and_counted(written):
  path = written(as_jsonl([{"text": "", "stars": 1}] * 7 + [ROWS[0]]))
  with pytest.raises(ValueError, match=r"7 bad rows:\n(.*\n){5}  and 2 more"):
    files.read(source(path=path))
  found = files.read(source(path=path, bad_rows="skip"))
  assert found.notes[0].endswith("left out: 7 empty (first: line 1)")


def test_a_test_row_that_is_trained_on_is_bad(written):
  train = written(as_jsonl(ROWS[:10:2]), "train.jsonl")
  test = written(as_jsonl(ROWS[8:14:2]), "test.jsonl")
  both = {"train": train, "test": test}
  with pytest.raises(ValueError, match=rf"repeated: .* {train}, line 5, with"):
    files.read(source(**both))
  found = files.read(source(**both, bad_rows="skip"))
  assert len(found.rows("en")["train"]) == 5
  assert len(found.rows("en")["test"]) == 2


def test_bad_utf8_in_parquet(written):
  binary = pyarrow.array([b"good", b"a\xff"], pyarrow.binary())
  text = pyarrow.Array.from_buffers(pyarrow.string(), 2, binary.buffers())
  stream = io.BytesIO()
  parquet.write_table(pyarrow.table({"text": text, "stars": [1, 2]}), stream)
  path = written(stream.getvalue(), "rows.parquet")
  with pytest.raises(ValueError, match=r"row 2, field 'text': not UTF-8"):
    files.read(source(path=path))


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b"", "has no rows."),
    ("a.csv", b"text,stars\n", "has no rows."),
    ("a.csv", b"text,text\nb,1\n", "line 1: expected each column once"),
    (
      "a.csv",
      b'text,stars\na,1\n"b,2\nc,3\n',
      "line 3: unexpected end of data",
    ),
    ("a.parquet", b"PAR1", "row 1: no Parquet that pyarrow reads"),
    ("a.arrow", b"ARROW1", "row 1: no Arrow that pyarrow reads"),
    (
      "a.json",
      b"[]",
      r"must end in one of .jsonl, .csv, .tsv, .parquet, .arrow",
    ),
  ],
)
@pytest.mark.parametrize("bad_rows", files.BAD_ROWS)
def test_a_file_without_rows(written, name, content, message, bad_rows):
  path = written(content, name)
  with pytest.raises(ValueError, match=message) as caught:
    files.read(source(path=path, bad_rows=bad_rows))
  assert path in str(caught.value)


def test_a_file_with_bad_rows_only(written):
  path = written(as_jsonl([{"txt": "a"}] * 3))
  with pytest.raises(ValueError, match="no rows that are good:\n  line 1, fie"):
    files.read(source(path=path, bad_rows="skip"))


def test_a_file_that_is_not_there(tmp_path):
  for path in (tmp_path / "no.jsonl", tmp_path / "folder.csv"):
    (tmp_path / "folder.csv").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=rf"{path} cannot be read: .* direct"):
      files.read(source(path=str(path)))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({}, "either path, a file to be split, or train"),
    ({"path": "a", "test": "b"}, "either path, a file to be split, or train"),
    (
      {"inputs": "text"},
      'inputs must name a column in braces, such as "{text}"',
    ),
    ({"targets": "{}"}, "nothing but columns' names in braces"),
    ({"targets": "{a!r}"}, "nothing but columns' names in braces"),
    ({"targets": "{a:>3}"}, "nothing but columns' names in braces"),
    ({"targets": "{a"}, "targets is no template: expected '}'"),
    ({"language": "Deutsch bitte"}, "a language's code"),
    ({"labels": "yes"}, "labels must be a sequence of texts, got 'yes'"),
    ({"labels": (0, 1)}, "labels must be a sequence of texts"),
    ({"labels": ("a", "a")}, "labels must have each once"),
    ({"metrics": ()}, "some of exact_match, accuracy"),
    ({"metrics": ("meteor",)}, r"span_f1, entity_f1, got \('meteor',\)"),
    ({"bad_rows": "mend"}, "one of error, skip, got 'mend'"),
  ],
)
def test_settings_that_cannot_be(settings, message):
  if "path" not in settings and settings:
    settings = settings | {"path": "rows.jsonl"}
  fields = {"inputs": "{text}", "targets": "{stars}"} | settings
  with pytest.raises(ValueError, match=f"config.files.mine: .*{message}"):
    files.sources({"mine": fields})


@pytest.mark.parametrize("name", ["dates", "my-task", ""])
def test_names_that_cannot_be(name):
  fields = {"inputs": "{text}", "targets": "{stars}", "path": "rows.jsonl"}
  with pytest.raises(ValueError, match=r"built-in task|letters, digits and _"):
    files.sources({name: fields})
