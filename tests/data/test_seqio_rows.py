# SPDX-License-Identifier: Apache-2.0
"""Tasks that a user's Python file registers with seqio."""

import pytest
import seqio

from sira_jax.data import files, mixtures, seqio_rows

MODULE = """
import functools

import seqio
import tensorflow as tf

ROWS = {"sentence": ["a b", "c", "d"], "label": [0, 1, 1], "ids": [[1]] * 3}

def rows(split, shuffle_files, seed=None):
  sizes = {"train": 2, "validation": 3}
  rows = tf.data.Dataset.from_tensor_slices(ROWS).take(sizes[split])
  return rows if split == "train" else rows.skip(2)

@seqio.map_over_dataset
def text(row, prefix):
  inputs = tf.strings.join([prefix, row["sentence"]])
  return {**row, "inputs": inputs, "targets": tf.as_string(row["label"])}

@seqio.map_over_dataset
def reverse(row):
  return {**row, "inputs": row["inputs"][::-1]}

@seqio.map_over_dataset
def fail(row):
  tf.debugging.assert_equal(row["label"], 0, "label!")
  return row

def add(name, *preprocessors):
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(rows, splits=("train", "validation")),
    preprocessors=preprocessors,
    output_features={
      name: seqio.Feature(seqio.ByteVocabulary())
      for name in ("inputs", "targets")
    },
  )

begin = functools.partial(text, prefix="NAME: ")
ends = (seqio.CacheDatasetPlaceholder(), seqio.preprocessors.append_eos)
add("NAME", begin, seqio.preprocessors.tokenize, *ends)
tokenize = functools.partial(
  seqio.preprocessors.tokenize, copy_pretokenized=False
)
add("NAME_reversed", begin, tokenize, reverse, *ends)
add("NAME_failing", begin, fail, seqio.preprocessors.tokenize)
"""


@pytest.fixture
def module(tmp_path, request):
  """A module whose Tasks are named after the test; its path and that name."""
  name = request.node.originalname.removeprefix("test_")
  file = tmp_path / f"{name}_module.py"
  file.write_text(MODULE.replace("NAME", name))
  yield str(file), name
  for task in ("", "_reversed", "_failing"):
    if name + task in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove(name + task)


def source(**settings):
  settings = {"inputs": "{inputs}\n", "targets": "{targets}"} | settings
  return files.Source(**settings)


def test_text(module, vocabulary):
  path, name = module
  given = source(train=f"{path}:{name}/train", test=f"{path}:{name}/validation")
  found = files.read(given)
  rows = found.rows("en")
  assert sorted(rows["train"]) == [("text: a b\n", "0"), ("text: c\n", "1")]
  assert rows["validation"] == ()
  assert rows["test"] == (("text: d\n", "1"),)
  assert found.notes[0] == f"{path}:{name}/train: 2 of 2 rows"
  made = mixtures.build(
    vocabulary, tasks=("t",), languages=("en",), known={"t": found}
  )
  assert made.train[0].examples == 2


def test_importing(module, monkeypatch, tmp_path):
  _, name = module
  monkeypatch.syspath_prepend(tmp_path)
  given = source(path=f"{name}_module:{name}/train", targets="{label}")
  rows = files.read(given).rows("en")
  assert sorted(row for split in rows.values() for row in split) == [
    ("importing: a b\n", "0"),
    ("importing: c\n", "1"),
  ]


def test_mistakes(module):
  path, name = module
  for task, settings, message in (
    ("other/train", {}, f"no seqio Task 'other'. Registered are: .*{name}"),
    (f"{name}/test", {}, "no split 'test'. It has: train, validation"),
    (f"{name}_reversed/train", {}, r"changes tokens \(reverse\)"),
    (f"{name}_failing/train", {}, "_failing/train fails: InvalidArgumentE"),
    (f"{name}/train", {"targets": "{ids}"}, "field 'ids': wrong type: ndarray"),
    (f"{name}/train", {"targets": "{id}"}, "example 1, field 'id': no such f"),
  ):
    with pytest.raises(ValueError, match=message):
      files.read(source(path=f"{path}:{task}", **settings))


def test_modules_that_cannot_be_imported(tmp_path):
  file = tmp_path / "broken.py"
  file.write_text("1 / 0")
  for module, message in (
    (file, "ZeroDivisionError"),
    (tmp_path / "none.py", "FileNotFoundError"),
    ("no.such.module", "ModuleNotFoundError"),
  ):
    with pytest.raises(ValueError, match=f"cannot be imported: {message}"):
      files.read(source(path=f"{module}:task/train"))


def test_which_paths_are_of_tasks():
  for path in ("my_tasks.py:cola/train", "a.b:c.d/test", "/x/y.py:t:u/train"):
    assert seqio_rows.names_task(path)
  for path in ("gs://bucket/a.jsonl", "a.jsonl", "a/b.csv", "gs://b/c"):
    assert not seqio_rows.names_task(path)
