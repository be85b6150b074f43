# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import seqio

from sira_jax.data import examples, quiet, tasks
from tests.data import byte_tokenizer


def test_a_task_gives_its_rows_as_tokens(vocabulary):
  task = tasks.register("dates", "de", vocabulary=vocabulary)
  assert task.name == "dates_de"
  assert set(task.splits) == {"train", "validation", "test"}
  with quiet.logs():
    dataset = task.get_dataset(split="test", shuffle=False)
  rows = tasks.rows("dates", "de", split="test")
  assert task.num_input_examples("test") == len(rows)
  for example, row in zip(dataset.as_numpy_iterator(), rows, strict=True):
    assert example["inputs"].tolist() == vocabulary.encode(row.inputs)
    assert example["targets"].tolist() == [*vocabulary.encode(row.targets), 2]
    assert example["inputs"].dtype == example["targets"].dtype == np.int32
    assert example["inputs_pretokenized"].decode() == row.inputs
    assert example["targets_pretokenized"].decode() == row.targets


def test_registering_twice_is_once(vocabulary):
  task = tasks.register("intents", "ko", vocabulary=vocabulary)
  same = byte_tokenizer.vocabulary()
  assert tasks.register("intents", "ko", vocabulary=same) is task
  assert seqio.TaskRegistry.get("intents_ko") is task


def test_another_vocabulary_takes_the_name_over(vocabulary):
  task = tasks.register("dates", "ko", vocabulary=vocabulary)
  other = byte_tokenizer.vocabulary(eos_id=1)
  replacing = tasks.register("dates", "ko", vocabulary=other)
  assert replacing is not task
  assert seqio.TaskRegistry.get("dates_ko") is replacing
  with quiet.logs():
    ends = [
      next(made.get_dataset(split="test").as_numpy_iterator())["targets"][-1]
      for made in (task, replacing)
    ]
  assert ends == [2, 1]


def test_a_replaced_definition_gives_its_own_rows(vocabulary, monkeypatch):
  before = tasks.register("dates", "ko", vocabulary=vocabulary)
  row = examples.Example("date: heute\n", "2026-10-27")
  mine = tasks.Definition(lambda language: {"train": (row,)}, (), ("ko",))
  monkeypatch.setitem(tasks.TASKS, "dates", mine)
  after = tasks.register("dates", "ko", vocabulary=vocabulary)
  assert after is not before
  assert after.num_input_examples("train") == 1
  found = tasks.tokens("dates", "ko", split="train", vocabulary=vocabulary)
  assert found == tuple([vocabulary.encode(text)] for text in row)


def test_what_does_not_exist_is_named_with_what_does(vocabulary):
  with pytest.raises(
    ValueError, match=r"'poems'.*are: intents, intent_names, dates"
  ):
    tasks.register("poems", "de", vocabulary=vocabulary)
  with pytest.raises(ValueError, match=r"'dates' has no language 'xx'.*ar, bg"):
    tasks.register("dates", "xx", vocabulary=vocabulary)
  with pytest.raises(ValueError, match=r"split 'dev'.*train, validation, test"):
    tasks.rows("dates", "de", split="dev")


def test_seqio_evaluates_a_task(vocabulary):
  tasks.register("intents", "ko", vocabulary=vocabulary)
  rows = tasks.rows("intents", "ko", split="validation")

  def predict_fn(dataset, shapes=None):
    # All right, but for the slots of the first and all of the second.
    predictions = []
    for index, row in dataset.as_numpy_iterator():
      ids = row["decoder_target_tokens"][row["decoder_loss_weights"] > 0]
      text = {0: rows[0].targets.partition("(")[0] + "(?", 1: "?"}.get(
        index, vocabulary.decode(ids)
      )
      ids = [*vocabulary.encode(text), 2]
      predictions.append((index, ids + [0] * (200 - len(ids))))
    return predictions

  with quiet.logs():
    evaluator = seqio.Evaluator(
      "intents_ko",
      feature_converter=seqio.PrefixLMFeatureConverter(pack=False),
      eval_split="validation",
    )
    result, _ = evaluator.evaluate(
      compute_metrics=True, step=0, predict_fn=predict_fn, score_fn=None
    )
  metrics = result.result() if hasattr(result, "result") else result
  count = len(rows)
  assert metrics["intents_ko"] == pytest.approx(
    {
      "exact_match": 100 * (count - 2) / count,
      "intent_accuracy": 100 * (count - 1) / count,
    }
  )
