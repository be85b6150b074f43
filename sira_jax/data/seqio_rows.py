# SPDX-License-Identifier: Apache-2.0
"""The rows of a seqio Task that a Python file of yours registers.

    my_tasks.py:cola/train        module.of.tasks:cola/validation

are what the Task `cola` makes of a split of its source, up to where tokens
begin: a base model has a tokenizer of its own.
"""

from collections.abc import Iterator
import functools
import importlib
import importlib.util
import pathlib
import re
import sys
from typing import Any

import numpy as np
import seqio

from sira_jax.data import quiet, tables

_PATH = re.compile(r"(?P<module>[^:]+):(?P<task>[\w.:#]+)/(?P<split>\w+)")
_TOKENIZE = (
  seqio.preprocessors.tokenize,
  seqio.preprocessors.tokenize_and_append_eos,
)
# What may follow: our own tasks append ends themselves.
_ENDS = (
  seqio.preprocessors.append_eos,
  seqio.preprocessors.append_eos_after_trim,
)


def names_task(path: str) -> bool:
  """Whether it is the path of a Task's split."""
  return bool(_PATH.fullmatch(path))


def read(path: str) -> Iterator[tables.Record]:
  """The examples of a split, counted from 1, with all their features.

  The Task's own vocabularies, metrics and postprocessor are not used.

  Raises:
    ValueError: the module cannot be imported, has no such Task or split, the
      Task changes tokens, or it fails.
  """
  module, name, split = _PATH.fullmatch(path).groups()
  task = _task(module, name)
  if split not in task.splits:
    raise ValueError(
      f"{path}: the Task has no split {split!r}. It has:"
      f" {', '.join(task.splits)}."
    )
  textual = task.replace(preprocessors=_textual(task), output_features={})
  try:
    with quiet.logs():
      rows = textual.get_dataset(
        split=split, shuffle=False, seed=0, try_in_mem_cache=False
      )
      for number, row in enumerate(rows.as_numpy_iterator(), 1):
        values = {key: _value(value) for key, value in row.items()}
        yield tables.Record(f"example {number}", values)
  except Exception as error:  # what a user's functions raise may be anything
    kind = type(error).__name__
    raise ValueError(f"{path} fails: {kind}: {error}") from error


def _task(module: str, name: str) -> seqio.Task:
  _imported(module)
  if name not in seqio.TaskRegistry.names():
    known = ", ".join(sorted(seqio.TaskRegistry.names()))
    raise ValueError(
      f"{module} registers no seqio Task {name!r}. Registered are:"
      f" {known or 'none'}."
    )
  return seqio.TaskRegistry.get(name)


# Once, for no Task can be registered twice.
@functools.cache
def _imported(module: str) -> None:
  try:
    if not module.endswith(".py"):
      importlib.import_module(module)
      return
    file = pathlib.Path(module).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    found = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, found)
    spec.loader.exec_module(found)
  except Exception as error:  # a user's module may raise anything
    kind = type(error).__name__
    raise ValueError(f"{module} cannot be imported: {kind}: {error}") from error


def _textual(task: seqio.Task) -> list[Any]:
  """The preprocessors before the first that makes tokens."""
  steps = [
    step
    for step in task.preprocessors
    if not isinstance(step, seqio.CacheDatasetPlaceholder)
  ]
  plain = [getattr(step, "func", step) for step in steps]  # of a partial
  tokens = (*_TOKENIZE, *_ENDS)
  first = next(
    (i for i, step in enumerate(plain) if step in tokens), len(steps)
  )
  others = [step for step in plain[first:] if step not in tokens]
  if others:
    names = ", ".join(getattr(one, "__name__", repr(one)) for one in others)
    raise ValueError(
      f"The seqio Task {task.name!r} changes tokens ({names}), which are not"
      " those of the base. Only what comes before"
      " seqio.preprocessors.tokenize can be used."
    )
  return steps[:first]


def _value(value: Any) -> Any:
  """As Python has it; an array stays one."""
  if isinstance(value, bytes):
    return value.decode("utf-8", "surrogateescape")
  return value.item() if isinstance(value, np.generic) else value
