# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from sira_jax.data import examples, mixtures, tasks
from tests.data import byte_tokenizer


def test_entries(mixture):
  assert [(e.task, e.language, e.zero_shot) for e in mixture.train] == [
    ("intents", "en", False),
    ("dates", "en", False),
    ("intents", "de", False),
    ("dates", "de", False),
  ]
  assert [(e.name, e.zero_shot, e.rate > 0) for e in mixture.evaluation] == [
    ("intents_en", False, True),
    ("dates_en", False, True),
    ("intents_de", False, True),
    ("dates_de", False, True),
    ("intents_nl", True, False),
    ("dates_nl", True, False),
    ("intents_ko", True, False),
    ("dates_ko", True, False),
  ]
  for entry in mixture.train:
    rows = tasks.rows(entry.task, entry.language, split="train")
    assert entry.examples == len(rows)
  for entry in mixture.evaluation:
    rows = tasks.rows(entry.task, entry.language, split="test")
    assert entry.examples == len(rows)
  names = {task.name for task in mixture.provider.tasks}
  assert names == {"intents_en", "dates_en", "intents_de", "dates_de"}


def rates(vocabulary, **settings):
  built = mixtures.build(vocabulary, languages=("en", "de"), **settings)
  for entry in built.train:
    task = next(t for t in built.provider.tasks if t.name == entry.name)
    assert built.provider.get_rate(task) == entry.rate
  assert sum(entry.rate for entry in built.train) == pytest.approx(1)
  return {entry.name: entry.rate for entry in built.train}, {
    entry.name: entry.examples for entry in built.train
  }


def test_rates_follow_size(vocabulary):
  found, sizes = rates(vocabulary)
  whole = sum(sizes.values())
  assert found == pytest.approx({n: s / whole for n, s in sizes.items()})


def test_temperature_and_maximum(vocabulary):
  found, sizes = rates(vocabulary, temperature=2.0, maximum=2000)
  roots = {name: min(size, 2000) ** 0.5 for name, size in sizes.items()}
  whole = sum(roots.values())
  assert found == pytest.approx({n: r / whole for n, r in roots.items()})
  assert found["intents_en"] == found["intents_de"]


def test_rates_by_task(vocabulary):
  found, sizes = rates(vocabulary, rates={"intents": 3, "dates": 1})
  assert found["intents_en"] + found["intents_de"] == pytest.approx(0.75)
  ratio = sizes["dates_en"] / sizes["dates_de"]
  assert found["dates_en"] / found["dates_de"] == pytest.approx(ratio)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"tasks": ("poems",)}, "Unknown task 'poems'. Available are: intents"),
    ({"languages": ("xx",)}, "no language 'xx'. It has: ar, bg"),
    ({"zero_shot": ("xx",)}, "no language 'xx'"),
    ({"zero_shot": ("de", "nl")}, r"got \['de'\] in both"),
    (
      {"tasks": ()},
      "a task at least, got none. There are: intents, intent_names",
    ),
    ({"languages": ()}, "a language to train on at least"),
    ({"languages": ("en", "en")}, "each of languages once"),
    ({"languages": "en"}, "languages to be a sequence, got 'en'"),
    ({"rates": {"intents": 1}}, "a rate for each of the tasks"),
    ({"rates": {"intents": 1, "dates": 0}}, "positive dates, got 0"),
    ({"temperature": 0}, "positive temperature, got 0"),
    ({"maximum": 0}, "positive maximum, got 0"),
  ],
)
def test_mistakes(vocabulary, settings, message):
  with pytest.raises(ValueError, match=message):
    mixtures.build(vocabulary, **settings)


def test_empty_splits_are_refused(vocabulary, monkeypatch):
  row = examples.Example("a\n", "b")
  empty = tasks.Definition(
    lambda language: {"train": (row,), "validation": (), "test": ()},
    (),
    ("en",),
  )
  monkeypatch.setitem(tasks.TASKS, "empty", empty)
  with pytest.raises(ValueError, match=r"no examples in split 'test'.*: train"):
    mixtures.build(vocabulary, tasks=("empty",), languages=("en",))


def test_fingerprints_tell_data_apart(mixture, vocabulary, monkeypatch):
  def build(vocabulary=vocabulary, **settings):
    settings = {"languages": ("en", "de"), "zero_shot": ("nl", "ko")} | settings
    return mixtures.build(vocabulary, **settings)

  known = mixtures.fingerprint(mixture, length=96, pack=True)
  assert mixtures.fingerprint(build(), pack=True, length=96) == known
  others = [
    mixtures.fingerprint(mixture, length=128, pack=True),
    mixtures.fingerprint(build(temperature=2.0), length=96, pack=True),
    mixtures.fingerprint(build(languages=("de",)), length=96, pack=True),
    mixtures.fingerprint(build(zero_shot=("nl",)), length=96, pack=True),
    mixtures.fingerprint(
      build(byte_tokenizer.vocabulary(eos_id=1)), length=96, pack=True
    ),
  ]
  definition = tasks.TASKS["dates"]

  def changed(language):
    rows = dict(definition.rows(language))
    first, *rest = rows["train"]
    rows["train"] = (first._replace(targets="1999-01-01"), *rest)
    return rows

  monkeypatch.setitem(
    tasks.TASKS, "dates", dataclasses.replace(definition, rows=changed)
  )
  others.append(mixtures.fingerprint(build(), length=96, pack=True))
  assert len({known, *others}) == 7
