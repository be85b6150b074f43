# SPDX-License-Identifier: Apache-2.0
"""GLUE's tasks, from released rows to metrics.

The texts are of t5/data/preprocessors_test.py's form, the rows made up.
"""

import pyarrow
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.data.suites import folders

PAIR = ("sentence1", "sentence2")
# Task: its columns, what its labels are called, its metrics of one right answer
# of two: the second row, which is of class 1.
CASES = {
  "cola": (("sentence",), ("unacceptable", "acceptable")),
  "sst2": (("sentence",), ("negative", "positive")),
  "mrpc": (PAIR, ("not_equivalent", "equivalent")),
  "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
  "mnli": (("hypothesis", "premise"), ("entailment", "neutral")),
  "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
  "rte": (PAIR, ("entailment", "not_entailment")),
  "wnli": (PAIR, ("not_entailment", "entailment")),
}
# All is answered with class 1, of which there is one of two: accuracy 1 / 2, F1
# 2 / (2 + 1), no correlation.
SCORES = {
  "cola": {"matthews": 0.0},
  "mrpc": {"f1": pytest.approx(200 / 3), "accuracy": 50.0},
  "qqp": {"f1": pytest.approx(200 / 3), "accuracy": 50.0},
}


@pytest.mark.parametrize("name", CASES)
def test_the_hubs_files(tmp_path, name):
  columns, labels = CASES[name]
  dev = "validation_matched" if name == "mnli" else "validation"
  types = [(column, pyarrow.string()) for column in reversed(columns)]
  types += [("label", pyarrow.int64()), ("idx", pyarrow.int32())]
  for split, words in (("train", "AB"), (dev, "CD")):
    rows = [
      {column: f"{word} {column}?" for column in columns}
      | {"label": number, "idx": number}
      for number, word in enumerate(words)
    ]
    file = tmp_path / name / split / "0000.parquet"
    folders.write(file, rows, types=types)
  found = folders.read(f"glue_{name}", tmp_path)
  named = {
    word: " ".join([name, *(f"{c}: {word} {c}?" for c in columns)]) + "\n"
    for word in "ABCD"
  }
  rows = found.rows("en")
  assert set(rows["train"]) == {
    (named["A"], labels[0]),
    (named["B"], labels[1]),
  }
  assert set(rows["validation"]) == {
    (named["C"], labels[0]),
    (named["D"], labels[1]),
  }
  assert rows["test"] == ()
  answers = {named["C"]: labels[1], named["D"]: labels[1]}
  assert folders.score(found, answers) == SCORES.get(name, {"accuracy": 50.0})


def test_the_whole_text_of_a_row(tmp_path):
  row = {"premise": "He is awake.", "hypothesis": "He sleeps.", "label": 2}
  folders.write(tmp_path / "mnli" / "train.jsonl", [row])
  other = row | {"premise": "He is."}
  folders.write(tmp_path / "mnli" / "validation_matched.jsonl", [other])
  # A column of the task is taken before one that another release has.
  mismatched = row | {"premise": "He was.", "sentence1": "No.", "label": 1}
  folders.write(tmp_path / "mnli" / "dev_mismatched.jsonl", [mismatched])
  found = folders.read("glue_mnli", tmp_path, ending="")
  assert found.rows("en")["train"] == (
    ("mnli hypothesis: He sleeps. premise: He is awake.", "contradiction"),
  )
  assert found.rows("en")["validation"] == (
    ("mnli hypothesis: He sleeps. premise: He is.", "contradiction"),
  )
  found = folders.read("glue_mnli_mismatched", tmp_path, ending="")
  assert found.rows("en")["validation"] == (
    ("mnli hypothesis: He sleeps. premise: He was.", "neutral"),
  )


def test_stsb(tmp_path):
  """Trained on 2.8, the nearest multiple of 0.2 to 2.72; tested on 2.72.

  Answers 1 and 3 of 2.72 and 1: all in the wrong order.
  """
  types = [(c, pyarrow.string()) for c in PAIR]
  types += [("label", pyarrow.float32()), ("idx", pyarrow.int32())]
  rows = [
    {"sentence1": "A cat.", "sentence2": "Cats.", "label": 2.72, "idx": 0},
    {"sentence1": "A cat.", "sentence2": "A dog.", "label": 1.0, "idx": 1},
  ]
  for split, first in (("train", "The cat."), ("validation", "A cat.")):
    file = tmp_path / "stsb" / f"{split}-00000-of-00001.parquet"
    folders.write(file, [r | {"sentence1": first} for r in rows], types=types)
  found = folders.read("glue_stsb", tmp_path)
  assert set(found.rows("en")["train"]) == {
    ("stsb sentence1: The cat. sentence2: Cats.\n", "2.8"),
    ("stsb sentence1: The cat. sentence2: A dog.\n", "1.0"),
  }
  first, second = (
    f"stsb sentence1: A cat. sentence2: {text}\n"
    for text in ("Cats.", "A dog.")
  )
  assert set(found.rows("en")["validation"]) == {
    (first, "2.720"),
    (second, "1.000"),
  }
  assert folders.score(found, {first: "1", second: "3"}) == {
    "pearson": pytest.approx(-100),
    "spearman": pytest.approx(-100),
  }


# The first lines of the benchmark's own files, with their headers, if any.
OWN = {
  "cola": (
    "CoLA",
    [["gj04", "1", "", "It is."], ["gj04", "0", "*", 'Is "it.']],
    {("cola sentence: It is.", "acceptable")}
    | {('cola sentence: Is "it.', "unacceptable")},
  ),
  "sst2": (
    "SST-2",
    [["sentence", "label"], ["so good ", "1"]],
    {("sst2 sentence: so good ", "positive")},
  ),
  "mrpc": (
    "MRPC",
    [
      ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
      ["0", "7", "8", "One.", "Two."],
    ],
    {("mrpc sentence1: One. sentence2: Two.", "not_equivalent")},
  ),
  "qqp": (
    "QQP",
    [
      ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
      ["1", "2", "3", "Why?", "How?", "1"],
      ["4", "5", "mangled"],
    ],
    {("qqp question1: Why? question2: How?", "duplicate")},
  ),
  "stsb": (
    "STS-B",
    [
      [*("index", "genre", "filename", "year", "old_index"), "source1"],
      [
        "0",
        "news",
        "MSR",
        "2012",
        "1",
        "none",
        "none",
        "One.",
        "Two.",
        "3.800",
      ],
    ],
    {("stsb sentence1: One. sentence2: Two.", "3.8")},
  ),
  "rte": (
    "RTE",
    [
      ["index", "sentence1", "sentence2", "label"],
      ["0", "One.", "Two.", "not_entailment"],
    ],
    {("rte sentence1: One. sentence2: Two.", "not_entailment")},
  ),
  "mnli": (
    "MNLI",
    [
      ["index", "sentence1", "sentence2", "label1", "gold_label"],
      ["0", "He is.", "Is he?", "neutral", "contradiction"],
    ],
    {("mnli hypothesis: Is he? premise: He is.", "contradiction")},
  ),
}
OWN["stsb"][1][0] += ["source2", "sentence1", "sentence2", "score"]


@pytest.mark.parametrize("name", OWN)
def test_the_benchmarks_own_files(tmp_path, name):
  folder, rows, expected = OWN[name]
  dev = "dev_matched" if name == "mnli" else "dev"
  folders.write(tmp_path / folder / "train.tsv", rows)
  # One that is tested on, too, would be left out of training.
  last = rows[-1] if name != "qqp" else rows[1]
  other = [cell.replace(".", "!").replace("good", "bad") for cell in last]
  other = [cell.replace("?", "!") for cell in other]
  if name == "stsb":
    other[-1] = last[-1]
  header = [] if name == "cola" else rows[:1]
  folders.write(tmp_path / folder / f"{dev}.tsv", [*header, other])
  found = folders.read(f"glue_{name}", tmp_path, ending="")
  assert set(found.rows("en")["train"]) == expected
  assert len(found.rows("en")["validation"]) == 1
  if name == "qqp":
    assert found.notes[0].endswith(": 1 examples; 1 mangled rows left out")


def test_what_tfds_prepared(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      "sentence": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=["unacceptable", "acceptable"]),
      "idx": tf.int32,
    }
  )
  for version, text in (("2.0.0", "It is."), ("10.0.0", "It was.")):
    sets = {
      split: tf.data.Dataset.from_tensors(
        {"sentence": text + split, "label": number, "idx": 0}
      )
      for number, split in enumerate(("train", "validation"))
    }
    tfds.dataset_builders.store_as_tfds_dataset(
      name="glue",
      config="cola",
      version=version,
      data_dir=str(tmp_path),
      features=features,
      split_datasets=sets,
      disable_shuffling=True,
    )
  rows = folders.read("glue_cola", tmp_path, ending="").rows("en")
  assert rows["train"] == (("cola sentence: It was.train", "unacceptable"),)
  assert rows["validation"] == (
    ("cola sentence: It was.validation", "acceptable"),
  )
