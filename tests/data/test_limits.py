# SPDX-License-Identifier: Apache-2.0
"""Few-shot training: at most so many examples of a task in each language."""

import hashlib
import itertools
import random

import pytest

from sira_jax.data import examples, mixtures, pipeline, tasks

SIZES = {"en": 40, "de": 20, "fr": 3, "ja": 5}


def row(text):
  return examples.Example(f"{text}\n", text[-1])


def task(order=lambda rows: rows):
  """Rows such as "en train 7"; `order` changes that of the training rows."""
  made = {
    language: {
      "train": tuple(
        order([row(f"{language} train {i}") for i in range(size)])
      ),
      "validation": tuple(row(f"{language} validation {i}") for i in range(4)),
      "test": tuple(row(f"{language} test {i}") for i in range(6)),
    }
    for language, size in SIZES.items()
  }
  return tasks.Definition(lambda language: made[language], (), tuple(SIZES))


KNOWN = {"letters": task(), "others": task()}


@pytest.fixture
def build(vocabulary):
  """A mixture of the task(s) above."""

  def built(limits=None, **settings):
    settings = (
      dict(
        tasks=("letters",),
        languages=("en", "de", "fr"),
        zero_shot=("ja",),
        limits=limits,
        known=KNOWN,
      )
      | settings
    )
    return mixtures.build(vocabulary, **settings)

  return built


def first(rows, count):
  """The rows of the least hashes, in their order."""

  def key(row):
    text = "\x1f".join(["few", *row]).encode()
    return hashlib.blake2b(text, digest_size=8).digest()

  chosen = sorted(rows, key=key)[:count]
  return tuple(row for row in rows if row in chosen)


def test_how_many_and_which():
  few = tasks.limited(KNOWN["letters"], 8)
  for language, size in SIZES.items():
    splits, whole = few.rows(language), KNOWN["letters"].rows(language)
    assert len(splits["train"]) == min(8, size)
    assert splits["train"] == first(whole["train"], 8)
    for split in ("validation", "test"):
      assert splits[split] == whole[split]
  # Neither the first nor the last: a choice of positions would be seen.
  numbers = [int(row.inputs.split()[-1]) for row in few.rows("en")["train"]]
  assert numbers == sorted(numbers)
  assert numbers not in (list(range(8)), list(range(32, 40)))


def test_fewer_are_among_more():
  chosen = [
    set(tasks.limited(KNOWN["letters"], limit).rows("en")["train"])
    for limit in range(1, 41)
  ]
  assert list(map(len, chosen)) == list(range(1, 41))
  for few, more in itertools.pairwise(chosen):
    assert few < more


def test_the_files_order_decides_on_the_order_alone():
  moved = task(lambda rows: random.Random(3).sample(rows, len(rows)))
  whole, few = (
    of.rows("en")["train"] for of in (moved, tasks.limited(moved, 8))
  )
  assert set(few) == set(tasks.limited(KNOWN["letters"], 8).rows("en")["train"])
  assert list(few) == sorted(few, key=whole.index)
  assert list(few) != sorted(
    few, key=KNOWN["letters"].rows("en")["train"].index
  )


def test_repeated_rows_count_as_often_as_they_are_there():
  rows = [row("a")] * 3 + [row("b")]
  found = [len(examples.few(rows, limit)) for limit in range(1, 6)]
  assert found == [1, 2, 3, 4, 4]


def test_a_mixture_sees_the_limited_rows(build):
  made = build({"letters": 8})
  whole = build()
  sizes = [(one.language, one.examples) for one in made.train]
  assert sizes == [("en", 8), ("de", 8), ("fr", 3)]
  assert [one.rate for one in made.train] == [8 / 19, 8 / 19, 3 / 19]
  assert [(e.language, e.examples) for e in made.evaluation] == [
    (e.language, e.examples) for e in whole.evaluation
  ]
  for entry in made.train:
    rows = KNOWN["letters"].rows(entry.language)["train"]
    assert made.rows(entry, split="train") == first(rows, 8)
    (task,) = (t for t in made.provider.tasks if t.name == entry.name)
    assert task.num_input_examples("train") == entry.examples
  # One made before keeps its rows.
  assert [one.examples for one in whole.train] == [40, 20, 3]


def test_batches_have_these_rows_and_no_others(build, vocabulary):
  made = build({"letters": 4}, languages=("en",))
  batches = pipeline.batches(made, batch_size=4, length=32, seed=5)
  found = set()
  for batch in itertools.islice(batches, 6):
    for ids in batch["decoder_target_tokens"]:
      found.add(vocabulary.decode(ids[ids > 0].tolist()))
  rows = first(KNOWN["letters"].rows("en")["train"], 4)
  assert found == {row.inputs + row.targets for row in rows}


def test_only_the_tasks_that_have_a_limit(build):
  made = build({"others": 2, "letters": None}, tasks=("letters", "others"))
  found = {one.name: one.examples for one in made.train}
  assert found["letters_en"] == 40 and found["others_en"] == 2
  assert made.known["letters"] is KNOWN["letters"]


def test_no_limit_is_no_change(build):
  same = mixtures.fingerprint(build())
  for limits in ({}, {"letters": None}, {"dates": None, "letters": 40}):
    assert mixtures.fingerprint(build(limits)) == same
  others = [mixtures.fingerprint(build({"letters": n})) for n in (39, 8, 7)]
  assert len({same, *others}) == 4


def test_the_same_limit_gives_the_same_task_again(build):
  one, same, other = (build({"letters": n}).provider.tasks for n in (5, 5, 6))
  assert all(a is b for a, b in zip(one, same, strict=True))
  assert not any(a is b for a, b in zip(one, other, strict=True))


def test_targets_are_those_of_the_limited_rows():
  rows = first(KNOWN["letters"].rows("en")["train"], 3)
  few = mixtures.targets(KNOWN, ["letters"], ["en"], limits={"letters": 3})
  assert few == tuple(sorted({row.targets for row in rows}))
  assert len(mixtures.targets(KNOWN, ["letters"], ["en"])) == 10 > len(few)


@pytest.mark.parametrize(
  ("limits", "message"),
  [
    ({"others": 3}, "limits has others, which is no task.*There are: letters"),
    ({"poems": 3, "a": 1}, "limits has a, poems, which is no task of the mix"),
    ({"letters": 0}, "limit of letters to be a whole number of at least 1.*0"),
    ({"letters": -3}, "at least 1, or None for all of its examples, got -3"),
    ({"letters": 1.5}, "limit of letters to be a whole number .* got 1.5"),
    ({"letters": True}, "got True"),
    ({"letters": "16"}, "got '16'"),
  ],
)
def test_mistakes(build, limits, message):
  with pytest.raises(ValueError, match=message):
    build(limits)
  with pytest.raises(ValueError, match=message):
    mixtures.targets(KNOWN, ["letters"], ["en"], limits=limits)
