# SPDX-License-Identifier: Apache-2.0
"""What is refused of suites, and how their tasks go into a mixture."""

import shutil

import pytest

from sira_jax import run_data
from sira_jax.data import evaluation, mixtures, tasks
from sira_jax.data.suites import reading
from tests.data.suites import folders

ROWS = [
  {"sentence1": f"It is no. {i}.", "sentence2": "So.", "label": i % 2, "idx": i}
  for i in range(6)
]


@pytest.fixture
def glue(tmp_path):
  """A folder with RTE's files, with a training row that is tested on, too."""
  folders.write(tmp_path / "rte" / "train.jsonl", ROWS[:5])
  folders.write(tmp_path / "rte" / "validation.jsonl", ROWS[4:])
  return tmp_path


def known(folder, **changes):
  settings = dict(
    names=("glue_rte", "dates"),
    languages=("en",),
    zero_shot=(),
    split="validation",
    others=tasks.TASKS,
  )
  groups = {"glue": {"folder": str(folder)}}
  return reading.known(groups, **(settings | changes))


def test_a_mixture(glue, vocabulary):
  found = known(glue)
  assert set(found) == {*tasks.TASKS, "glue_rte"}
  made = mixtures.build(
    vocabulary, tasks=("glue_rte",), languages=("en",), known=found
  )
  (entry,) = made.train
  assert entry.examples == 4 and entry.name == "glue_rte_en"
  (one,) = evaluation.evaluation(made, examples=9, split="validation")
  assert set(one.prompts) == {
    f"rte sentence1: It is no. {i}. sentence2: So.\n" for i in (4, 5)
  }
  assert one.seen == 0
  labels = {4: "entailment", 5: "not_entailment"}
  assert set(one.targets) == set(labels.values())
  assert run_data.score(one, one.targets) == {"accuracy": 100.0}
  assert found["glue_rte"].notes == (
    f"{glue}/rte/train.jsonl: 5 examples",
    f"{glue}/rte/validation.jsonl: 2 examples",
    "en: 1 training rows left out, whose prompt is to be tested",
  )


def test_repeated_rows_are_as_released(tmp_path):
  """A row that the release has twice is trained and tested on twice."""
  folders.write(tmp_path / "rte" / "train.jsonl", [ROWS[0]] * 2)
  folders.write(tmp_path / "rte" / "validation.jsonl", [ROWS[1]] * 3)
  rows = folders.read("glue_rte", tmp_path).rows("en")
  assert len(rows["train"]) == 2 and len(rows["validation"]) == 3


def test_shards_are_read_together(tmp_path):
  for number, rows in enumerate((ROWS[:2], ROWS[2:3])):
    name = f"train-0000{number}-of-00002.parquet"
    folders.write(tmp_path / "rte" / name, rows)
    folders.write(tmp_path / "rte" / "validation" / f"{number}.csv.jsonl", rows)
  with pytest.raises(ValueError, match="There is no file of glue_rte"):
    folders.read("glue_rte", tmp_path / "rte")
  found = folders.read("glue_rte", tmp_path)
  assert len(found.rows("en")["validation"]) == 3
  (tmp_path / "rte" / "train-00000-of-00002.parquet").unlink()
  with pytest.raises(ValueError, match=r"has 1 of the 2 files of train: train"):
    folders.read("glue_rte", tmp_path)


def test_a_saved_data_set_is_read_without_its_caches(glue, tmp_path):
  """What datasets' save_to_disk leaves, after a map over it."""
  expected = folders.read("glue_rte", glue).rows("en")
  saved = tmp_path / "saved" / "rte"
  for number, rows in enumerate((ROWS[:2], ROWS[2:5])):
    folders.write(saved / "train" / f"data-0000{number}-of-00002.arrow", rows)
  folders.write(saved / "validation" / "data-00000-of-00001.arrow", ROWS[4:])
  for split in ("train", "validation"):
    folders.write(saved / split / "cache-0a1b2c3d4e5f6a7b.arrow", ROWS)
    (saved / split / "state.json").write_text("{}")
  assert folders.read("glue_rte", saved.parent).rows("en") == expected
  (saved / "train" / "data-00000-of-00002.arrow").unlink()
  with pytest.raises(ValueError, match=r"has 1 of the 2 files of data: data-"):
    folders.read("glue_rte", saved.parent)


def test_two_files_of_one_split_are_refused(glue):
  shutil.copy(glue / "rte" / "train.jsonl", glue / "rte" / "train.csv")
  with pytest.raises(
    ValueError, match=r"one file for train, got .*jsonl, .*csv"
  ):
    folders.read("glue_rte", glue)


def test_a_missing_file_says_all_there_is_to_know(tmp_path):
  with pytest.raises(
    ValueError, match="There is no file of glue_rte"
  ) as caught:
    known(tmp_path / "none")
  said = str(caught.value)
  for part in (
    f"{tmp_path}/none/rte or {tmp_path}/none/RTE",
    "train as .jsonl, .csv, .tsv, .parquet, .arrow, or a folder or shards",
    "TFDS's glue/rte",
    "the columns sentence1, sentence2, label",
    "To get it: hf download nyu-mll/glue --repo-type dataset",
    f"--local-dir {tmp_path}/none",
  ):
    assert part in said


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"sentence": "a", "label": 0}, "columns sentence1, sentence2 are missing"),
    (ROWS[5] | {"label": -1}, "expected column 'label' to be one of 0 to 1 or"),
    (ROWS[5] | {"label": None}, "expected column 'label' to be one of 0 to 1"),
    (ROWS[5] | {"sentence2": 3}, "expected text in column 'sentence2', got 3"),
    (ROWS[5] | {"sentence2": "\udcff"}, "not UTF-8: 'rte sentence1"),
    ([1], "no JSON object but list"),
  ],
)
def test_a_row_that_is_not_as_released(glue, row, message):
  folders.write(glue / "rte" / "validation.jsonl", [ROWS[5], row])
  with pytest.raises(ValueError, match=message) as caught:
    known(glue)
  said = str(caught.value)
  assert f"{glue}/rte/validation.jsonl, line 2: " in said
  assert "must have the columns sentence1, sentence2, label; this one" in said
  assert "hf download nyu-mll/glue" in said


def test_a_nested_row_that_is_not_as_released(tmp_path):
  row = {"passage": {"text": "P", "questions": [{"question": "Q?"}]}}
  folders.write(tmp_path / "MultiRC" / "train.jsonl", [row])
  with pytest.raises(ValueError, match="line 1: KeyError: 'answers'"):
    folders.read("super_glue_multirc", tmp_path)


@pytest.mark.parametrize(
  ("groups", "names", "message"),
  [
    (
      {"glu": {"folder": "a"}},
      ("dates",),
      "no 'glu'. Available are: glue, sup",
    ),
    (
      {"glue": {"folder": "a"}},
      ("dates",),
      "names none: add some of glue_cola",
    ),
    (
      {"glue": {"folder": ""}},
      ("glue_rte",),
      "suites.glue: folder must be a p",
    ),
    (
      {"glue": {"folder": "a", "ending": 3}},
      ("glue_rte",),
      "suites.glue: ending must be text",
    ),
    (
      {},
      ("xsum",),
      r"'xsum' is of files: say .* hf download EdinburghNLP/xsum",
    ),
  ],
)
def test_groups_that_cannot_be(groups, names, message):
  with pytest.raises(ValueError, match=message):
    reading.check(groups, names)


def test_a_task_of_files_may_not_have_the_name(glue):
  with pytest.raises(ValueError, match="have a task glue_rte: rename"):
    known(glue, others={"glue_rte": tasks.TASKS["dates"]})


def test_a_split_that_the_task_does_not_have(glue):
  with pytest.raises(
    ValueError, match=r"no split 'test'. It has: train, valid"
  ):
    known(glue, split="test")
