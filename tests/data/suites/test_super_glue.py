# SPDX-License-Identifier: Apache-2.0
"""SuperGLUE's tasks, from released rows to metrics."""

import pytest

from sira_jax.metrics import references
from tests.data.suites import folders

NLI = {"premise": "It is.", "hypothesis": "Is it?", "idx": 0}
# Task: the hub's row, that of the benchmark's own file in its folder, inputs
# and targets.
CASES = {
  "boolq": (
    {"question": "is ice water", "passage": "Ice.", "idx": 0, "label": 1},
    ("BoolQ", {"question": "is ice water", "passage": "Ice.", "label": True}),
    ("boolq passage: Ice. question: is ice water", "True"),
  ),
  "cb": (
    NLI | {"label": 1},
    ("CB", NLI | {"label": "contradiction"}),
    ("cb hypothesis: Is it? premise: It is.", "contradiction"),
  ),
  "copa": (
    {"premise": "P.", "choice1": "One.", "choice2": "Two.", "question": "cause"}
    | {"idx": 0, "label": 1},
    (
      "COPA",
      {"premise": "P.", "choice1": "One.", "choice2": "Two.", "label": 1}
      | {"question": "cause", "idx": 0},
    ),
    (
      "copa choice1: One. choice2: Two. premise: P. question: cause",
      "choice2",
    ),
  ),
  "multirc": (
    {"paragraph": "<b>Sent 1: </b>A.<br>", "question": "Q?", "answer": "No"}
    | {"idx": {"paragraph": 0, "question": 0, "answer": 0}, "label": 0},
    (
      "MultiRC",
      {
        "idx": 0,
        "version": 1.1,
        "passage": {
          "text": "<b>Sent 1: </b>A.<br>",
          "questions": [
            {
              "question": "Q?",
              "answers": [{"text": "No", "idx": 0, "label": 0}],
              "idx": 0,
            }
          ],
        },
      },
    ),
    ("multirc question: Q? answer: No paragraph: Sent 1: A. ", "False"),
  ),
  "rte": (
    NLI | {"label": 0},
    ("RTE", NLI | {"label": "entailment"}),
    ("rte hypothesis: Is it? premise: It is.", "entailment"),
  ),
  "wic": (
    {"word": "ice", "sentence1": "Ice.", "sentence2": "No ice.", "label": 0}
    | {"start1": 0, "start2": 3, "end1": 3, "end2": 6, "idx": 0},
    (
      "WiC",
      {"word": "ice", "sentence1": "Ice.", "sentence2": "No ice."}
      | {"label": False, "idx": 0, "version": 1.1},
    ),
    ("wic sentence1: Ice. sentence2: No ice. word: ice", "False"),
  ),
  # The example in the docstring of T5's preprocessors.wsc.
  "wsc": (
    {"text": "This is a test sentence .", "span1_text": "test", "label": 0}
    | {"span1_index": 3, "span2_text": "This", "span2_index": 0, "idx": 0},
    (
      "WSC",
      {
        "text": "This is a test sentence .",
        "target": {"span1_text": "test", "span1_index": 3}
        | {"span2_text": "This", "span2_index": 0},
        "label": False,
      },
    ),
    ("wsc text: # This # is a * test * sentence .", "False"),
  ),
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_text(tmp_path, name, own):
  hub, (folder, theirs), expected = CASES[name]
  if own:
    path, rows = f"{folder}/{{}}.jsonl", theirs
  else:
    path, rows = f"{name}/{{}}/0000.parquet", hub
  for split in ("train", "val" if own else "validation"):
    folders.write(tmp_path / path.format(split), [rows])
  found = folders.read(f"super_glue_{name}", tmp_path, ending="")
  # The same row is tested on, hence not trained on.
  assert found.rows("en")["validation"] == (expected,)
  assert found.rows("en")["train"] == ()
  assert found.notes[-1].startswith("en: 1 training rows left out")


def test_a_pronoun_behind_its_noun(tmp_path):
  row = {"text": "Bob asked Tom if he can .", "span1_text": "Tom", "label": 1}
  row |= {"span1_index": 2, "span2_text": "he", "span2_index": 4}
  folders.write(tmp_path / "wsc.fixed" / "train.jsonl", [row])
  folders.write(tmp_path / "wsc.fixed" / "validation.jsonl", [row])
  found = folders.read("super_glue_wsc", tmp_path, ending="")
  assert found.rows("en")["validation"] == (
    ("wsc text: Bob asked * Tom * if # he # can .", "True"),
  )


QUERY = "A @placeholder is a bird."
PASSAGE = "Birds.\n@highlight\nOne is a penguin\n@highlight\nOne a pigeon"
RECORD = (
  "record query: A @placeholder is a bird. entities: penguin, pigeon passage:"
  " Birds. One is a penguin. One a pigeon"
)


def record(folder, *, own):
  """ReCoRD's rows, of the hub or of the benchmark: two answers are right."""
  row = {"passage": PASSAGE, "query": QUERY, "idx": {"passage": 0, "query": 0}}
  row |= {
    "entities": ["penguin", "pigeon"],
    "answers": ["pigeon", "penguin"],
    "entity_spans": {"text": ["penguin"], "start": [28], "end": [35]},
  }
  if own:
    places = [(PASSAGE.index(word), word) for word in ("pigeon", "penguin")]
    entities = [
      {"start": start, "end": start + len(word) - 1} for start, word in places
    ]
    answers = [
      place | {"text": word}
      for place, (_, word) in zip(entities, places, strict=True)
    ]
    row = {
      "source": "CNN",
      "passage": {"text": PASSAGE, "entities": [*entities, entities[0]]},
      "qas": [{"query": QUERY, "answers": answers, "idx": 0}],
      "idx": 0,
    }
  name = "ReCoRD/{}.jsonl" if own else "record/{}-00000-of-00001.parquet"
  folders.write(folder / name.format("val" if own else "validation"), [row])
  text = json_with(row, "Birds.", "Birds!")
  folders.write(folder / name.format("train"), [text])


def json_with(value, old, new):
  if isinstance(value, dict):
    return {key: json_with(one, old, new) for key, one in value.items()}
  return value.replace(old, new) if isinstance(value, str) else value


@pytest.mark.parametrize("own", [False, True])
def test_record_has_several_answers(tmp_path, own):
  """Each is trained on; any of them is right."""
  record(tmp_path, own=own)
  found = folders.read("super_glue_record", tmp_path)
  changed = RECORD.replace("Birds.", "Birds!") + "\n"
  assert set(found.rows("en")["train"]) == {
    (changed, "penguin"),
    (changed, "pigeon"),
  }
  ((inputs, target),) = found.rows("en")["validation"]
  assert inputs == RECORD + "\n"
  assert references.of(target) == ["pigeon", "penguin"]
  for answer, score in (("Penguin", 100.0), ("pigeon!", 100.0), ("bird", 0.0)):
    assert folders.score(found, {inputs: answer}) == {
      "squad_em": score,
      "squad_f1": score,
    }


def test_scores_of_multirc_and_cb(tmp_path):
  """F1a: of 2 True, 1 found and 1 false alarm, 2 / (2 + 2); CB's mean of F1.

  CB: entailment 2 / 3 of one right and one false alarm, neutral none of one.
  """
  rows = [
    {"paragraph": "P", "question": "Q", "answer": str(i), "label": label}
    for i, label in enumerate((1, 1, 0))
  ]
  folders.write(tmp_path / "multirc" / "train.jsonl", rows[:1])
  folders.write(tmp_path / "multirc" / "validation.jsonl", rows)
  found = folders.read("super_glue_multirc", tmp_path)
  answers = {
    f"multirc question: Q answer: {i} paragraph: P\n": answer
    for i, answer in enumerate(("True", "False", "True"))
  }
  assert folders.score(found, answers) == {"f1": 50.0}
  rows = [NLI | {"premise": str(i), "label": i} for i in (0, 2)]
  folders.write(tmp_path / "cb" / "train.jsonl", rows[:1])
  folders.write(tmp_path / "cb" / "validation.jsonl", rows)
  found = folders.read("super_glue_cb", tmp_path)
  answers = dict.fromkeys(
    (row.inputs for row in found.rows("en")["validation"]), "entailment"
  )
  assert folders.score(found, answers) == {
    "macro_f1": pytest.approx(100 / 3),
    "accuracy": 50.0,
  }
