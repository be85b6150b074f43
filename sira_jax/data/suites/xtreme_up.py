# SPDX-License-Identifier: Apache-2.0
"""Four tasks of XTREME-UP in text-to-text form: QA, parsing, named entities.

    question: ... title: ... context: ...  ->  No Answer
    parse: niamshe kesho asubuhi  ->  [IN:CREATE_ALARM [SL:DATE_TIME kesho ...
    entities: Museveni yuko Uganda  ->  PER: Museveni $$ LOC: Uganda

Ruder et al. 2023. Columns, folders, languages, inputs, targets and metrics are
those of google-research/xtreme-up, baseline/jsonl_to_seqio_tsv_lib.py and
evaluation/, but for two words: there each task is trained alone, and its prompt
does not name it; here "parse:" and "entities:" tell one from the other.

The released archive has TASK/SPLIT/LANGUAGE.jsonl. It has no named entities:
those are in masakhane-io/masakhane-ner, xtreme-up/MasakhaNER-X.
"""

from collections.abc import Callable, Sequence

from sira_jax.data import examples
from sira_jax.data.suites import forms

QA_IN_LANGUAGE = ("ar", "bn", "en", "fi", "id", "ko", "ru", "sw", "te")
QA_CROSS_LANGUAGE = (
  *("ar", "as", "bho", "bn", "brx", "fi", "gbm", "gom", "gu", "hi", "hne"),
  *("kn", "ko", "mai", "ml", "mni", "mr", "mwr", "or", "pa", "ps", "ru"),
  *("sa", "ta", "te", "ur"),
)
PARSING = (
  *("am", "be", "bn", "bn_cs", "de", "de_localized", "en", "es", "fi", "fr"),
  *("ha", "hi", "hi_cs", "hu", "ja", "pt_br", "ru", "sw", "ta", "ta_cs"),
  *("th", "tr", "yo", "zu"),
)
"""_cs has English words in it, and de_localized other names than de."""
NER = (
  *("am", "bbj", "bm", "ee", "ha", "ig", "lg", "luo", "mos", "ny", "pcm"),
  *("rw", "sn", "sw", "tn", "tw", "wo", "xh", "yo", "zu"),
)


def _qa(row: forms.Row, training: bool) -> list[examples.Example]:
  """Cross-language: the question is in the row's language, all else English."""
  del training
  inputs = (
    f"question: {forms.text(row, 'question')} title: {forms.text(row, 'title')}"
    f" context: {forms.text(row, 'context')}"
  )
  return [examples.Example(inputs, forms.text(row, "target"))]


def _parsing(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  inputs = f"parse: {forms.text(row, 'input')}"
  return [examples.Example(inputs, forms.text(row, "target"))]


def _ner(row: forms.Row, training: bool) -> list[examples.Example]:
  """Entities in the order of the text; of none, the target is empty."""
  del training
  # In the release's converter too, a tab is what separates columns.
  text, target = (
    forms.text(row, column).replace("\t", " ") for column in ("text", "target")
  )
  return [examples.Example(f"entities: {text}", target)]


_ARCHIVE = (
  "curl https://storage.googleapis.com/xtreme-up/xtreme-up-v1.1.jsonl.tgz"
  " | tar xz --strip-components=1 -C {folder}"
)


def _task(
  convert: Callable[[forms.Row, bool], list[examples.Example]],
  columns: Sequence[str],
  *,
  name: str,
  metric: str,
  languages: Sequence[str],
  get: str = _ARCHIVE,
  places: Sequence[str] = ("{name}", "xtreme_up_v1.1/{name}"),
) -> forms.Task:
  return forms.Task(
    examples=convert,
    columns=columns,
    metrics=(metric,),
    places=[place.replace("{name}", name) for place in places],
    get=get,
    splits={
      split: tuple(f"{one}/{{language}}" for one in names)
      for split, names in forms.ALL_THREE.items()
    },
    languages=languages,
  )


_QA = ("question", "title", "context", "target")

TASKS = {
  "xtreme_up_qa_in_language": _task(
    _qa, _QA, name="qa_in_lang", metric="squad", languages=QA_IN_LANGUAGE
  ),
  "xtreme_up_qa_cross_language": _task(
    _qa, _QA, name="qa_cross_lang", metric="squad", languages=QA_CROSS_LANGUAGE
  ),
  "xtreme_up_parsing": _task(
    _parsing,
    ("input", "target"),
    name="semantic_parsing",
    metric="exact_match",
    languages=PARSING,
  ),
  "xtreme_up_ner": _task(
    _ner,
    ("text", "target"),
    name="ner",
    metric="entity_f1",
    languages=NER,
    get=(
      "git clone https://github.com/masakhane-io/masakhane-ner"
      " {folder}/masakhane-ner"
    ),
    places=("{name}", "MasakhaNER-X", "masakhane-ner/xtreme-up/MasakhaNER-X"),
  ),
}
