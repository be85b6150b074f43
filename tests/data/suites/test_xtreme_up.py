# SPDX-License-Identifier: Apache-2.0
"""XTREME-UP's tasks, from released rows to metrics."""

import pytest

from sira_jax.data import mixtures, tasks
from sira_jax.data.suites import reading, xtreme_up
from tests.data.suites import folders

QUESTION = {
  "question": "Uganda ina mikoa mingapi?",
  "title": "Mikoa ya Uganda",
  "context": "Uganda ina mikoa minne.",
  "target": "mikoa minne",
}
PROMPT = (
  "question: Uganda ina mikoa mingapi? title: Mikoa ya Uganda context: Uganda"
  " ina mikoa minne."
)


def write(folder, name, language, **splits):
  """Files of the released archive: TASK/SPLIT/LANGUAGE.jsonl."""
  for split, rows in splits.items():
    folders.write(folder / name / split / f"{language}.jsonl", rows)


@pytest.mark.parametrize(
  ("name", "folder"),
  [
    ("xtreme_up_qa_in_language", "qa_in_lang"),
    ("xtreme_up_qa_cross_language", "qa_cross_lang"),
  ],
)
def test_questions(tmp_path, name, folder):
  """One of an answer's two words, of three: F1 is 2 / 5; "No Answer" is text.

  An encoder-decoder reads the prompt alone, a decoder needs a line's end.
  """
  other = QUESTION | {"question": "Kwa nini?", "target": "No Answer"}
  train = QUESTION | {"question": "Nini?"}
  write(tmp_path, folder, "te", train=[train], test=[QUESTION, other])
  write(tmp_path, folder, "ru", train=[train], test=[train])
  settings = {"languages": ("te",), "split": "test"}
  whole = folders.read(name, tmp_path, **settings, ending="")
  rows = dict(whole.rows("te")["test"])
  assert rows[PROMPT] == "mikoa minne" and len(rows) == 2
  assert len(whole.rows("te")["train"]) == 1
  decoder = folders.read(name, tmp_path, **settings)
  rows = dict(decoder.rows("te")["test"])
  why = PROMPT.replace("Uganda ina mikoa mingapi?", "Kwa nini?")
  assert rows == {f"{PROMPT}\n": "mikoa minne", f"{why}\n": "No Answer"}
  answers = {f"{PROMPT}\n": "ni mikoa mitano.", f"{why}\n": "No answer"}
  score = folders.score(decoder, answers, split="test", language="te")
  assert score == {"squad_em": 50.0, "squad_f1": pytest.approx((40 + 100) / 2)}


def test_parsing(tmp_path):
  """The whole parse must be right, space and case included."""
  parse = "[IN:CREATE_ALARM [SL:DATE_TIME saa 11 alfajiri ] ]"
  rows = [
    {"input": "niamshe saa 11 alfajiri", "target": parse},
    {"input": "niamshe", "target": "[IN:CREATE_ALARM ]"},
  ]
  train = [{"input": "ruka wimbo", "target": "[IN:SKIP_TRACK_MUSIC ]"}]
  write(tmp_path, "semantic_parsing", "sw", train=train, test=rows)
  write(tmp_path, "semantic_parsing", "pt_br", train=train, dev=rows)
  found = folders.read(
    "xtreme_up_parsing", tmp_path, languages=("sw",), split="test", ending=""
  )
  assert found.rows("sw") == {
    "train": (("parse: ruka wimbo", "[IN:SKIP_TRACK_MUSIC ]"),),
    "validation": (),
    "test": found.rows("sw")["test"],
  }
  assert dict(found.rows("sw")["test"]) == {
    "parse: niamshe saa 11 alfajiri": parse,
    "parse: niamshe": "[IN:CREATE_ALARM ]",
  }
  answers = {
    "parse: niamshe saa 11 alfajiri": parse,
    "parse: niamshe": "[IN:CREATE_ALARM]",
  }
  score = folders.score(found, answers, split="test", language="sw")
  assert score == {"exact_match": 50.0}
  # Another word for validation, and a code that is no language's.
  found = folders.read("xtreme_up_parsing", tmp_path, languages=("pt_br",))
  assert len(found.rows("pt_br")["validation"]) == 2


def entity(number, text, target, *spans):
  """A row as MasakhaNER-X has it; its places are of bytes."""
  names = ("start_byte", "limit_byte", "label")
  return {
    "example_id": f"test-{number:08}",
    "language": "yor",
    "text": text,
    "spans": [dict(zip(names, span, strict=True)) for span in spans],
    "target": target,
  }


def test_entities(tmp_path):
  """2 of 3 and 1 of 1 entities of 4 answers and 4 targets: F1 is 2 * 3 / 8."""
  first = entity(
    *(1, "Òjó àti Ada\twà ní Èkó.", "PER: Òjó $$ PER: Ada $$ LOC: Èkó"),
    *((0, 5, "PER"), (11, 14, "PER"), (23, 28, "LOC")),
  )
  content = first["text"].encode()
  found = [content[s["start_byte"] : s["limit_byte"]] for s in first["spans"]]
  assert [one.decode() for one in found] == ["Òjó", "Ada", "Èkó"]
  none = entity(2, "Ó dára.", "")
  one = entity(3, "Èkó!", "LOC: Èkó", (0, 5, "LOC"))
  rows = [first, one, none]
  write(tmp_path, "MasakhaNER-X", "yo", train=[none], test=rows)
  found = folders.read(
    "xtreme_up_ner", tmp_path, languages=("yo",), split="test"
  )
  prompts = {
    "first": "entities: Òjó àti Ada wà ní Èkó.\n",
    "one": "entities: Èkó!\n",
    "none": "entities: Ó dára.\n",
  }
  assert dict(found.rows("yo")["test"]) == {
    prompts["first"]: "PER: Òjó $$ PER: Ada $$ LOC: Èkó",
    prompts["one"]: "LOC: Èkó",
    prompts["none"]: "",
  }
  assert found.rows("yo")["train"] == ()  # it is tested on
  answers = {
    prompts["first"]: "PER: Òjó $$ LOC: Èkó $$ PER: Ade",
    prompts["one"]: "LOC: Èkó",
    prompts["none"]: "none: of: them",
  }
  score = folders.score(found, answers, split="test", language="yo")
  assert score == {"entity_f1": pytest.approx(75)}


def test_a_mixture_of_all_four(tmp_path, vocabulary):
  """Prompts tell the tasks apart; an entity's row without any has an end."""
  names = {
    "qa_in_lang": [QUESTION],
    "semantic_parsing": [{"input": "a", "target": "[IN:A ]"}],
    "ner": [entity(1, "a", "")],
  }
  for name, rows in names.items():
    write(tmp_path, name, "sw", train=rows, test=rows)
  known = reading.known(
    {"xtreme_up": {"folder": str(tmp_path)}},
    names=("xtreme_up_parsing", "xtreme_up_ner"),
    languages=("sw",),
    zero_shot=(),
    split="test",
    others={},
  )
  prompts = [one.rows("sw")["test"][0].inputs for one in known.values()]
  assert prompts == ["parse: a\n", "entities: a\n"]
  write(tmp_path, "ner", "sw", train=[entity(1, "b", "")])
  found = folders.read(
    "xtreme_up_ner", tmp_path, languages=("sw",), split="test"
  )
  mixtures.build(
    vocabulary,
    tasks=("xtreme_up_ner",),
    languages=("sw",),
    known={"xtreme_up_ner": found},
  )
  inputs, targets = tasks.tokens(
    "xtreme_up_ner",
    "sw",
    split="train",
    vocabulary=vocabulary,
    known={"xtreme_up_ner": found},
  )
  assert targets == [[]] and len(inputs) == 1


def test_a_row_that_is_not_as_released(tmp_path):
  row = {key: QUESTION[key] for key in ("question", "title", "context")}
  write(tmp_path, "qa_in_lang", "sw", train=[row], validation=[QUESTION])
  with pytest.raises(
    ValueError,
    match=r"train/sw.jsonl, line 1: the columns target are missing",
  ):
    folders.read("xtreme_up_qa_in_language", tmp_path, languages=("sw",))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(
    ValueError, match=r"Expected train/sw as .jsonl, .* curl .*v1.1.jsonl.tgz"
  ):
    folders.read("xtreme_up_parsing", tmp_path, languages=("sw",))
  assert len(xtreme_up.QA_CROSS_LANGUAGE) == 26
  assert [len(task.languages) for task in xtreme_up.TASKS.values()] == [
    *(9, 26, 24, 20)
  ]
