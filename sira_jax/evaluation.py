# SPDX-License-Identifier: Apache-2.0
"""Answers evaluation sets, and tables the scores before and after training."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
from typing import Any, Protocol

from flax import nnx
import jax

from sira_jax import (
  confidence,
  decoding,
  kept_answers,
  prompts,
  ranking,
  sharding,
)
from sira_jax.adapters import records

Scores = Mapping[str, float]


class EvaluationSet(Protocol):
  """Examples of one task in one language, as `run_data` has them."""

  task: str
  language: str
  zero_shot: bool
  inputs: Sequence[Sequence[int]]
  targets: Sequence[str]
  prompts: Sequence[str]
  choices: Sequence[str]
  choice_ids: Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Result:
  """What a model scored on one set.

  Attributes:
    task: the set's task.
    language: the set's language.
    zero_shot: whether nothing in that language was trained on.
    count: examples decoded.
    scores: metric -> percent.
    intervals: metric -> the ends of its 95 % interval; see `confidence`.
  """

  task: str
  language: str
  zero_shot: bool
  count: int
  scores: Scores
  intervals: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )


def evaluate(
  model: nnx.Module,
  sets: Sequence[EvaluationSet],
  *,
  score: Callable[[EvaluationSet, Sequence[str]], Scores],
  text: Callable[[Sequence[int]], str],
  eos_id: int,
  max_new_tokens: int,
  batch_size: int,
  intervals: bool = False,
  record: decoding.Record | None = None,
  kept: kept_answers.KeptAnswers | None = None,
) -> tuple[list[Result], list[list[str]]]:
  """Answers every example of `sets` and scores each set.

  An answer is decoded greedily; or is the likeliest of the set's choices, if it
  has any.

  Args:
    model: see `decoding.greedy`; put into evaluation mode here.
    sets: what to answer.
    score: a set's metrics for its predictions.
    text: token ids to text.
    eos_id: ends an answer.
    max_new_tokens: longest answer.
    batch_size: examples decoded at once, over all sets.
    intervals: whether to say how far the scores may be luck; see `confidence`.
    record: is told what routers report of the prompts, counted over all sets.
    kept: has answers that are not asked for again, and is told of others.

  Returns:
    The results and the predictions, one of each per set.
  """
  model.eval()

  def decoded(inputs, **how):
    how |= dict(max_new_tokens=max_new_tokens, eos_id=eos_id)
    return list(map(text, decoding.greedy(model, inputs, **how)))

  pairs = list(zip(sets, _numbers(sets), strict=True))
  together = [n for one, own in pairs if not one.choices for n in own]
  parts = [(together, decoded)]
  parts += [
    (own, functools.partial(_likeliest, model, one))
    for one, own in pairs
    if one.choices
  ]
  answers = _answers(
    sets, parts, batch_size=batch_size, record=record, kept=kept
  )
  return _results(sets, answers, score, intervals)


def _answers(sets, parts, *, batch_size, record, kept):
  """The answer of every prompt, batch by batch, but those that are kept.

  Of each part: the numbers of its prompts, and what answers some of them.
  """
  inputs = [prompt for one in sets for prompt in one.inputs]
  answers = {} if kept is None else dict(kept.answers)
  for numbers, answer in parts:
    for group in prompts.groups([inputs[n] for n in numbers], batch_size):
      asked = [numbers[i] for i in group if numbers[i] not in answers]
      if not asked:
        continue
      found = answer(
        [inputs[n] for n in asked],
        batch_size=batch_size,
        record=_renumbered(record, asked),
      )
      answers.update(zip(asked, found, strict=True))
      if kept is not None:
        kept.add(asked, found)
  return [answers[number] for number in range(len(inputs))]


def _numbers(sets):
  """The numbers of each set's prompts, counted over all sets."""
  sizes = [len(one.inputs) for one in sets]
  ends = itertools.accumulate(sizes)
  return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _renumbered(record, numbers):
  """`record`, told of prompts that have these numbers."""
  if record is None:
    return None
  return lambda indices, reports: record([numbers[i] for i in indices], reports)


def _likeliest(model, one, inputs, **how):
  found = ranking.likelihoods(model, inputs, one.choice_ids, **how)
  return [one.choices[index] for index in found.argmax(axis=1)]


def classify(
  model: nnx.Module,
  sets: Sequence[EvaluationSet],
  *,
  score: Callable[[EvaluationSet, Sequence[str]], Scores],
  labels: Sequence[str],
  batch_size: int,
  intervals: bool = False,
  record: decoding.Record | None = None,
  kept: kept_answers.KeptAnswers | None = None,
) -> tuple[list[Result], list[list[str]]]:
  """As `evaluate`, of an encoder with a head: its likeliest label, or number.

  Args:
    model: an encoder; put into evaluation mode here.
    sets: what to score.
    score: a set's metrics for its predictions.
    labels: the head's; none where it gives a number.
    batch_size: examples scored at once, over all sets.
    intervals: as `evaluate`'s.
    record: as `evaluate`'s.
    kept: as `evaluate`'s.
  """
  parts = [
    (
      range(sum(len(one.inputs) for one in sets)),
      functools.partial(label, model, labels=labels),
    )
  ]
  answers = _answers(
    sets, parts, batch_size=batch_size, record=record, kept=kept
  )
  return _results(sets, answers, score, intervals)


def label(
  model: nnx.Module,
  inputs: Sequence[Sequence[int]],
  *,
  labels: Sequence[str],
  batch_size: int,
  record: decoding.Record | None = None,
) -> list[str]:
  """What an encoder's head says of each text; args as of `classify`."""
  model.eval()
  graph, state = nnx.split(model)
  answers = [""] * len(inputs)
  for indices, batch in prompts.batches(
    inputs, batch_size=batch_size, pad_id=0
  ):
    # A multiple of 64 tokens may be more than the model takes.
    tokens = batch["tokens"][:, : model.max_length]
    placed = sharding.rows({"tokens": tokens})["tokens"]
    found, reports = jax.device_get(
      _scores(graph, state, placed, recorded=record is not None)
    )
    for index, row in zip(indices, found, strict=False):
      answers[index] = labels[row.argmax()] if labels else f"{row[0]:.6g}"
    if record is not None:
      record(indices, reports)
  return answers


@functools.partial(jax.jit, static_argnames=("graph", "recorded"))
def _scores(graph, state, tokens, *, recorded):
  model, reports = nnx.merge(graph, state, copy=True), {}
  if recorded:
    found, reports = records.captured(lambda model: model(tokens), model)
  else:
    found = model(tokens)
  return sharding.constrain(found[:, 0], None, None), reports


def _results(sets, answers, score, intervals):
  """The results, and the predictions by set."""
  answers = iter(answers)
  predictions = [
    list(itertools.islice(answers, len(one.inputs))) for one in sets
  ]
  results = [
    Result(
      task=one.task,
      language=one.language,
      zero_shot=one.zero_shot,
      count=len(one.inputs),
      scores=score(one, answer),
      intervals=_intervals(one, answer, score) if intervals else {},
    )
    for one, answer in zip(sets, predictions, strict=True)
  ]
  return results, predictions


def _intervals(one, answers, score):
  if not answers:
    return {}
  return confidence.intervals(
    one.targets,
    answers,
    score=lambda targets, some: score(
      dataclasses.replace(one, targets=tuple(targets)), some
    ),
  )


def means(results: Sequence[Result]) -> list[Result]:
  """By task, the mean over trained languages and over zero-shot ones."""
  found = []
  for task in dict.fromkeys(one.task for one in results):
    for zero_shot in (False, True):
      group = [
        one
        for one in results
        if one.task == task and one.zero_shot == zero_shot
      ]
      if group:
        scores = {
          name: sum(one.scores[name] for one in group) / len(group)
          for name in group[0].scores
        }
        count = sum(one.count for one in group)
        found.append(Result(task, "mean", zero_shot, count, scores))
  return found


def dumps(results: Sequence[Result]) -> str:
  """Results as JSON text; `loads` reads it."""
  return json.dumps([dataclasses.asdict(one) for one in results], indent=1)


def loads(text: str) -> list[Result]:
  """The results that `dumps` wrote."""
  return [Result(**one) for one in json.loads(text)]


def as_json(before: Sequence[Result], after: Sequence[Result]) -> list[Any]:
  """One object per set: its names, count, scores and their 95 % intervals."""
  return [
    {
      "task": one.task,
      "language": one.language,
      "zero_shot": one.zero_shot,
      "count": one.count,
      "before": dict(start.scores),
      "after": dict(one.scores),
      "before_95": dict(start.intervals),
      "after_95": dict(one.intervals),
    }
    for start, one in zip(before, after, strict=True)
  ]


def table(before: Sequence[Result], after: Sequence[Result]) -> str:
  """Markdown: a row per task and language, then the means; percents."""
  metrics = list(dict.fromkeys(name for one in before for name in one.scores))
  header = ["task", "language", "count"]
  for name in metrics:
    words = name.replace("_", " ")
    header += [f"{words} before", "after"]
  rows = [header]
  first, last = [*before, *means(before)], [*after, *means(after)]
  for start, one in zip(first, last, strict=True):
    language = one.language + (" (zero-shot)" if one.zero_shot else "")
    row = [one.task, language, str(one.count)]
    for name in metrics:
      for result in (start, one):
        value = result.scores.get(name)
        row.append("" if value is None else f"{value:.1f}")
    rows.append(row)
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  lines = ["| " + " | ".join(_cells(row, widths)) + " |" for row in rows]
  rule = [
    "-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)
  ]
  lines.insert(1, "| " + " | ".join(rule) + " |")
  return "\n".join(lines)


def _cells(row, widths):
  return [
    cell.ljust(width) if i < 2 else cell.rjust(width)
    for i, (cell, width) in enumerate(zip(row, widths, strict=True))
  ]
