# SPDX-License-Identifier: Apache-2.0
"""The commonsense tasks; texts are LLM-Adapters' where rows are."""

import pytest

from tests.data.suites import folders

CHOICES = {"text": ["Blue.", "Red.", "Four."], "label": ["A", "B", "C"]}
# Task: the file's folder, the hub's row, inputs, the right answer and a wrong.
CASES = {
  "boolq": (
    "boolq/default",
    {
      "question": "is i cant believe its not butter margarine",
      "answer": False,
      "passage": "I Can't Believe It's Not Butter!",
    },
    "Please answer the following question with true or false, question: is i"
    " cant believe its not butter margarine?\n\nAnswer format: true/false",
    ("false", "true"),
  ),
  "piqa": (
    "piqa/plain_text",
    {
      "goal": "Retain study notes in brain.",
      "sol1": "Go over notes one last time one week before test.",
      "sol2": "Go over notes one last time one day before test.",
      "label": 1,
    },
    "Please choose the correct solution to the question: Retain study notes in"
    " brain.\n\nSolution1: Go over notes one last time one week before test."
    "\n\nSolution2: Go over notes one last time one day before test.\n\nAnswer"
    " format: solution1/solution2",
    ("solution2", "solution1"),
  ),
  "siqa": (
    "social_i_qa/default",
    {
      "context": "Robin wanted to share, so they cut the sandwich.",
      "question": "What does Robin need to do before this?",
      "answerA": "get a knife",
      "answerB": "eat",
      "answerC": "give",
      "label": "1",
    },
    "Please choose the correct answer to the question: Robin wanted to share,"
    " so they cut the sandwich. What does Robin need to do before this?\n\n"
    "Answer1: get a knife Answer2: eat Answer3: give\n\nAnswer format:"
    " answer1/answer2/answer3",
    ("answer1", "answer3"),
  ),
  "hellaswag": (
    "hellaswag/default",
    {
      "ind": 4,
      "activity_label": "Travel",
      "ctx_a": "How to go",
      "ctx_b": "",
      "ctx": "How to go",
      "endings": ["by ear.", "by train.", "on.", "off."],
      "source_id": "wikihow~1",
      "split": "train",
      "split_type": "indomain",
      "label": "1",
    },
    "Please choose the correct ending to complete the given sentence: Travel:"
    " How to go\n\nEnding1: by ear. Ending2: by train. Ending3: on. Ending4:"
    " off.\n\nAnswer format: ending1/ending2/ending3/ending4",
    ("ending2", "ending1"),
  ),
  "winogrande": (
    "winogrande/winogrande_xl",
    {
      "sentence": "The jeans fit worse because I had tried the _ on.",
      "option1": "jeans",
      "option2": "shirt",
      "answer": "2",
    },
    "Please choose the correct answer to fill in the blank to complete the"
    " given sentence: The jeans fit worse because I had tried the _ on.\n\n"
    "Option1: jeans Option2: shirt Answer format: option1/option2",
    ("option2", "option1"),
  ),
  "arc_easy": (
    "ai2_arc/ARC-Easy",
    {"id": "M1", "question": "Which?", "choices": CHOICES, "answerKey": "C"},
    "Please choose the correct answer to the question: Which?\n\nAnswer1: Blue."
    " Answer2: Red. Answer3: Four.\n\nAnswer format: answer1/answer2/answer3",
    ("answer3", "answer2"),
  ),
  "arc_challenge": (
    "ai2_arc/ARC-Challenge",
    {
      "id": "M1",
      "question": "Which?",
      "choices": {"text": ["Blue.", "Red."], "label": ["1", "2"]},
      "answerKey": "2",
    },
    "Please choose the correct answer to the question: Which?\n\nAnswer1: Blue."
    " Answer2: Red.\n\nAnswer format: answer1/answer2",
    ("answer2", "answer1"),
  ),
  "obqa": (
    "openbookqa/main",
    {"id": "7", "question_stem": "It is", "choices": CHOICES, "answerKey": "A"},
    "Please choose the correct answer to the question: It is\n\nAnswer1: Blue."
    " Answer2: Red. Answer3: Four.\n\nAnswer format: answer1/answer2/answer3",
    ("answer1", "answer2"),
  ),
}
COLUMNS = ("question", "question_stem", "goal", "ctx", "sentence")
TESTED = ("arc_easy", "arc_challenge", "obqa")


@pytest.mark.parametrize("name", CASES)
def test_from_rows_to_accuracy(tmp_path, name):
  """The hub's Parquet; what is tested is the released validation set, if so."""
  folder, row, inputs, (right, wrong) = CASES[name]
  test = "test" if name in TESTED else "validation"
  column = next(c for c in COLUMNS if c in row)
  for split in {"train", "validation", test}:
    # Of another text, or it would be the same row as is tested.
    given = row if split == test else row | {column: f"{split}?"}
    file = tmp_path / folder / split / "0000.parquet"
    folders.write(file, [given])
  found = folders.read(f"commonsense_{name}", tmp_path, split="test")
  assert found.rows("en")["test"] == (
    (inputs + "\n", f"the correct answer is {right}"),
  )
  assert len(found.rows("en")["train"]) == 1
  assert len(found.rows("en")["validation"]) == (name in TESTED)
  for answer, score in ((right, 100.0), (wrong, 0.0)):
    answers = {inputs + "\n": f" the correct answer is {answer}"}
    assert folders.score(found, answers, split="test") == {"accuracy": score}


def test_a_label_that_is_hidden_is_refused(tmp_path):
  """HellaSwag's released test rows have the label ""."""
  folder, row, *_ = CASES["hellaswag"]
  for split in ("train", "validation"):
    file = tmp_path / folder / split / "0000.parquet"
    folders.write(file, [row | {"label": ""}])
  with pytest.raises(ValueError, match=r"row 1: expected column 'label' to be"):
    folders.read("commonsense_hellaswag", tmp_path, split="test")
