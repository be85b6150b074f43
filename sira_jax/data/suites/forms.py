# SPDX-License-Identifier: Apache-2.0
"""What a task of a suite is: a released row's columns -> inputs and targets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from sira_jax.data import examples

Row = Mapping[str, Any]

DEV = ("validation", "dev", "val", "valid")
"""What a validation set is called."""

TRAIN_AND_DEV = {"train": ("train",), "validation": DEV}
ALL_THREE = {**TRAIN_AND_DEV, "test": ("test",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A task of a suite.

  Attributes:
    examples: a row, and whether it is trained on -> its examples. Of several
      right answers, each makes one to train on, and all of them one to test;
      a row that is not of the task makes none, which is counted.
    columns: those that a row must have.
    metrics: keys of `metrics.METRICS`.
    places: folders in the suite's, the first of which that there is has the
      task's files; `{language}` stands for a code.
    splits: ours -> what the released files of it may be called; `{language}`
      stands for a code, where a split's folder has a file for each.
    get: the command that fetches the files; `{folder}` stands for the suite's.
    other_names: column -> what another release calls it.
    rows: a row of nested columns -> rows.
    header: the columns of a TSV file that does not name them.
    mangled: whether rows of a TSV with too few or many cells are left out, as
      of a release that is known to have some; else they are an error.
    tfds: its name in TFDS, of the same columns; "" for none.
    languages: codes that it has.
    language: a row -> its code, where a file has all languages.
  """

  examples: Callable[[Row, bool], list[examples.Example]]
  columns: Sequence[str]
  metrics: Sequence[str]
  places: Sequence[str]
  get: str
  splits: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=TRAIN_AND_DEV.copy
  )
  other_names: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  rows: Callable[[Row], Iterable[Row]] | None = None
  header: Sequence[str] = ()
  mangled: bool = False
  tfds: str = ""
  languages: Sequence[str] = ("en",)
  language: Callable[[Row], str] | None = None


def hub(name: str, folder: str = "{folder}") -> str:
  """The command that fetches a data set of the Hugging Face hub as Parquet."""
  return (
    f"hf download {name} --repo-type dataset --revision refs/convert/parquet"
    f" --local-dir {folder}"
  )


def text(row: Row, column: str) -> str:
  """A column's text, of which Parquet and JSON have no other type.

  Raises:
    ValueError: if it is none.
  """
  value = row[column]
  if not isinstance(value, str):
    raise ValueError(f"expected text in column {column!r}, got {value!r:.100}")
  return value


def texts(row: Row, column: str) -> list[str]:
  """A column's list of texts, one at least.

  Raises:
    ValueError: if it is none.
  """
  values = row[column]
  if (
    not isinstance(values, list | tuple)
    or not values
    or not all(isinstance(value, str) for value in values)
  ):
    raise ValueError(
      f"expected a list of texts in column {column!r}, got {values!r:.100}"
    )
  return list(values)


def label(
  row: Row, column: str, names: Sequence[str], *, first: int = 0
) -> str:
  """A class's name, of its number from `first`, true or false, or the name.

  Raises:
    ValueError: if it is none of the classes. Released test sets have -1.
  """
  value = row[column]
  by_text = {str(i): name for i, name in enumerate(names, first)}
  by_text |= {name.lower(): name for name in names}
  found = by_text.get(str(value).lower())
  if isinstance(value, bool) and len(names) == 2:
    found = names[value]
  if found is None:
    raise ValueError(
      f"expected column {column!r} to be one of {first} to"
      f" {first + len(names) - 1} or {', '.join(names)}, got {value!r:.100}"
    )
  return found


def named_columns(
  benchmark: str, columns: Sequence[str], names: Sequence[str]
) -> Callable[[Row, bool], list[examples.Example]]:
  """T5's form of classification: "cola sentence: It is.", "acceptable".

  Raffel et al. 2020, appendix D; t5/data/preprocessors.py, `glue`.
  """

  def convert(row: Row, training: bool) -> list[examples.Example]:
    del training
    parts = [f"{column}: {text(row, column)}" for column in columns]
    inputs = " ".join([benchmark, *parts])
    return [examples.Example(inputs, label(row, "label", names))]

  return convert
