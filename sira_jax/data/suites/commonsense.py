# SPDX-License-Identifier: Apache-2.0
"""The eight commonsense tasks of LoRA-SMoE, in the form of LLM-Adapters.

    Please choose the correct solution to the question: Keep notes.

    Solution1: Read them. Solution2: ...  ->  the correct answer is solution1

BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC-e, ARC-c and OBQA as instructions
(Hu et al. 2023, AGI-Edgerunners/LLM-Adapters, dataset/*/test.json), which
LoRA-SMoE (Xu et al. 2025) and its relatives train on; BoolQ's has no passage.
Their prompts are put into Alpaca's, ours are not; they look for the answer's
name in what is written, ours must be the whole sentence. As in theirs, the test
set is the released validation set where the test set's labels are not public:
of all but ARC and OBQA. Files are the hub's, a folder for each data set.
"""

from collections.abc import Callable, Sequence

from sira_jax.data import examples
from sira_jax.data.suites import forms

_HIDDEN = {"train": ("train",), "test": forms.DEV}


def _example(inputs: str, answer: str) -> list[examples.Example]:
  return [examples.Example(inputs, f"the correct answer is {answer}")]


def _listed(
  question: str,
  choices: Sequence[str],
  *,
  kind: str,
  separator: str = " ",
  before_format: str = "\n\n",
) -> str:
  """The question, its numbered choices, and how to name one."""
  named = [f"{kind.title()}{i}: {c}" for i, c in enumerate(choices, 1)]
  names = "/".join(f"{kind}{i}" for i in range(1, len(choices) + 1))
  return (
    f"{question}\n\n{separator.join(named)}{before_format}Answer format:"
    f" {names}"
  )


def _boolq(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  return _example(
    "Please answer the following question with true or false, question:"
    f" {forms.text(row, 'question')}?\n\nAnswer format: true/false",
    forms.label(row, "answer", ("false", "true")),
  )


def _piqa(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  inputs = _listed(
    "Please choose the correct solution to the question:"
    f" {forms.text(row, 'goal')}",
    [forms.text(row, "sol1"), forms.text(row, "sol2")],
    kind="solution",
    separator="\n\n",
  )
  return _example(inputs, forms.label(row, "label", ("solution1", "solution2")))


def _siqa(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  inputs = _listed(
    "Please choose the correct answer to the question:"
    f" {forms.text(row, 'context')} {forms.text(row, 'question')}",
    [forms.text(row, f"answer{letter}") for letter in "ABC"],
    kind="answer",
  )
  names = ("answer1", "answer2", "answer3")
  return _example(inputs, forms.label(row, "label", names, first=1))


def _hellaswag(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  inputs = _listed(
    "Please choose the correct ending to complete the given sentence:"
    f" {forms.text(row, 'activity_label')}: {forms.text(row, 'ctx')}",
    forms.texts(row, "endings"),
    kind="ending",
  )
  names = [f"ending{i}" for i in range(1, len(row["endings"]) + 1)]
  return _example(inputs, forms.label(row, "label", names))


def _winogrande(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  inputs = _listed(
    "Please choose the correct answer to fill in the blank to complete the"
    f" given sentence: {forms.text(row, 'sentence')}",
    [forms.text(row, "option1"), forms.text(row, "option2")],
    kind="option",
    before_format=" ",
  )
  names = ("option1", "option2")
  return _example(inputs, forms.label(row, "answer", names, first=1))


def _choices(
  question: str,
) -> Callable[[forms.Row, bool], list[examples.Example]]:
  """Of ARC and OBQA, whose questions are in the column `question`.

  A few questions of ARC have three or five choices, or numbers for letters.
  """

  def convert(row: forms.Row, training: bool) -> list[examples.Example]:
    del training
    choices = row["choices"]
    if not isinstance(choices, dict) or not {"text", "label"} <= set(choices):
      raise ValueError(
        "expected column 'choices' to have text and label, got"
        f" {choices!r:.100}"
      )
    letters = forms.texts(choices, "label")
    inputs = _listed(
      "Please choose the correct answer to the question:"
      f" {forms.text(row, question)}",
      forms.texts(choices, "text"),
      kind="answer",
    )
    key = forms.text(row, "answerKey")
    if key not in letters:
      raise ValueError(
        f"expected column 'answerKey' to be one of {', '.join(letters)}, got"
        f" {key!r:.100}"
      )
    return _example(inputs, f"answer{letters.index(key) + 1}")

  return convert


def _task(
  convert: Callable[[forms.Row, bool], list[examples.Example]],
  columns: Sequence[str],
  *,
  name: str,
  folder: str,
  configs: Sequence[str] = ("default", "plain_text"),
  splits: dict = _HIDDEN,
) -> forms.Task:
  """A task of the hub's data set `name`, one of whose configs it is."""
  within = [f"{folder}/{config}" for config in configs]
  return forms.Task(
    examples=convert,
    columns=columns,
    metrics=("accuracy",),
    places=(*within, f"{folder}/data", folder),
    get=forms.hub(name, f"{{folder}}/{folder}"),
    splits=splits,
  )


def _of_choices(question: str, **settings: object) -> forms.Task:
  columns = (question, "choices", "answerKey")
  return _task(_choices(question), columns, splits=forms.ALL_THREE, **settings)


TASKS = {
  "commonsense_boolq": _task(
    _boolq, ("question", "answer"), name="google/boolq", folder="boolq"
  ),
  "commonsense_piqa": _task(
    _piqa, ("goal", "sol1", "sol2", "label"), name="ybisk/piqa", folder="piqa"
  ),
  "commonsense_siqa": _task(
    _siqa,
    ("context", "question", "answerA", "answerB", "answerC", "label"),
    name="allenai/social_i_qa",
    folder="social_i_qa",
  ),
  "commonsense_hellaswag": _task(
    _hellaswag,
    ("activity_label", "ctx", "endings", "label"),
    name="Rowan/hellaswag",
    folder="hellaswag",
  ),
  "commonsense_winogrande": _task(
    _winogrande,
    ("sentence", "option1", "option2", "answer"),
    name="allenai/winogrande",
    folder="winogrande",
    configs=("winogrande_xl",),
  ),
  "commonsense_arc_easy": _of_choices(
    "question", name="allenai/ai2_arc", folder="ai2_arc", configs=("ARC-Easy",)
  ),
  "commonsense_arc_challenge": _of_choices(
    "question",
    name="allenai/ai2_arc",
    folder="ai2_arc",
    configs=("ARC-Challenge",),
  ),
  "commonsense_obqa": _of_choices(
    "question_stem",
    name="allenai/openbookqa",
    folder="openbookqa",
    configs=("main",),
  ),
}
