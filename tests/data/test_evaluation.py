# SPDX-License-Identifier: Apache-2.0
import pytest

from sira_jax import run_data
from sira_jax.data import evaluation, mixtures, pipeline, tasks


@pytest.fixture(scope="module")
def sets(mixture):
  return evaluation.evaluation(mixture, examples=20)


def test_sets_are_of_the_entries(mixture, sets):
  assert [(s.task, s.language, s.zero_shot) for s in sets] == [
    (e.task, e.language, e.zero_shot) for e in mixture.evaluation
  ]
  for one in sets:
    assert len(one.inputs) == len(one.targets) == len(one.prompts) == 20
    rows = set(tasks.rows(one.task, one.language, split="test"))
    assert set(zip(one.prompts, one.targets, strict=True)) <= rows
    assert len(set(one.prompts)) == 20


def test_inputs_are_those_of_training(mixture, vocabulary, sets):
  for one in sets:
    for ids, prompt in zip(one.inputs, one.prompts, strict=True):
      assert ids == [0, *vocabulary.encode(prompt)]
  batch = next(pipeline.batches(mixture, batch_size=4, length=200))
  for row in range(4):
    inputs = int(batch["decoder_loss_weights"][row].argmax())
    prompt = vocabulary.decode(batch["decoder_target_tokens"][row][:inputs])
    expected = [0, *vocabulary.encode(prompt)]
    # The first target is predicted where the last of these is the input.
    found = batch["decoder_input_tokens"][row][: inputs + 1]
    assert found.tolist() == expected


def test_the_choice_is_fixed(mixture, sets):
  assert evaluation.evaluation(mixture, examples=20) == sets
  more = evaluation.evaluation(mixture, examples=40)
  other = evaluation.evaluation(mixture, examples=20, seed=1)
  for one, bigger, different in zip(sets, more, other, strict=True):
    assert bigger.targets[:20] == one.targets
    assert different.prompts != one.prompts
  validation = evaluation.evaluation(mixture, examples=20, split="validation")
  assert not set(validation[0].prompts) & set(sets[0].prompts)


def test_validation_is_of_what_is_trained_on(mixture):
  """As `evaluation` of that split, but for zero-shot entries."""
  found = evaluation.validation(mixture, examples=20)
  both = evaluation.evaluation(mixture, examples=20, split="validation")
  assert any(one.zero_shot for one in both)
  assert found == [one for one in both if not one.zero_shot]
  for one in found:
    rows = set(tasks.rows(one.task, one.language, split="validation"))
    assert set(zip(one.prompts, one.targets, strict=True)) <= rows


def test_all_there_is_and_no_more(mixture):
  everything = evaluation.evaluation(mixture, examples=10**6)
  for one, entry in zip(everything, mixture.evaluation, strict=True):
    assert len(one.prompts) + one.seen == entry.examples


def test_prompts_trained_on_in_another_language_are_left_out(vocabulary):
  mixture = mixtures.build(
    vocabulary, tasks=("intents",), languages=("en",), zero_shot=("nl",)
  )
  trained = {row.inputs for row in tasks.rows("intents", "en", split="train")}
  _, dutch = evaluation.evaluation(mixture, examples=10**6)
  rows = tasks.rows("intents", "nl", split="test")
  assert dutch.seen == sum(row.inputs in trained for row in rows) > 0
  assert not trained & set(dutch.prompts)


def test_scores(sets):
  intents, dates = sets[:2]
  assert run_data.score(intents, intents.targets) == {
    "exact_match": 100.0,
    "intent_accuracy": 100.0,
  }
  wrong = [target.replace(")", "") for target in intents.targets[:5]]
  assert run_data.score(intents, [*wrong, *intents.targets[5:]]) == {
    "exact_match": 75.0,
    "intent_accuracy": 100.0,
  }
  assert run_data.score(dates, ["?"] * 20) == {"exact_match": 0.0}


def test_mistakes(mixture, sets):
  with pytest.raises(ValueError, match="20 targets and 3 predictions"):
    run_data.score(sets[0], ["a", "b", "c"])
  with pytest.raises(ValueError, match="examples of at least 1, got 0"):
    evaluation.evaluation(mixture, examples=0)
  with pytest.raises(ValueError, match=r"'train'\. Available are: validation"):
    evaluation.evaluation(mixture, examples=1, split="train")
