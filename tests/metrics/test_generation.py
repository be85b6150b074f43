# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from sira_jax import metrics
from sira_jax.metrics import references

# Of sacrebleu's README, "Using SacreBLEU from Python", and its values there.
ONE = [
  "The dog bit the man.",
  "It was not unexpected.",
  "The man bit him first.",
]
TWO = [
  "The dog had bit the man.",
  "No one was surprised.",
  "The man had bitten the dog.",
]
FOUND = [
  "The dog bit the man.",
  "It wasn't surprising.",
  "The man had just bitten him.",
]


def test_published_values_of_sacrebleu():
  targets = [references.join(pair) for pair in zip(ONE, TWO, strict=True)]
  assert round(metrics.bleu(targets, FOUND)["bleu"], 2) == 48.53
  assert round(metrics.chrf(targets, FOUND)["chrf"], 2) == 59.73


def test_bleu_by_hand():
  """One reference, 6 words: 5 words, 3, 2 and 1 sequences of 2 to 4 shared."""
  found = metrics.bleu(["a b c d e f"], ["a b c d x f"])
  expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
  assert found == {"bleu": pytest.approx(expected)}


def test_targets_may_differ_in_number_of_references():
  """A reference of one target is none of another's."""
  targets = [references.join(["a b c d", "q r s t"]), "e f g h"]
  assert metrics.bleu(targets, ["q r s t", "e f g h"]) == {
    "bleu": pytest.approx(100)
  }
  assert metrics.bleu(targets, ["q r s t", "q r s t"])["bleu"] < 60
  assert metrics.chrf(targets, ["q r s t", "e f g h"]) == {
    "chrf": pytest.approx(100)
  }


def test_rouge_by_hand():
  """The example of rouge-score's README.

  Of 9 and 8 words, 6 are shared, F = 2 * 6 / 17; of 8 and 7 pairs, "the quick"
  and "quick brown"; the longest subsequence is "the quick brown the" with
  "jumps": 5 words.
  """
  targets = ["The quick brown fox jumps over the lazy dog"]
  predictions = ["The quick brown dog jumps on the log."]
  assert metrics.rouge(targets, predictions) == {
    "rouge1": pytest.approx(100 * 12 / 17),
    "rouge2": pytest.approx(100 * 4 / 15),
    "rougel": pytest.approx(100 * 10 / 17),
  }


def test_rouge_takes_stems_and_the_best_reference():
  both = references.join(["nothing at all", "dogs jumping"])
  found = metrics.rouge([both, "x y"], ["dog jumped", "z"])
  assert found == {"rouge1": 50.0, "rouge2": 50.0, "rougel": 50.0}


def test_what_is_not_installed_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "sacrebleu", None)
  with pytest.raises(ModuleNotFoundError, match=r"sira_jax\[metrics\]"):
    metrics.bleu(["a"], ["a"])


def test_named_entities_of_the_published_example():
  """seqeval's README: an entity with a wrong begin, and one that is right."""
  targets = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
  predictions = ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]
  assert metrics.span_f1(targets, predictions) == {"span_f1": 50.0}


def test_tags_that_lack_or_are_none():
  # 1 right of 2 wanted, 1 found: 2 * 1 / 3; the rest is no tag or too much.
  targets = ["B-PER O B-LOC O", "O"]
  predictions = ["B-PER what", "O B-LOC"]
  assert metrics.span_f1(targets, predictions) == {
    "span_f1": pytest.approx(200 / 3)
  }
  assert metrics.span_f1(["O O"], ["O"]) == {"span_f1": 0.0}
