# SPDX-License-Identifier: Apache-2.0
"""Tasks made of your own files.

    config.files = dict(
      reviews=dict(
        path="reviews.jsonl",
        inputs="Review: {text}\\nSentiment: ",
        targets="{label}",
      )
    )

A path may be of a seqio Task, too (`seqio_rows.py`). All rows are read, checked
and kept in memory before training. A row that cannot be used is an error that
names its file, line and field; none is mended.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import datetime
import decimal
import math
import re
import string
from typing import Any, NamedTuple

from sira_jax import metrics
from sira_jax.data import examples, seqio_rows, tables, tasks

BAD_ROWS = ("error", "skip")
_LISTED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A task's files and what their rows mean: a group of `config.files`.

  The three templates are text in which `{name}` stands for a column of the row;
  `{{` and `}}` are braces.

  Attributes:
    inputs: template of the prompt. Nothing is put between it and the targets:
      let it end in what separates them, such as a newline.
    targets: template of the text that is to follow.
    path: a file of all rows. Its splits (80, 10 and 10 %) are decided by a hash
      of the prompt, so a row that is added moves no other. Or:
    train: a file of the rows to train on;
    validation: one for `evaluation.split="validation"`;
    test: one for `evaluation.split="test"`.
    language: template of the language's code; without a column, all rows'.
    labels: the targets that are allowed; none given: any.
    metrics: keys of `metrics.METRICS`.
    bad_rows: "error", or "skip" to leave bad rows out, counted.

  Raises:
    ValueError: a value that cannot be.
  """

  inputs: str
  targets: str
  path: str | None = None
  train: str | None = None
  validation: str | None = None
  test: str | None = None
  language: str = "en"
  labels: Sequence[str] = ()
  metrics: Sequence[str] = ("exact_match",)
  bad_rows: str = "error"

  def __post_init__(self):
    for name in ("inputs", "targets"):
      if not _columns(name, getattr(self, name)):
        raise ValueError(
          f"{name} must name a column in braces, such as"
          f' "{{text}}", got {getattr(self, name)!r}.'
        )
    if not _columns("language", self.language):
      _check_language(self.language)
    whole, parts = self.path, [self.train, self.validation, self.test]
    if bool(whole) == any(parts):
      raise ValueError(
        "Expected either path, a file to be split, or train, validation and"
        f" test, files of one split each; got path={whole!r} and {parts}."
      )
    for name in ("labels", "metrics"):
      values = getattr(self, name)
      if isinstance(values, str) or any(not isinstance(v, str) for v in values):
        raise ValueError(f"{name} must be a sequence of texts, got {values!r}.")
      if len(set(values)) != len(values):
        raise ValueError(f"{name} must have each once, got {values!r}.")
    if not self.metrics or set(self.metrics) - set(metrics.METRICS):
      raise ValueError(
        f"metrics must be some of {', '.join(metrics.METRICS)}, got"
        f" {tuple(self.metrics)}."
      )
    if self.bad_rows not in BAD_ROWS:
      raise ValueError(
        f"bad_rows must be one of {', '.join(BAD_ROWS)}, got {self.bad_rows!r}."
      )


def sources(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
  """The sources that `config.files` states, by the names of their tasks.

  Raises:
    ValueError: a value that cannot be, or a name that is not one or is taken.
  """
  found = {}
  for name, fields in groups.items():
    try:
      if not re.fullmatch(r"\w+", name):
        raise ValueError("a task's name is of letters, digits and _.")
      if name in tasks.TASKS:
        raise ValueError(f"{name} is the name of a built-in task.")
      found[name] = Source(**fields)
    except ValueError as error:
      raise ValueError(f"config.files.{name}: {error}") from None
  return found


def known(groups: Mapping[str, Mapping[str, Any]]) -> tasks.Known:
  """The built-in tasks and those that `config.files` states, read.

  Raises:
    ValueError: as `sources` and `read`.
  """
  return tasks.TASKS | {
    name: read(source) for name, source in sources(groups).items()
  }


class _Bad(Exception):
  """A row that cannot be used: in which field, of what kind, and what."""

  def __init__(self, kind: str, what: str = "", field: str = ""):
    super().__init__(kind, what, field)
    self.kind, self.what, self.field = kind, what, field


class _Row(NamedTuple):
  language: str
  example: examples.Example


def read(source: Source) -> tasks.Definition:
  """The task of a source's rows.

  Raises:
    ValueError: a file that cannot be read or has no rows, or bad rows: not
      readable, a column that is missing, null, empty, no text and no number,
      not finite or not UTF-8, a target that is no label, or a prompt that
      occurred before in its language. With `bad_rows="skip"`, only if no row
      of a file is left.
  """
  by_language, seen, notes = {}, {}, []
  for split, path in _files(source):
    rows, bad, count = [], [], 0
    for record in _records(path):
      count += 1
      try:
        row = _row(source, record)
        _check_new(row, seen, f"{path}, {record.place}")
      except _Bad as error:
        bad.append((record.place, error))
        continue
      rows.append(row)
    _check_rows(source, path, rows, bad)
    notes.append(_note(path, count, bad))
    for language, example in rows:
      splits = by_language.setdefault(
        language, {name: [] for name in examples.SPLITS}
      )
      splits[split or examples.split_of(example.inputs)].append(example)
  found = {
    language: {split: examples.shuffled(splits[split]) for split in splits}
    for language, splits in sorted(by_language.items())
  }
  return tasks.Definition(
    lambda language: found[language],
    tuple(metrics.METRICS[name] for name in source.metrics),
    tuple(found),
    tuple(notes),
  )


def _files(source: Source) -> Iterator[tuple[str | None, str]]:
  """Splits and their files; training's first, for the first of equals stays."""
  if source.path:
    yield None, source.path
  for split in examples.SPLITS:
    if getattr(source, split):
      yield split, getattr(source, split)


def _records(path: str) -> Iterator[tables.Record]:
  if seqio_rows.names_task(path):
    return seqio_rows.read(path)
  return tables.read(path)


def _row(source: Source, record: tables.Record) -> _Row:
  if record.fault:
    raise _Bad("unreadable", record.fault)
  language = _filled(source.language, record.values)
  try:
    _check_language(language)
  except ValueError as error:
    raise _Bad("wrong language", str(error)) from None
  example = examples.Example(
    _filled(source.inputs, record.values),
    _filled(source.targets, record.values),
  )
  if source.labels and example.targets not in source.labels:
    raise _Bad(
      "unknown label",
      f"{_short(example.targets)} is none of the labels"
      f" {', '.join(source.labels)}",
      ", ".join(_columns("targets", source.targets)),
    )
  return _Row(language, example)


def _check_new(row: _Row, seen: dict, place: str) -> None:
  """Each prompt occurs once in a language, whichever its split."""
  key = row.language, row.example.inputs
  first, targets = seen.setdefault(key, (place, row.example.targets))
  if first != place:
    same = "the same" if targets == row.example.targets else "other"
    raise _Bad("repeated", f"the prompt of {first}, with {same} targets")


def _check_rows(source: Source, path: str, rows: list, bad: list) -> None:
  listed = [
    f"  {place}{f', field {error.field!r}' if error.field else ''}:"
    f" {error.kind}{f': {error.what}' if error.what else ''}"
    for place, error in bad[:_LISTED]
  ]
  listed += [f"  and {len(bad) - _LISTED} more"] if len(bad) > _LISTED else []
  lines = "\n".join(listed)
  if bad and source.bad_rows == "error":
    raise ValueError(
      f"{path} has {len(bad)} bad rows:\n{lines}\nMend them, or set"
      ' bad_rows="skip" to leave them out.'
    )
  if not rows:
    raise ValueError(
      f"{path} has no rows" + (f" that are good:\n{lines}" if bad else ".")
    )


def _note(path: str, count: int, bad: list) -> str:
  """What a run's reader should know of a file."""
  kinds = {}
  for place, error in bad:
    kinds.setdefault(error.kind, []).append(place)
  text = f"{path}: {count - len(bad)} of {count} rows"
  if bad:
    text += "; left out: " + ", ".join(
      f"{len(places)} {kind} (first: {places[0]})"
      for kind, places in kinds.items()
    )
  return text


def _columns(name: str, template: str) -> list[str]:
  """The columns that a template names.

  Raises:
    ValueError: it is none.
  """
  if not isinstance(template, str):
    raise ValueError(f"{name} must be text, got {template!r}.")
  try:
    fields = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(f"{name} is no template: {error}.") from None
  for _, column, form, conversion in fields:
    if column == "" or form or conversion:
      raise ValueError(
        f"{name} must have nothing but columns' names in braces, and two"
        f" braces for one, got {template!r}."
      )
  return [column for _, column, _, _ in fields if column is not None]


def _filled(template: str, values: Mapping[str, Any]) -> str:
  parts = []
  for literal, column, _, _ in string.Formatter().parse(template):
    parts.append(literal)
    if column is not None:
      parts.append(_text(column, values))
  return "".join(parts)


def _text(column: str, values: Mapping[str, Any]) -> str:
  """A value as text: numbers as Python writes them, dates by ISO 8601."""
  if column not in values:
    raise _Bad("no such field", f"there are {', '.join(values)}", column)
  value = values[column]
  match value:
    case str():
      text = value
    case None:
      raise _Bad("null", field=column)
    case bool():
      text = str(value).lower()  # as in JSON
    case int() | float() | decimal.Decimal():
      if not math.isfinite(value):
        raise _Bad("not finite", str(value), column)
      text = str(value)
    case datetime.date() | datetime.time():
      text = value.isoformat()
    case _:
      kind = type(value).__name__
      raise _Bad("wrong type", f"{kind}, neither text nor number", column)
  if not text.strip():
    raise _Bad("empty", field=column)
  try:
    text.encode()
  except UnicodeEncodeError:
    raise _Bad("not UTF-8", _short(text), column) from None
  return text


def _check_language(code: str) -> None:
  if not re.fullmatch(r"[\w.-]+", code):
    raise ValueError(
      f"Expected a language's code, such as en or pt-BR, got {_short(code)}."
    )


def _short(text: str) -> str:
  return ascii(text if len(text) <= 40 else f"{text[:40]} ...")
