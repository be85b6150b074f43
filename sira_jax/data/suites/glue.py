# SPDX-License-Identifier: Apache-2.0
"""GLUE (Wang et al. 2019) in T5's text-to-text form.

    mnli hypothesis: He sleeps. premise: He is awake.  ->  contradiction

Inputs, names of classes and metrics are those of t5/data/glue_utils.py (Raffel
et al. 2020, appendix D). The validation sets are the released ones; the test
sets' labels are not public. Files are the hub's (nyu-mll/glue), those of the
benchmark's own download (CoLA/train.tsv ...), or TFDS's glue/cola and so on.
"""

from collections.abc import Sequence
from typing import Any

from sira_jax.data import examples
from sira_jax.data.suites import forms

_GET = forms.hub("nyu-mll/glue")


def _task(
  name: str,
  columns: Sequence[str],
  labels: Sequence[str],
  metrics: Sequence[str],
  *,
  own: str,
  **others: Any,
) -> forms.Task:
  """A task of the benchmark, of the folder `own` in its own download."""
  settings = {
    "examples": forms.named_columns(name, columns, labels),
    "tfds": f"glue/{name}",
  }
  return forms.Task(
    columns=(*columns, "label"),
    metrics=metrics,
    places=(name, own),
    get=_GET,
    **(settings | others),
  )


def _stsb(row: forms.Row, training: bool) -> list[examples.Example]:
  """T5's form: to train on, a multiple of 0.2; to test, the number itself.

  T5 tests on multiples, too; GLUE does not.
  """
  try:
    number = float(row["label"])
  except (TypeError, ValueError):
    number = -1.0
  if not 0 <= number <= 5:
    raise ValueError(
      f"expected a number from 0 to 5 in column 'label', got {row['label']!r}"
    )
  pair = (f"{c}: {forms.text(row, c)}" for c in ("sentence1", "sentence2"))
  rounded = f"{round(number * 5) / 5:.1f}"
  target = rounded if training else f"{number:.3f}"
  return [examples.Example(" ".join(["stsb", *pair]), target)]


def _mnli(dev: str) -> forms.Task:
  return _task(
    "mnli",
    ("hypothesis", "premise"),
    ("entailment", "neutral", "contradiction"),
    ("accuracy",),
    own="MNLI",
    splits={
      "train": ("train",),
      "validation": (f"validation_{dev}", f"dev_{dev}"),
    },
    other_names={
      "hypothesis": ("sentence2",),
      "premise": ("sentence1",),
      "label": ("gold_label",),
    },
  )


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
  "glue_cola": _task(
    "cola",
    ("sentence",),
    ("unacceptable", "acceptable"),
    ("matthews",),
    own="CoLA",
    header=("source", "label", "author", "sentence"),
  ),
  "glue_sst2": _task(
    "sst2", ("sentence",), ("negative", "positive"), ("accuracy",), own="SST-2"
  ),
  "glue_mrpc": _task(
    "mrpc",
    _PAIR,
    ("not_equivalent", "equivalent"),
    ("f1_equivalent", "accuracy"),
    own="MRPC",
    other_names={
      "sentence1": ("#1 String",),
      "sentence2": ("#2 String",),
      "label": ("Quality",),
    },
  ),
  "glue_qqp": _task(
    "qqp",
    ("question1", "question2"),
    ("not_duplicate", "duplicate"),
    ("f1_duplicate", "accuracy"),
    own="QQP",
    other_names={"label": ("is_duplicate",)},
    mangled=True,
  ),
  "glue_stsb": _task(
    "stsb",
    _PAIR,
    (),
    ("pearson", "spearman"),
    own="STS-B",
    examples=_stsb,
    other_names={"label": ("score",)},
  ),
  "glue_mnli": _mnli("matched"),
  "glue_mnli_mismatched": _mnli("mismatched"),
  "glue_qnli": _task(
    "qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), own="QNLI"
  ),
  "glue_rte": _task("rte", _PAIR, _ENTAILMENT, ("accuracy",), own="RTE"),
  "glue_wnli": _task(
    "wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",), own="WNLI"
  ),
}
"""MNLI's two validation sets are two tasks of the same training rows."""
