# SPDX-License-Identifier: Apache-2.0
"""The tasks of the suites that a config names, of the files in its folders.

    config.suites = dict(glue=dict(folder="data/glue"))
    config.mixture.tasks = ("glue_cola", "glue_rte")

All rows are those of the release, in the evaluation sets in any case; of the
training rows, those whose prompt an evaluation set of the task has are left
out, and counted.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from sira_jax import metrics
from sira_jax.data import examples, tables, tasks
from sira_jax.data.suites import (
  commonsense,
  debian,
  forms,
  glue,
  multilingual,
  released,
  super_glue,
  xsum,
  xtreme_up,
)

SUITES: Mapping[str, Mapping[str, forms.Task]] = {
  "glue": glue.TASKS,
  "super_glue": super_glue.TASKS,
  "commonsense": commonsense.TASKS,
  **{name: {name: task} for name, task in multilingual.TASKS.items()},
  "xsum": xsum.TASKS,
  "xtreme_up": xtreme_up.TASKS,
  "debian": debian.TASKS,
}
"""The tasks of each suite; a suite of one task has its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """Where a suite's files are: a group of `config.suites`, by its name.

  Attributes:
    folder: of the files as they were released, or of data that TFDS prepared.
    ending: put behind each prompt, to separate it from what follows. For an
      encoder, or an encoder-decoder as T5 was trained, take "".

  Raises:
    ValueError: a value that cannot be.
  """

  folder: str
  ending: str = "\n"

  def __post_init__(self):
    if not isinstance(self.folder, str) or not self.folder:
      raise ValueError(f"folder must be a path, got {self.folder!r}.")
    if not isinstance(self.ending, str):
      raise ValueError(f"ending must be text, got {self.ending!r}.")


def check(
  groups: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> dict[str, tuple[Suite, forms.Task]]:
  """The tasks among `names` that are of suites, and where their files are.

  Raises:
    ValueError: an unknown suite, one that no task is of, a value that cannot
      be, or a task of a suite that the config does not have.
  """
  suites, found = {}, {}
  for suite, fields in groups.items():
    if suite not in SUITES:
      raise ValueError(
        f"config.suites has no {suite!r}. Available are: {', '.join(SUITES)}."
      )
    try:
      suites[suite] = Suite(**fields)
    except ValueError as error:
      raise ValueError(f"config.suites.{suite}: {error}") from None
  for suite, known in SUITES.items():
    named = [name for name in names if name in known]
    if suite in suites and not named:
      raise ValueError(
        f"config.suites has {suite}, of whose tasks config.mixture.tasks names"
        f" none: add some of {', '.join(known)}, or drop the group."
      )
    if named and suite not in suites:
      raise ValueError(
        f"The task {named[0]!r} is of files: say where they are,"
        f' config.suites = dict({suite}=dict(folder="...")). To get them:'
        f" {known[named[0]].get.format(folder='FOLDER')}"
      )
    found |= {name: (suites[suite], known[name]) for name in named}
  return found


def known(
  groups: Mapping[str, Mapping[str, Any]],
  *,
  names: Sequence[str],
  languages: Sequence[str],
  zero_shot: Sequence[str],
  split: str,
  others: tasks.Known,
) -> tasks.Known:
  """The tasks `others`, and those of suites, read.

  Args:
    groups: `config.suites`.
    names: of the tasks that are needed, of suites or not.
    languages: that are trained on, hence needed.
    zero_shot: of which no training rows are read.
    split: of the evaluation, hence needed.
    others: the other tasks that there are.

  Raises:
    ValueError: as `check` and `read`, or a task's name is one of the others'.
  """
  found = {}
  for name, (suite, task) in check(groups, names).items():
    if name in others:
      raise ValueError(
        f"Both config.suites and config.files have a task {name}: rename yours."
      )
    found[name] = read(
      name,
      task,
      suite,
      languages=languages,
      zero_shot=zero_shot,
      split=split,
    )
  return {**others, **found}


def read(
  name: str,
  task: forms.Task,
  suite: Suite,
  *,
  languages: Sequence[str],
  zero_shot: Sequence[str] = (),
  split: str = "validation",
) -> tasks.Definition:
  """The task of the rows in a suite's folder.

  Raises:
    ValueError: a language that the task does not have, a file that is not
      there or cannot be read, or a row that is not as released. It says what
      was expected, and how to get the files.
  """
  by_language, notes, reader = {}, [], _Reader(name, task, suite)
  for language in (*languages, *zero_shot):
    if language not in task.languages:
      raise ValueError(
        f"Task {name!r} has no language {language!r}. It has:"
        f" {', '.join(task.languages)}."
      )
    rows = {one: [] for one in examples.SPLITS}
    for one in examples.SPLITS:
      if one != "train" or language in languages:
        needed = one in ("train", split)
        rows[one] = reader.rows(one, language, needed=needed)
    tested = {row.inputs for row in rows["validation"] + rows["test"]}
    kept = [row for row in rows["train"] if row.inputs not in tested]
    if len(kept) < len(rows["train"]):
      notes.append(
        f"{language}: {len(rows['train']) - len(kept)} training rows left out,"
        " whose prompt is to be tested"
      )
    rows["train"] = kept
    by_language[language] = {
      one: examples.shuffled(rows[one]) for one in examples.SPLITS
    }
  return tasks.Definition(
    lambda language: by_language[language],
    tuple(metrics.METRICS[metric] for metric in task.metrics),
    tuple(by_language),
    (*reader.notes, *notes),
  )


class _Reader:
  """Reads each file of a task once."""

  def __init__(self, name: str, task: forms.Task, suite: Suite):
    self.name, self.task, self.suite = name, task, suite
    self.notes = []
    self._read = {}

  def rows(self, split: str, language: str, *, needed: bool) -> list:
    """The examples of a split in a language; none if no file is `needed`."""
    names = self.task.splits.get(split, ())
    paths = names and released.find(
      self.task, self.suite.folder, names=names, language=language
    )
    if needed and not paths:
      raise ValueError(self._missing(split, language))
    found = []
    for path in paths:
      if (path, split) not in self._read:
        self._read[path, split] = list(self._examples(path, split))
      found += [
        example
        for code, example in self._read[path, split]
        if code in (None, language)
      ]
    if needed and not found:
      raise ValueError(
        f"{paths[0]} has no rows of {self.name} in {language!r}."
      )
    return found

  def _examples(self, path: str, split: str):
    """Each example of a file, and its language where the file has several."""
    task, count, mangled, without = self.task, 0, 0, 0
    for record in released.read(task, path):
      if record.fault and task.mangled and path.endswith(".tsv"):
        mangled += 1
        continue
      try:
        if record.fault:
          raise ValueError(record.fault)
        for row in _rows(task, record):
          code = task.language(row) if task.language else None
          made = task.examples(row, split == "train")
          without += not made
          for example in made:
            inputs = example.inputs + self.suite.ending
            _check_text(inputs + example.targets)
            yield code, examples.Example(inputs, example.targets)
            count += 1
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(self._wrong(path, record, error)) from error
    self.notes.append(
      f"{path}: {count} examples"
      + f"; {mangled} mangled rows left out" * (mangled > 0)
      + f"; {without} rows are none of the task's" * (without > 0)
    )

  def _missing(self, split, language):
    task, folder = self.task, self.suite.folder
    places = " or ".join(
      f"{folder}/{place.format(language=language)}" for place in task.places
    )
    names = " or ".join(task.splits.get(split, ())).format(language=language)
    if not names:
      return (
        f"Task {self.name!r} has no split {split!r}. It has:"
        f" {', '.join(task.splits)}: set config.evaluation.split."
      )
    return (
      f"There is no file of {self.name}, split {split!r}, language"
      f" {language!r}. Expected {names} as {', '.join(tables.FORMATS)}, or a"
      f" folder or shards of that name, in {places}"
      + (f", or TFDS's {task.tfds} in {folder}" if task.tfds else "")
      + f"; with the columns {', '.join(task.columns)}. To get it:"
      f" {task.get.format(folder=folder)}"
    )

  def _wrong(self, path, record, error):
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return (
      f"{path}, {record.place}: {kind}{error}. A row of {self.name} must have"
      f" the columns {', '.join(self.task.columns)}; this one has"
      f" {', '.join(record.values) or 'none'}. To get the files:"
      f" {self.task.get.format(folder=self.suite.folder)}"
    )


def _rows(task: forms.Task, record: tables.Record) -> list[forms.Row]:
  """A record's rows, with all columns by their names."""
  found = []
  for row in task.rows(record.values) if task.rows else [record.values]:
    named = dict(row)
    for column, others in task.other_names.items():
      for other in others:
        if column not in named and other in named:
          named[column] = named[other]
    lacking = [column for column in task.columns if column not in named]
    if lacking:
      raise ValueError(f"the columns {', '.join(lacking)} are missing")
    found.append(named)
  return found


def _check_text(text: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError:
    raise ValueError(f"not UTF-8: {text[:80]!a}") from None
