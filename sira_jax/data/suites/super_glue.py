# SPDX-License-Identifier: Apache-2.0
"""SuperGLUE (Wang et al. 2019b) in T5's text-to-text form.

    boolq passage: Ice is frozen water. question: is ice water  ->  True

Inputs, names of classes and metrics are those of t5/data/glue_utils.py (Raffel
et al. 2020, appendix D), but for WSC, whose classes T5 has as True and False in
`preprocessors.wsc`, and as the noun in the form that it trained on; and for
MultiRC's exact match of all answers of a question, which is not computed: its
F1a is. Files are the hub's (aps/super_glue), those of the benchmark's own
download (BoolQ/train.jsonl ...), or TFDS's super_glue/boolq and so on.
"""

from collections.abc import Iterator, Sequence
import re
from typing import Any

from sira_jax.data import examples
from sira_jax.data.suites import forms
from sira_jax.metrics import references

_GET = forms.hub("aps/super_glue")
_TRUTH = ("False", "True")
_SPAN = ("index", "text")


def _task(
  name: str,
  columns: Sequence[str],
  labels: Sequence[str] | None,
  *,
  own: str,
  **others: Any,
) -> forms.Task:
  """A task of the benchmark, of the folder `own` in its own download.

  `columns` are those of the inputs, and `labels` what "label" is of; or all of
  `examples`, and None.
  """
  settings = {"metrics": ("accuracy",), "places": (name, own)}
  if labels is not None:
    settings["examples"] = forms.named_columns(name, columns, labels)
    columns = (*columns, "label")
  return forms.Task(
    columns=columns,
    get=_GET,
    tfds=f"super_glue/{name}",
    **(settings | others),
  )


def _multirc(row: forms.Row, training: bool) -> list[examples.Example]:
  """T5's: classes, and no marks of lines and bold type."""
  columns = ("question", "answer", "paragraph")
  convert = forms.named_columns("multirc", columns, _TRUTH)
  (example,) = convert(row, training)
  plain = re.sub("</?b>", "", example.inputs.replace("<br>", " "))
  return [example._replace(inputs=plain)]


def _multirc_rows(row: forms.Row) -> Iterator[forms.Row]:
  """The benchmark's file has a passage a line, of questions of answers."""
  if "passage" not in row:
    yield row
    return
  for question in row["passage"]["questions"]:
    for answer in question["answers"]:
      yield {
        "paragraph": row["passage"]["text"],
        "question": question["question"],
        "answer": answer["text"],
        "label": answer.get("label"),
      }


def _record(row: forms.Row, training: bool) -> list[examples.Example]:
  """T5's: a query's entity, one example an answer; any of them is right.

  Sentences of a passage's highlights end in full stops.
  """
  passage = re.sub(
    r"([.?!\"'])\n@highlight\n", r"\1 ", forms.text(row, "passage")
  )
  passage = passage.replace("\n@highlight\n", ". ")
  entities = ", ".join(forms.texts(row, "entities"))
  inputs = (
    f"record query: {forms.text(row, 'query')} entities: {entities}"
    f" passage: {passage}"
  )
  answers = forms.texts(row, "answers")
  if not training:
    return [examples.Example(inputs, references.join(answers))]
  return [examples.Example(inputs, one) for one in dict.fromkeys(answers)]


def _record_rows(row: forms.Row) -> Iterator[forms.Row]:
  """The benchmark's file has a passage a line, with places of entities."""
  if "qas" not in row:
    yield row
    return
  passage = row["passage"]["text"]
  entities = {
    passage[place["start"] : place["end"] + 1]
    for place in row["passage"]["entities"]
  }
  for query in row["qas"]:
    yield {
      "passage": passage,
      "query": query["query"],
      "entities": sorted(entities),
      "answers": [answer["text"] for answer in query.get("answers", ())],
    }


def _wsc(row: forms.Row, training: bool) -> list[examples.Example]:
  """`preprocessors.wsc` of T5: * around the noun and # around the pronoun."""
  del training
  text = forms.text(row, "text")
  first, second = int(row["span1_index"]), int(row["span2_index"])
  text = _marked(text, forms.text(row, "span1_text"), first, "*")
  # The marks are two words more.
  second += 2 * (first < second)
  text = _marked(text, forms.text(row, "span2_text"), second, "#")
  return [
    examples.Example(f"wsc text: {text}", forms.label(row, "label", _TRUTH))
  ]


def _marked(text: str, span: str, words: int, mark: str) -> str:
  """`span` between marks where it follows so many words, or as it is."""
  pattern = rf"^((?:\S+\s){{{words}}})({re.escape(span)})"
  return re.sub(pattern, rf"\1{mark} \2 {mark}", text)


def _wsc_rows(row: forms.Row) -> Iterator[forms.Row]:
  """The benchmark's file has the spans in a column of their own."""
  yield {**row, **row["target"]} if "target" in row else row


TASKS = {
  "super_glue_boolq": _task(
    "boolq", ("passage", "question"), _TRUTH, own="BoolQ"
  ),
  "super_glue_cb": _task(
    "cb",
    ("hypothesis", "premise"),
    ("entailment", "contradiction", "neutral"),
    metrics=("macro_f1", "accuracy"),
    own="CB",
  ),
  "super_glue_copa": _task(
    "copa",
    ("choice1", "choice2", "premise", "question"),
    ("choice1", "choice2"),
    own="COPA",
  ),
  "super_glue_multirc": _task(
    "multirc",
    ("question", "answer", "paragraph"),
    _TRUTH,
    examples=_multirc,
    metrics=("f1_true",),
    rows=_multirc_rows,
    own="MultiRC",
  ),
  "super_glue_record": _task(
    "record",
    ("passage", "query", "entities", "answers"),
    None,
    examples=_record,
    metrics=("squad",),
    rows=_record_rows,
    own="ReCoRD",
  ),
  "super_glue_rte": _task(
    "rte",
    ("hypothesis", "premise"),
    ("entailment", "not_entailment"),
    own="RTE",
  ),
  "super_glue_wic": _task(
    "wic", ("sentence1", "sentence2", "word"), _TRUTH, own="WiC"
  ),
  "super_glue_wsc": _task(
    "wsc.fixed",
    ("text", *(f"span{i}_{kind}" for i in "12" for kind in _SPAN), "label"),
    None,
    examples=_wsc,
    places=("wsc.fixed", "wsc", "WSC"),
    rows=_wsc_rows,
    own="WSC",
  ),
}
