"""Scores of sets, their means, and the table written out."""

import dataclasses
import types

import numpy as np
import pytest

from sira_jax import decoding, evaluation
from sira_jax.evaluation import Result


def result(task, language, zero_shot, count, /, **scores):
  return Result(task, language, zero_shot, count, scores)


BEFORE = [
  result("intents", "en", False, 20, exact_match=0.0, f1=1.25),
  result("intents", "de", False, 10, exact_match=10.0, f1=3.75),
  result("intents", "it", True, 5, exact_match=0.0, f1=0.0),
  result("dates", "en", False, 20, exact_match=5.0),
]
AFTER = [
  result("intents", "en", False, 20, exact_match=95.0, f1=97.0),
  result("intents", "de", False, 10, exact_match=100.0, f1=98.0),
  result("intents", "it", True, 5, exact_match=40.0, f1=50.0),
  result("dates", "en", False, 20, exact_match=75.0),
]
F1 = {"f1": [20.0, 80.0]}


@dataclasses.dataclass(frozen=True)
class Set:
  """As the data room's; the last two fields are what is needed here."""

  task: str
  language: str
  zero_shot: bool
  inputs: list
  targets: tuple
  choices: tuple = ()


TABLE = """\
| task    | language         | count | exact match before | after | f1 before | after |
| ------- | ---------------- | ----: | -----------------: | ----: | --------: | ----: |
| intents | en               |    20 |                0.0 |  95.0 |       1.2 |  97.0 |
| intents | de               |    10 |               10.0 | 100.0 |       3.8 |  98.0 |
| intents | it (zero-shot)   |     5 |                0.0 |  40.0 |       0.0 |  50.0 |
| dates   | en               |    20 |                5.0 |  75.0 |           |       |
| intents | mean             |    30 |                5.0 |  97.5 |       2.5 |  97.5 |
| intents | mean (zero-shot) |     5 |                0.0 |  40.0 |       0.0 |  50.0 |
| dates   | mean             |    20 |                5.0 |  75.0 |           |       |
"""  # noqa: E501


def test_table():
  assert evaluation.table(BEFORE, AFTER) + "\n" == TABLE


def test_means():
  """Of languages, not of examples."""
  assert evaluation.means(AFTER) == [
    result("intents", "mean", False, 30, exact_match=97.5, f1=97.5),
    result("intents", "mean", True, 5, exact_match=40.0, f1=50.0),
    result("dates", "mean", False, 20, exact_match=75.0),
  ]


def test_json_brings_results_back():
  assert evaluation.loads(evaluation.dumps(AFTER)) == AFTER


def test_as_json():
  after = [dataclasses.replace(one, intervals=F1) for one in AFTER]
  assert evaluation.loads(evaluation.dumps(after)) == after != AFTER
  assert evaluation.as_json(BEFORE, after)[2] == {
    "task": "intents",
    "language": "it",
    "zero_shot": True,
    "count": 5,
    "before": {"exact_match": 0.0, "f1": 0.0},
    "after": {"exact_match": 40.0, "f1": 50.0},
    "before_95": {},
    "after_95": {"f1": [20.0, 80.0]},
  }


def test_tables_of_other_sets_are_refused():
  with pytest.raises(ValueError):
    evaluation.table(BEFORE, AFTER[:-1])


def test_each_set_gets_its_own_predictions(monkeypatch):
  """All sets are decoded at once, in evaluation mode."""
  sets = [
    Set(task, "en", False, inputs, ("10", "20")[: len(inputs)])
    for task, inputs in (("a", [[1], [2]]), ("none", []), ("b", [[3, 4]]))
  ]
  model = types.SimpleNamespace(training=True)
  model.eval = lambda: setattr(model, "training", False)

  def greedy(given, prompts, *, max_new_tokens, eos_id, batch_size, record):
    assert not given.training
    assert (max_new_tokens, eos_id, batch_size) == (7, 2, 3)
    record([2, 0], "reports")
    return [[sum(prompt) * 10] for prompt in prompts]

  told = []
  monkeypatch.setattr(decoding, "greedy", greedy)
  results, predictions = evaluation.evaluate(
    model,
    sets,
    score=lambda one, answers: (
      {"right": 100 * np.mean(np.equal(one.targets, answers))}
      if answers
      else {"right": 0}
    ),
    text=lambda ids: str(np.sum(ids)),
    eos_id=2,
    max_new_tokens=7,
    batch_size=3,
    intervals=True,
    record=lambda *of: told.append(of),
  )
  assert predictions == [["10", "20"], [], ["70"]]
  assert told == [([2, 0], "reports")]
  assert [dataclasses.replace(one, intervals={}) for one in results] == [
    result("a", "en", False, 2, right=100),
    result("none", "en", False, 0, right=0),
    result("b", "en", False, 1, right=0),
  ]
  # Whichever are drawn, each with its own target.
  assert [one.intervals for one in results] == [
    {"right": [100, 100]},
    {},
    {"right": [0, 0]},
  ]
