# SPDX-License-Identifier: Apache-2.0
"""XNLI, PAWS-X and TyDi QA GoldP in mT5's text-to-text form.

    xnli: premise: Er schläft. hypothesis: Er ist wach.  ->  2

Inputs, targets and metrics are those of multilingual_t5/tasks.py (Xue et al.
2021), without the spaces that it puts around punctuation in questions and
answers, so that TyDi QA's answers are compared as they were released. Files are
the hub's, or TFDS's of the same columns. Training rows in other languages than
English are machine translations, but for TyDi QA's.
"""

from sira_jax.data import examples
from sira_jax.data.suites import forms
from sira_jax.metrics import references

XNLI = (
  *("ar", "bg", "de", "el", "en", "es", "fr", "hi"),
  *("ru", "sw", "th", "tr", "ur", "vi", "zh"),
)
PAWS_X = ("de", "en", "es", "fr", "ja", "ko", "zh")
TYDIQA = {
  "arabic": "ar",
  "bengali": "bn",
  "english": "en",
  "finnish": "fi",
  "indonesian": "id",
  "korean": "ko",
  "russian": "ru",
  "swahili": "sw",
  "telugu": "te",
}
"""Of TyDi QA, by the word that a row's id begins with."""


def _xnli(row: forms.Row, training: bool) -> list[examples.Example]:
  """0 is entailment, 1 neutral, 2 contradiction."""
  del training
  inputs = (
    f"xnli: premise: {forms.text(row, 'premise')} hypothesis:"
    f" {forms.text(row, 'hypothesis')}"
  )
  names = ("entailment", "neutral", "contradiction")
  found = forms.label(row, "label", names)
  return [examples.Example(inputs, str(names.index(found)))]


def _tydiqa(row: forms.Row, training: bool) -> list[examples.Example]:
  """To train on, the first answer; any is right."""
  inputs = (
    f"question: {forms.text(row, 'question')} context:"
    f" {forms.text(row, 'context')}"
  )
  answers = forms.texts(row["answers"], "text")
  target = answers[0] if training else references.join(answers)
  return [examples.Example(inputs, target)]


def _tydiqa_language(row: forms.Row) -> str:
  """Ids are such as finnish-7633091408814529542-0."""
  word = forms.text(row, "id").partition("-")[0]
  if word not in TYDIQA:
    raise ValueError(
      "expected column 'id' to begin with a language, one of"
      f" {', '.join(TYDIQA)}, got {row['id']!r:.100}"
    )
  return TYDIQA[word]


TASKS = {
  "xnli": forms.Task(
    examples=_xnli,
    columns=("premise", "hypothesis", "label"),
    metrics=("accuracy",),
    places=("{language}",),
    get=forms.hub("facebook/xnli"),
    splits=forms.ALL_THREE,
    languages=XNLI,
  ),
  "paws_x": forms.Task(
    examples=forms.named_columns(
      "paws", ("sentence1", "sentence2"), ("different_meaning", "paraphrase")
    ),
    columns=("sentence1", "sentence2", "label"),
    metrics=("accuracy",),
    places=("{language}",),
    get=forms.hub("google-research-datasets/paws-x"),
    splits=forms.ALL_THREE,
    tfds="paws_x_wiki/{language}",
    languages=PAWS_X,
  ),
  "tydiqa_goldp": forms.Task(
    examples=_tydiqa,
    columns=("id", "question", "context", "answers"),
    metrics=("squad",),
    places=("secondary_task",),
    get=forms.hub("google-research-datasets/tydiqa"),
    tfds="tydi_qa/goldp",
    languages=tuple(TYDIQA.values()),
    language=_tydiqa_language,
  ),
}
