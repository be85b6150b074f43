# SPDX-License-Identifier: Apache-2.0
"""predictions.jsonl: what a run was asked, what was right, and its answers."""

from collections.abc import Sequence
import dataclasses
import json

from sira_jax import metrics, run_data, storage
from sira_jax.run_data import EvaluationSet

MEANS = tuple(
  metrics.METRICS[name]
  for name in (
    *("exact_match", "accuracy", "intent_accuracy", "token_f1", "squad"),
    "rouge",
  )
)
"""Metrics that are means of what each example scores alone."""


def save(
  file: storage.Path,
  sets: Sequence[EvaluationSet],
  predictions: Sequence[Sequence[str]],
) -> None:
  """Writes a line for every example.

  It has its task, language, prompt, target and prediction, and under "scores"
  what it scores alone, in percent, by those of its task's metrics that are in
  `MEANS`: so the mean of a set's lines is the set's score.

  Args:
    file: to write.
    sets: what was asked.
    predictions: of each set, an answer for each prompt.
  """
  rows = [
    _row(one, index, answer)
    for one, answers in zip(sets, predictions, strict=True)
    for index, answer in enumerate(_all_of(one, answers))
  ]
  lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  storage.write(file, "".join(lines))


def _all_of(one, answers):
  if len(answers) != len(one.prompts):
    raise ValueError(
      f"{one.task} ({one.language}) has {len(one.prompts)} prompts and"
      f" {len(answers)} answers."
    )
  return answers


def _row(one, index, answer):
  target = one.targets[index]
  means = tuple(each for each in one.metric_fns if each in MEANS)
  alone = dataclasses.replace(one, targets=(target,), metric_fns=means)
  return {
    "task": one.task,
    "language": one.language,
    "prompt": one.prompts[index],
    "target": target,
    "prediction": answer,
    "scores": run_data.score(alone, [answer]),
  }
