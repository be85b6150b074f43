# SPDX-License-Identifier: Apache-2.0
"""The text-to-text tasks, each a seqio Task in every language.

A task's tokens are the base model's, so its seqio Task is made at run time,
for a vocabulary. Your own task is one more entry of `TASKS`, or comes from
files (`files.py`): `known` is what names there are.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from sira_jax import metrics
from sira_jax.data import (
  dates,
  examples,
  intents,
  languages,
  names,
  vocabularies,
)


@dataclasses.dataclass(frozen=True)
class Definition:
  """What makes a task.

  Attributes:
    rows: the examples of a language by split, always the same in the same
      order; each prompt occurs once.
    metric_fns: seqio metric functions of (targets, predictions).
    languages: the codes that `rows` takes.
    notes: where the rows are from and what was left out, for a run's reader.
  """

  rows: Callable[[str], examples.Rows]
  metric_fns: tuple[Callable[..., dict[str, Any]], ...]
  languages: tuple[str, ...]
  notes: tuple[str, ...] = ()


Known = Mapping[str, Definition]

TASKS: Known = {
  "intents": Definition(
    intents.rows,
    (metrics.exact_match, metrics.intent_accuracy),
    tuple(languages.LANGUAGES),
  ),
  "intent_names": Definition(
    intents.names,
    (metrics.accuracy, metrics.macro_f1),
    tuple(languages.LANGUAGES),
  ),
  "dates": Definition(
    dates.rows, (metrics.exact_match,), tuple(languages.LANGUAGES)
  ),
  "names": Definition(
    names.rows, (metrics.exact_match,), tuple(languages.LANGUAGES)
  ),
}


def get(task: str, language: str, *, known: Known = TASKS) -> Definition:
  """The definition of a task that exists in this language.

  Raises:
    ValueError: if there is no such task, or not in this language.
  """
  if task not in known:
    raise ValueError(
      f"Unknown task {task!r}. Available are: {', '.join(known)}."
    )
  definition = known[task]
  if language not in definition.languages:
    languages = ", ".join(definition.languages)
    raise ValueError(
      f"Task {task!r} has no language {language!r}. It has: {languages}."
    )
  return definition


def rows(
  task: str, language: str, *, split: str, known: Known = TASKS
) -> tuple[examples.Example, ...]:
  """The examples of one split.

  Raises:
    ValueError: if the task, the language or the split does not exist, or the
      split is empty.
  """
  definition = get(task, language, known=known)
  splits = definition.rows(language)
  if not splits.get(split):
    names = ", ".join(name for name in splits if splits[name])
    notes = "".join(f" ({note})" for note in definition.notes)
    raise ValueError(
      f"Task {task!r} in {language!r} has no examples in split {split!r}. It"
      f" has some in: {names or 'none'}.{notes}"
    )
  return splits[split]


# Keyed by the definition, so that its tokens and its seqio Task are kept.
@functools.lru_cache(maxsize=256)
def limited(definition: Definition, limit: int) -> Definition:
  """The task with at most `limit` examples to train on in each language.

  Those of `examples.few`; what it is tested on stays.
  """

  @functools.cache
  def rows(language: str) -> examples.Rows:
    splits = dict(definition.rows(language))
    if "train" in splits:
      splits["train"] = examples.few(splits["train"], limit)
    return splits

  return dataclasses.replace(definition, rows=rows)


def register(
  task: str,
  language: str,
  *,
  vocabulary: vocabularies.TokenizerVocabulary,
  known: Known = TASKS,
) -> seqio.Task:
  """The seqio Task `<task>_<language>` for a vocabulary, from its registry.

  The same vocabulary gives the same Task again. Another one takes the name
  over: a mixture made before keeps the Task that it was made of.

  Raises:
    ValueError: if the task does not exist, or not in this language.
  """
  # seqio allows no hyphen in a name, and codes such as pt-BR have one.
  name = f"{task}_{language}".replace("-", "_")
  definition = get(task, language, known=known)
  made = _seqio_task(name, definition, language, vocabulary)
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add_provider(name, made)
  return made


def tokens(
  task: str,
  language: str,
  *,
  split: str,
  vocabulary: vocabularies.TokenizerVocabulary,
  known: Known = TASKS,
) -> tuple[list[list[int]], list[list[int]]]:
  """Token ids of inputs and targets, in the order of `rows`, without ends.

  Raises:
    ValueError: as `rows`.
  """
  rows(task, language, split=split, known=known)
  definition = get(task, language, known=known)
  return _tokens(definition, language, split, vocabulary)


# Keyed by the definition: who replaces an entry of `TASKS` gets new tokens.
@functools.lru_cache(maxsize=256)
def _tokens(
  definition: Definition,
  language: str,
  split: str,
  vocabulary: vocabularies.TokenizerVocabulary,
) -> tuple[list[list[int]], list[list[int]]]:
  inputs, targets = zip(*definition.rows(language)[split], strict=True)
  return vocabulary.encode_batch(inputs), vocabulary.encode_targets(targets)


@functools.lru_cache(maxsize=256)
def _seqio_task(
  name: str,
  definition: Definition,
  language: str,
  vocabulary: vocabularies.TokenizerVocabulary,
) -> seqio.Task:
  """A seqio Task whose source has the text, and its tokens beside it.

  Tokenizing there, all at once, instead of by `seqio.preprocessors.tokenize`
  was measured to be several times as fast, and leaves no Python in the
  pipeline.
  """
  splits = definition.rows(language)

  def dataset_fn(
    split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    del shuffle_files, seed  # The rows are in random order.
    texts = zip(*splits[split], strict=True)
    ids = _tokens(definition, language, split, vocabulary)
    features = {}
    for feature, text, sequences in zip(
      ("inputs", "targets"), texts, ids, strict=True
    ):
      features[f"{feature}_pretokenized"] = list(text)
      features[feature] = tf.RaggedTensor.from_row_lengths(
        np.concatenate(sequences).astype(np.int32),
        [len(sequence) for sequence in sequences],
      )
    return tf.data.Dataset.from_tensor_slices(features)

  return seqio.Task(
    name,
    source=seqio.FunctionDataSource(
      dataset_fn,
      splits=tuple(split for split in splits if splits[split]),
      num_input_examples={split: len(splits[split]) for split in splits},
    ),
    preprocessors=[seqio.preprocessors.append_eos],
    output_features={
      "inputs": seqio.Feature(vocabulary, add_eos=False),
      "targets": seqio.Feature(vocabulary, add_eos=vocabulary.ends_targets),
    },
    metric_fns=list(definition.metric_fns),
  )
