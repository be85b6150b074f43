# SPDX-License-Identifier: Apache-2.0
"""predictions.jsonl."""

import json

import pytest

from sira_jax import metrics, predictions, run_data

TARGETS = ("the red house", "a red house", "no house")
ANSWERS = ["the red house", "red house", "house\n"]
METRICS = ("exact_match", "accuracy", "intent_accuracy", "token_f1", "squad")
METRICS += ("rouge", "matthews", "bleu", "chrf", "macro_f1")


def evaluation_set(*names, language="en"):
  return run_data.EvaluationSet(
    task="homes",
    language=language,
    zero_shot=False,
    inputs=([1], [2], [3]),
    prompts=("one", "two", "drei: ü"),
    targets=TARGETS,
    seen=3,
    metric_fns=tuple(metrics.METRICS[name] for name in names),
  )


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_an_example(tmp_path):
  file = tmp_path / "predictions.jsonl"
  sets = [evaluation_set("token_f1"), evaluation_set(language="de")]
  predictions.save(file, sets, [ANSWERS, ANSWERS])
  rows = lines(file)
  assert rows[2] == {
    "task": "homes",
    "language": "en",
    "prompt": "drei: ü",
    "target": "no house",
    "prediction": "house\n",
    "scores": {"token_f1": pytest.approx(100 * 2 / 3)},
  }
  assert [row["language"] for row in rows] == ["en"] * 3 + ["de"] * 3
  assert "ü" in file.read_text()
  assert rows[3]["scores"] == {}


def test_the_mean_of_lines_is_the_score(tmp_path):
  """Of every metric that is one; the others have no part of a line."""
  one = evaluation_set(*METRICS)
  predictions.save(tmp_path / "file", [one], [ANSWERS])
  rows, whole = lines(tmp_path / "file"), run_data.score(one, ANSWERS)
  for name in whole.keys() - {"matthews", "bleu", "chrf", "macro_f1"}:
    mean = sum(row["scores"].pop(name) for row in rows) / 3
    assert mean == pytest.approx(whole[name]), name
  assert [row["scores"] for row in rows] == [{}] * 3


def test_an_answer_for_each_prompt(tmp_path):
  with pytest.raises(ValueError, match=r"homes \(en\) has 3 prompts and 2"):
    predictions.save(tmp_path / "file", [evaluation_set()], [ANSWERS[:2]])
