# SPDX-License-Identifier: Apache-2.0
"""What a run needs of its data, wherever they are from."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np

from sira_jax import lengths as lengths_lib

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One task in one language.

  Attributes:
    task: its name.
    language: the language's code.
    name: of its seqio Task.
    zero_shot: True if no row in this language is trained on.
    examples: in the training split, or in the test split of what is evaluated;
      in the validation split where there is no test split.
    rate: share of the training examples that are this entry's; 0 if zero-shot.
  """

  task: str
  language: str
  name: str
  zero_shot: bool
  examples: int
  rate: float


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
  """Examples of one task in one language.

  Attributes:
    task: its name.
    language: its code.
    zero_shot: True if no row in this language was trained on.
    inputs: token ids to decode from: 0, as first in training, then a prompt's;
      for an encoder-decoder, the prompt's and its end.
    targets: the texts to be decoded.
    prompts: the texts of the inputs.
    seen: examples left out since some training language has the same prompt.
    metric_fns: the task's.
    choices: the answers that are ranked; none where an answer is decoded.
    choice_ids: their token ids, with the end.
  """

  task: str
  language: str
  zero_shot: bool
  inputs: tuple[list[int], ...]
  targets: tuple[str, ...]
  prompts: tuple[str, ...]
  seen: int
  metric_fns: tuple[Callable[..., dict[str, Any]], ...]
  choices: tuple[str, ...] = ()
  choice_ids: tuple[list[int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Data:
  """A run's data: a mixture read as it is, or a cache of it.

  Attributes:
    train: the entries trained on.
    evaluation: the entries tested on: those trained on, then the zero-shot.
    sets: what is decoded and scored.
    memory: examples trained on, to be scored after each of several stages.
    validation: what checkpoints are chosen by; none where nothing is chosen.
    lengths: how many tokens the examples of each entry have.
    notes: where rows are from, for a run's reader.
    fingerprint: of all that decides which batches there are.
    batches: (seed, start) -> the endless batches from number `start` on.
    samples: an entry's examples, in batches of one each.
  """

  train: Sequence[Entry]
  evaluation: Sequence[Entry]
  sets: Sequence[EvaluationSet]
  memory: Sequence[EvaluationSet]
  validation: Sequence[EvaluationSet]
  lengths: Sequence[lengths_lib.Row]
  notes: Sequence[str]
  fingerprint: str
  batches: Callable[[int, int], Iterator[Batch]]
  samples: Callable[[Entry], Iterator[Batch]]


def score(
  evaluation_set: EvaluationSet, predictions: Sequence[str]
) -> dict[str, float]:
  """The task's metrics, in percent.

  Raises:
    ValueError: if there is not one prediction for each target.
  """
  scores = {}
  for metric_fn in evaluation_set.metric_fns:
    scores |= metric_fn(evaluation_set.targets, list(predictions))
  return scores
