# SPDX-License-Identifier: Apache-2.0
"""Mixtures of tasks of a user's files, and what changes their fingerprint."""

import json

import pytest

from sira_jax.data import examples, files, lengths, mixtures, tasks

ROWS = [
  {"text": f"It is no. {i}", "stars": i, "lang": language}
  for i in range(60)
  for language in ("en", "de")
]


@pytest.fixture
def written(tmp_path):
  """Writes rows as JSONL; the file's path."""

  def write(rows, name="rows.jsonl"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)

  return write


def mine(path, **settings):
  fields = {"inputs": "{text}\n", "targets": "{stars}", "language": "{lang}"}
  return files.known({"mine": fields | {"path": path} | settings})


def test_a_mixture_of_files_and_built_in_tasks(written, vocabulary):
  known = mine(written(ROWS), metrics=("accuracy", "macro_f1"))
  assert set(known) == {*tasks.TASKS, "mine"} and "mine" not in tasks.TASKS
  made = mixtures.build(
    vocabulary, tasks=("mine", "dates"), languages=("en", "de"), known=known
  )
  assert [entry.name for entry in made.train] == [
    *("mine_en", "dates_en", "mine_de", "dates_de")
  ]
  entry = made.train[0]
  assert made.rows(entry, split="train") == known["mine"].rows("en")["train"]
  with pytest.raises(ValueError, match="'mine' has no language 'fr'"):
    mixtures.build(vocabulary, tasks=("mine",), languages=("fr",), known=known)


def test_a_changed_file_is_other_data(written, vocabulary):
  def fingerprint(rows, **settings):
    known = mine(written(rows), **settings)
    return mixtures.fingerprint(
      mixtures.build(
        vocabulary, tasks=("mine",), languages=("en",), known=known
      )
    )

  same = fingerprint(ROWS)
  assert fingerprint(ROWS[::-1]) == same
  for split in examples.SPLITS:
    rows = [dict(row) for row in ROWS]
    one = next(
      row
      for row in rows
      if row["lang"] == "en" and examples.split_of(row["text"] + "\n") == split
    )
    one["stars"] = 99
    assert fingerprint(rows) != same, split


def test_a_split_without_rows_is_named_with_its_file(written, vocabulary):
  parts = {split: [] for split in examples.SPLITS}
  for row in ROWS:
    parts[examples.split_of(row["text"] + "\n")].append(row)
  for split, others in (
    ("train", parts["validation"] + parts["test"]),
    ("test", parts["train"]),
  ):
    path = written(others)
    message = rf"no examples in split '{split}'.*\({path}: {len(others)} of"
    with pytest.raises(ValueError, match=message):
      mixtures.build(
        vocabulary, tasks=("mine",), languages=("en",), known=mine(path)
      )


def test_validation_is_enough_to_test_on(written, vocabulary):
  train = written(ROWS[:40], "train.jsonl")
  validation = written(ROWS[40:50], "validation.jsonl")
  known = mine(None, train=train, validation=validation)
  made = mixtures.build(
    vocabulary, tasks=("mine",), languages=("en",), known=known
  )
  assert made.evaluation[0].examples == 5


def test_codes_with_hyphens(written, vocabulary):
  rows = [row | {"lang": "pt-BR"} for row in ROWS[::2]]
  known = mine(written(rows))
  made = mixtures.build(
    vocabulary, tasks=("mine",), languages=("pt-BR",), known=known
  )
  assert [(e.language, e.name) for e in made.train] == [("pt-BR", "mine_pt_BR")]


def test_names_that_run_together(written, vocabulary):
  rows = mine(written(ROWS))["mine"].rows("en")
  both = tasks.Definition(lambda language: rows, (), ("a", "b_a"))
  with pytest.raises(ValueError, match=r"a name of its own, got .*'x_b_a'"):
    mixtures.build(
      vocabulary,
      tasks=("x", "x_b"),
      languages=("a", "b_a"),
      known={"x": both, "x_b": both},
    )


def test_a_text_of_100_000_characters(written, vocabulary):
  long = [row | {"text": row["text"] * 10_000} for row in ROWS[:2]]
  train = written([*ROWS[:20], *long], "train.jsonl")
  known = mine(None, train=train, test=written(ROWS[20:40], "test.jsonl"))
  made = mixtures.build(
    vocabulary, tasks=("mine",), languages=("en",), known=known
  )
  # "It is no. 0" 10,000 times, a newline, "0" and an end.
  with pytest.raises(
    ValueError, match="1 of 11, the longest has 110003 tokens"
  ):
    lengths.check(made, length=96)
  lengths.check(made, length=96, too_long="skip")
