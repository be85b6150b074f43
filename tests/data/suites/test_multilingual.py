# SPDX-License-Identifier: Apache-2.0
"""XNLI, PAWS-X, TyDi QA and XSum, from released rows to metrics."""

import pyarrow
import pytest

from sira_jax.metrics import references
from tests.data.suites import folders


def test_xnli(tmp_path):
  """German is tested in alone, so that its training file is not needed."""
  rows = {
    ("en", "train"): [{"premise": "A", "hypothesis": "B", "label": 0}],
    ("en", "validation"): [{"premise": "C", "hypothesis": "D", "label": 1}],
    ("en", "test"): [{"premise": "E", "hypothesis": "F", "label": 2}],
    ("de", "validation"): [{"premise": "Ä", "hypothesis": "Ö", "label": 1}],
    ("de", "test"): [
      {"premise": "Ü", "hypothesis": "ß", "label": 2},
      {"premise": "U", "hypothesis": "ss", "label": 0},
    ],
  }
  types = [("premise", pyarrow.string()), ("hypothesis", pyarrow.string())]
  types += [("label", pyarrow.int64())]
  for (language, split), of_file in rows.items():
    file = tmp_path / language / split / "0000.parquet"
    folders.write(file, of_file, types=types)
  found = folders.read("xnli", tmp_path, zero_shot=("de",), split="test")
  assert found.languages == ("en", "de")
  assert found.rows("en") == {
    "train": (("xnli: premise: A hypothesis: B\n", "0"),),
    "validation": (("xnli: premise: C hypothesis: D\n", "1"),),
    "test": (("xnli: premise: E hypothesis: F\n", "2"),),
  }
  assert found.rows("de")["train"] == ()
  assert found.rows("de")["validation"] == (
    ("xnli: premise: Ä hypothesis: Ö\n", "1"),
  )
  answers = {
    "xnli: premise: Ü hypothesis: ß\n": "2",
    "xnli: premise: U hypothesis: ss\n": "1",
  }
  score = folders.score(found, answers, split="test", language="de")
  assert score == {"accuracy": 50.0}
  with pytest.raises(
    ValueError, match="no file of xnli, split 'train', langua"
  ):
    folders.read("xnli", tmp_path, languages=("de",), split="test")
  with pytest.raises(
    ValueError, match=r"'xnli' has no language 'nl'\. It has: a"
  ):
    folders.read("xnli", tmp_path, zero_shot=("nl",), split="test")


def test_paws_x(tmp_path):
  row = {"id": 1, "sentence1": "Un.", "sentence2": "Deux.", "label": 1}
  for split in ("train", "validation", "test"):
    given = row | {"sentence1": split, "label": 0} if split != "test" else row
    file = tmp_path / "fr" / f"{split}-00000-of-00001.parquet"
    folders.write(file, [given])
  found = folders.read("paws_x", tmp_path, languages=("fr",), split="test")
  inputs = "paws sentence1: Un. sentence2: Deux.\n"
  assert found.rows("fr")["test"] == ((inputs, "paraphrase"),)
  assert found.rows("fr")["train"] == (
    ("paws sentence1: train sentence2: Deux.\n", "different_meaning"),
  )
  answers = {inputs: "paraphrase "}
  score = folders.score(found, answers, split="test", language="fr")
  assert score == {"accuracy": 100.0}


def test_tydiqa(tmp_path):
  """One file of all languages; of several answers, the best counts.

  "vuonna 1917" shares one word of one and two with "1917": 2 / 3.
  """

  def row(language, number, texts):
    return {
      "id": f"{language}-{number}-0",
      "title": "T",
      "context": "C.",
      "question": f"{language} {number}?",
      "answers": {"text": texts, "answer_start": [0] * len(texts)},
    }

  train = [row("finnish", 1, ["yksi", "kaksi"]), row("telugu", 2, ["rendu"])]
  dev = [row("finnish", 3, ["syksyllä 1918", "1917"]), row("english", 4, ["x"])]
  folder = tmp_path / "secondary_task"
  folders.write(folder / "train" / "0000.parquet", train)
  folders.write(folder / "validation" / "0000.parquet", dev)
  found = folders.read(
    "tydiqa_goldp", tmp_path, languages=("fi",), zero_shot=("en",)
  )
  assert found.rows("fi")["train"] == (
    ("question: finnish 1? context: C.\n", "yksi"),
  )
  ((inputs, target),) = found.rows("fi")["validation"]
  assert inputs == "question: finnish 3? context: C.\n"
  assert references.of(target) == ["syksyllä 1918", "1917"]
  assert found.rows("en")["train"] == () and len(found.notes) == 2
  score = folders.score(found, {inputs: "vuonna 1917"}, language="fi")
  assert score == {"squad_em": 0.0, "squad_f1": pytest.approx(200 / 3)}
  with pytest.raises(ValueError, match=r"train.* has no rows of tyd.* in 'ko'"):
    folders.read("tydiqa_goldp", tmp_path, languages=("ko",))
  folders.write(folder / "train" / "0000.parquet", [row("latin", 1, ["unus"])])
  with pytest.raises(ValueError, match="to begin with a language, one of arab"):
    folders.read("tydiqa_goldp", tmp_path, languages=("fi",))


def test_xsum(tmp_path):
  """ROUGE of "a dog barks" and "dogs barked": 2 of 3 and 2 stems, 1 pair."""
  rows = [
    {"document": "A dog barked.\nIt did.", "summary": text, "id": "1"}
    for text in ("A dog barks", "It did")
  ]
  train = [rows[1] | {"document": "Other."}]
  folders.write(tmp_path / "default" / "train" / "0000.parquet", train)
  folders.write(tmp_path / "default" / "test" / "0000.parquet", rows[:1])
  found = folders.read("xsum", tmp_path, split="test")
  inputs = "summarize: A dog barked.\nIt did.\n"
  assert found.rows("en")["test"] == ((inputs, "A dog barks"),)
  assert found.rows("en")["train"] == (("summarize: Other.\n", "It did"),)
  score = folders.score(found, {inputs: "dogs barked"}, split="test")
  assert score == {
    "rouge1": pytest.approx(80),
    "rouge2": pytest.approx(200 / 3),
    "rougel": pytest.approx(80),
  }
