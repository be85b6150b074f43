# SPDX-License-Identifier: Apache-2.0
"""Ten kinds of bad data: each a clear error, or left out and counted.

Each goes the way that a run's data go, from files and a config to batches; the
good rows beside a bad one are all there in either case, or nothing is. What is
possible in one file format alone is in test_files.py.
"""

import dataclasses
import io
import itertools
import json
import types

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from sira_jax.data import streaming
from tests.data import byte_tokenizer

GOOD = [
  {"text": f"It is no. {i}", "label": ("no", "yes")[i % 2]} for i in range(6)
]
TEST = [{"text": "Is it?", "label": "yes"}, {"text": "It is.", "label": "no"}]


def lines(*rows):
  """JSONL of rows; a row may be a line as it is."""
  return b"".join(
    (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n"
    for row in rows
  )


def floats(*numbers):
  """Parquet of the good rows whose labels are floats."""
  table = pyarrow.table(
    {
      "text": [f"It is no. {i}" for i in range(len(numbers))],
      "label": pyarrow.array(numbers, pyarrow.float64()),
    }
  )
  stream = io.BytesIO()
  parquet.write_table(table, stream)
  return stream.getvalue()


@dataclasses.dataclass(frozen=True)
class Bad:
  """A kind of bad data.

  Attributes:
    error: the words of the error that there is unless a config says otherwise.
    counted: what a run says where the config leaves it out; "" if none can.
    row: the bad row among the good ones, which is in line 3; or
    train, test: all of a file, by its name's ending.
    leave_out: what in a config leaves it out.
  """

  error: str
  counted: str = ""
  row: bytes | dict | None = None
  train: tuple[str, bytes] | None = None
  test: tuple[str, bytes] | None = None
  leave_out: tuple[str, str, str] = ("files", "bad_rows", "skip")


KINDS = {
  "missing column": Bad(
    row={"label": "yes"},
    error="line 3, field 'text': no such field: there are label",
    counted="6 of 7 rows; left out: 1 no such field (first: line 3)",
  ),
  "wrong type": Bad(
    row={"text": ["It", "is"], "label": "yes"},
    error="line 3, field 'text': wrong type: list, neither text nor number",
    counted="6 of 7 rows; left out: 1 wrong type (first: line 3)",
  ),
  "empty text": Bad(
    row={"text": " ", "label": "yes"},
    error="line 3, field 'text': empty",
    counted="6 of 7 rows; left out: 1 empty (first: line 3)",
  ),
  "text of 100,000 characters": Bad(
    row={"text": "x" * 100_000, "label": "yes"},
    error="own in en: 1 of 7, the longest has 100005 tokens",
    counted="own in en: 1 of 7 do not fit",
    leave_out=("batches", "too_long", "skip"),
  ),
  "broken UTF-8": Bad(
    row=b'{"text": "It is\xff", "label": "yes"}',
    error=r"line 3, field 'text': not UTF-8: 'It is\udcff'",
    counted="6 of 7 rows; left out: 1 not UTF-8 (first: line 3)",
  ),
  "duplicated keys": Bad(
    row=b'{"text": "It is", "text": "It was", "label": "yes"}',
    error="line 3: unreadable: no JSON: the field 'text' is there twice",
    counted="6 of 7 rows; left out: 1 unreadable (first: line 3)",
  ),
  "label that is not in the set": Bad(
    row={"text": "It is", "label": "maybe"},
    error="line 3, field 'label': unknown label: 'maybe' is none of the labels",
    counted="6 of 7 rows; left out: 1 unknown label (first: line 3)",
  ),
  "file that vanishes": Bad(
    train=("jsonl", b""),  # see below
    error="train.jsonl cannot be read: No such file or directory",
  ),
  "split of no examples": Bad(
    test=("jsonl", b"\n\n"),
    error="test.jsonl has no rows.",
  ),
  "NaN in a column of floats": Bad(
    train=("parquet", floats(0.5, 1.5, float("nan"), 2.5, 3.5, 4.5, 5.5)),
    error="row 3, field 'label': not finite: nan",
    counted="6 of 7 rows; left out: 1 not finite (first: row 3)",
  ),
}


def test_there_are_ten():
  assert len(KINDS) == 10


@pytest.fixture
def config(tmp_path):
  """The parts of a config that data are of, and their files, for a kind."""

  def write(bad):
    contents = {
      "train": bad.train or ("jsonl", lines(*GOOD[:2], bad.row, *GOOD[2:])),
      "test": bad.test or ("jsonl", lines(*TEST)),
    }
    files = {}
    for split, (ending, content) in contents.items():
      file = tmp_path / f"{split}.{ending}"
      file.write_bytes(content)
      files[split] = str(file)
    if bad.train and bad.train[0] == "parquet":
      files |= {"labels": ()}
    labels = {"labels": ("no", "yes"), "metrics": ("accuracy",)}
    own = labels | {"inputs": "{text}\n", "targets": "{label}"} | files
    return {
      "seed": 0,
      "files": {"own": own},
      "mixture": {"tasks": ("own",), "languages": ("en",)},
      "batches": {"batch_size": 3, "length": 64, "too_long": "error"},
      "evaluation": {"examples": 4, "split": "test"},
    }

  return write


@pytest.fixture(scope="module")
def base():
  return types.SimpleNamespace(
    tokenizer=byte_tokenizer.tokenizer(), eos_id=2, first_id=None
  )


def data(config, base):
  return streaming.prepare(config)(
    base, encoder=False, prefix=False, memory=False
  )


def said(found):
  """What a run tells of its data before it trains."""
  long = [
    f"{row.task} in {row.language}: {row.too_long} of {row.examples} do not fit"
    for row in found.lengths
    if row.too_long
  ]
  return "\n".join([*found.notes, *long])


def leave_out(config, bad):
  group, field, value = bad.leave_out
  where = config["files"]["own"] if group == "files" else config[group]
  where[field] = value


def in_batches(found, count):
  """The first tokens of what `count` batches hold, each once."""
  rows = np.concatenate(
    [
      batch["decoder_target_tokens"]
      for batch in itertools.islice(found.batches(0, 0), count)
    ]
  )
  return {bytes(row[row > 0].astype(np.int32)) for row in rows}


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].counted])
def test_a_bad_row(kind, config, base):
  """Named and nothing is trained on; or counted, and all others are."""
  bad = KINDS[kind]
  settings = config(bad)
  with pytest.raises(ValueError) as caught:
    data(settings, base)
  assert bad.error in str(caught.value)
  leave_out(settings, bad)
  found = data(settings, base)
  assert bad.counted in said(found)
  assert len(in_batches(found, 20)) == 6


def test_a_file_without_examples(config, base):
  """Nothing can leave it out: there would be nothing to test on."""
  bad = KINDS["split of no examples"]
  settings = config(dataclasses.replace(bad, train=("jsonl", lines(*GOOD))))
  for _ in range(2):
    with pytest.raises(ValueError) as caught:
      data(settings, base)
    assert bad.error in str(caught.value)
    leave_out(settings, bad)


def test_a_split_that_hashing_leaves_empty(config, base):
  """Of one file for all splits: the error says what there is, and of which."""
  settings = config(Bad("", train=("jsonl", lines(*GOOD[:1]))))
  own = settings["files"]["own"]
  own["path"] = own.pop("train")
  del own["test"]
  with pytest.raises(ValueError) as caught:
    data(settings, base)
  assert "has no examples in split" in str(caught.value)
  assert f"{own['path']}: 1 of 1 rows" in str(caught.value)


def test_a_file_that_vanishes_in_a_run(config, base, tmp_path):
  """What was read is trained on to the end; a new start ends with its name."""
  bad = KINDS["file that vanishes"]
  settings = config(dataclasses.replace(bad, train=("jsonl", lines(*GOOD))))
  found = data(settings, base)
  batches = found.batches(0, 0)
  first = next(batches)
  (tmp_path / "train.jsonl").unlink()
  rest = [first, *itertools.islice(batches, 19)]
  again = list(itertools.islice(found.batches(0, 0), 20))
  for one, other in zip(rest, again, strict=True):
    for name, values in one.items():
      np.testing.assert_array_equal(values, other[name])
  assert len(in_batches(found, 20)) == 6
  for _ in range(2):
    with pytest.raises(ValueError) as caught:
      data(settings, base)
    assert bad.error in str(caught.value)
    leave_out(settings, bad)
