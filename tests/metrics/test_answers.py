# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from sira_jax import metrics
from sira_jax.metrics import references


def test_squad_by_hand():
  """SQuAD's evaluate-v1.1.py, worked out.

  1: equal but for case, article and full stop. 2: of two answers, the second
  shares "in" and "1973" of 2 with 3 words: 2 * 2 / 5. 3: nothing shared.
  4: "theatre" is not the article in it: 2 * 1 / 3.
  """
  targets = [
    "Denver Broncos",
    references.join(["1973 season", "in 1973"]),
    "x",
    "theatre",
  ]
  predictions = ["the  denver broncos.", "in may 1973", "", "a theatre hall"]
  assert metrics.squad(targets, predictions) == {
    "squad_em": 25.0,
    "squad_f1": pytest.approx(100 * (1 + 4 / 5 + 0 + 2 / 3) / 4),
  }


def test_punctuation_joins_words():
  """It is removed, not replaced, before articles are: "A-levels" has none."""
  assert metrics.squad(["alevels"], ["A-levels"])["squad_em"] == 100.0
  assert metrics.squad(["don't"], ["dont"])["squad_em"] == 100.0


def test_articles_are_words():
  assert metrics.squad(["vis"], ["visa"])["squad_em"] == 0.0
  assert metrics.squad(["vis"], ["a vis"])["squad_em"] == 100.0


def test_any_of_several_answers_is_right():
  targets = [references.join(["red ", "blue"]), references.join(["a b", "c"])]
  assert metrics.exact_match(targets, ["blue", "b a"]) == {"exact_match": 50.0}
  assert metrics.accuracy(targets, ["red", " c\n"]) == {"accuracy": 100.0}
  assert metrics.token_f1(targets, ["green", "b a"]) == {"token_f1": 50.0}


def test_answers_as_one_text():
  text = references.join(["b", "a", "b", "\u00e9 c"])
  assert references.of(text) == ["b", "a", "\u00e9 c"]
  assert references.of(json.loads(json.dumps(text))) == references.of(text)
  assert references.of("alone") == ["alone"]
  for wrong in ([], ["a\x1fb"]):
    with pytest.raises(ValueError, match="an answer at least"):
      references.join(wrong)


SINGLE = sorted(
  set(metrics.METRICS)
  - {"exact_match", "accuracy", "token_f1", "squad", "bleu", "chrf", "rouge"}
)


@pytest.mark.parametrize("name", SINGLE)
def test_one_answer_where_several_have_no_meaning(name):
  with pytest.raises(ValueError, match="targets of one answer"):
    metrics.METRICS[name]([references.join(["1", "2"])], ["1"])
