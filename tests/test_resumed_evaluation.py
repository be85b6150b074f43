"""Evaluations that are interrupted go on, and end as if they were not."""

import dataclasses
import json
import types

from flax import nnx
import jax
import numpy as np
import pytest

from sira_jax import (
  analysis,
  assembly,
  decoding,
  evaluation,
  kept_answers,
  runs,
  scoring,
  sharding,
  storage,
)
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import Trainable
from tests import tiny_run
from tests.test_decoding import make

# Twelve prompts of two tasks in two languages: batches of two.
CHANGES = {"evaluation.examples": 3, "decoding.batch_size": 2}
PROMPTS = [
  np.random.default_rng(n).integers(1, 24, n).tolist() for n in range(1, 12)
]


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
  """All starts share what they compile."""
  with tiny_run.compilations(tmp_path_factory.mktemp("cache")):
    yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  base = tiny_run.base(tmp_path_factory.mktemp("base"))
  return tiny_run.config("sira", base | CHANGES)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  """A run that nothing happened to."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.main(patch, config, workdir)
  return workdir


@pytest.fixture
def asked(monkeypatch):
  """Counts prompts; `after` so many batches the process is gone."""
  found = types.SimpleNamespace(prompts=0, batches=0, after=None)
  greedy = decoding.greedy

  def counted(model, prompts, **how):
    if found.batches == found.after:
      raise KeyboardInterrupt
    found.batches += 1
    found.prompts += len(prompts)
    return greedy(model, prompts, **how)

  def anew(after=None):
    found.prompts, found.batches, found.after = 0, 0, after

  found.anew = anew
  monkeypatch.setattr(decoding, "greedy", counted)
  # What a process that is gone would not do.
  close = storage.Lines.close
  monkeypatch.setattr(
    storage.Lines,
    "close",
    lambda lines: None if found.batches == found.after else close(lines),
  )
  return found


@pytest.mark.parametrize(
  "after, file, kept",
  [(1, "answers_before.jsonl", 2), (8, "answers_after.jsonl", 4)],
)
def test_a_run_goes_on(
  config, whole, asked, tmp_path, monkeypatch, capsys, after, file, kept
):
  """Of 24 prompts, 12 before training, each is asked once."""
  workdir = tmp_path / "run"
  asked.anew(after)
  with pytest.raises(KeyboardInterrupt):
    tiny_run.main(monkeypatch, config, workdir)
  first = asked.prompts
  assert len((workdir / file).read_text().splitlines()) == 1 + kept // 2
  asked.anew()
  capsys.readouterr()
  tiny_run.main(monkeypatch, config, workdir)
  assert f"{kept} answers are kept already." in capsys.readouterr().out
  assert (first, asked.prompts) == (2 * after, 24 - 2 * after)
  assert storage.listing(workdir) == storage.listing(whole)
  for name in (
    *("before.json", "predictions.jsonl", "results.json", "results.md"),
    "routing.json",
  ):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
  one, other = analysis.load(workdir), analysis.load(whole)
  assert len(one.owners) == 12 and one.sites.keys() == other.sites.keys()
  for site, fields in other.sites.items():
    for name, values in fields.items():
      np.testing.assert_array_equal(one.sites[site][name], values)


@pytest.fixture
def begun(config, whole, asked, tmp_path):
  """A run's evaluation, interrupted after two batches; what continues it."""
  config = runs.load_config(whole)
  with sharding.use(*tiny_run.layout(config)):
    run = assembly.build(config, tmp_path)
    asked.anew(2)
    score = lambda run: scoring.first_scores(run, config, tmp_path, None)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
      score(run)
    asked.anew()
    yield types.SimpleNamespace(
      run=run,
      config=config,
      score=score,
      file=tmp_path / "answers_before.jsonl",
    )


def other_weights(begun):
  state = nnx.state(begun.run.base.model, Trainable)
  nnx.update(begun.run.base.model, jax.tree.map(lambda x: x + 1, state))


def other_decoding(begun):
  begun.config.decoding.max_new_tokens = 3


def other_data(begun):
  data = dataclasses.replace(begun.run.data, fingerprint="another")
  begun.run = dataclasses.replace(begun.run, data=data)


def other_base(begun):
  base = dataclasses.replace(begun.run.base, fingerprint="another")
  begun.run = dataclasses.replace(begun.run, base=base)


def other_prompts(begun):
  first, *others = begun.run.data.sets
  first = dataclasses.replace(first, inputs=first.inputs[::-1])
  data = dataclasses.replace(begun.run.data, sets=(first, *others))
  begun.run = dataclasses.replace(begun.run, data=data)


@pytest.mark.parametrize(
  "change, name",
  [
    (other_weights, "adapters"),
    (other_decoding, "decoding"),
    (other_data, "data"),
    (other_base, "base"),
    (other_prompts, "prompts"),
  ],
)
def test_answers_of_another_question_are_discarded(
  begun, asked, capsys, change, name
):
  change(begun)
  begun.score(begun.run)
  said = f"Discarded answers_before.jsonl: its answers are of other {name}."
  assert said in capsys.readouterr().out.splitlines()
  assert asked.prompts == 12 and not begun.file.exists()


def half_of_the_last(text):
  return text[: -len(text.splitlines()[-1]) // 2]


def one_letter(text):
  first, second, third = text.splitlines(keepends=True)
  at = second.index('"answers": ["') + 13
  letter = "y" if second[at] == "x" else "x"
  return first + second[:at] + letter + second[at + 1 :] + third


@pytest.mark.parametrize(
  "damage, again",
  [(half_of_the_last, 10), (one_letter, 10), (lambda text: text[5:], 12)],
)
def test_what_is_damaged_is_asked_again(
  begun, asked, whole, capsys, damage, again
):
  begun.file.write_text(damage(begun.file.read_text()))
  results = begun.score(begun.run)
  assert asked.prompts == again
  assert results == evaluation.loads((whole / "before.json").read_text())
  discarded = "Discarded answers_before.jsonl: it cannot be read."
  assert (discarded in capsys.readouterr().out) == (again == 12)


class Gone(Exception):
  """The process is."""


def test_wherever_it_is_interrupted(tmp_path, monkeypatch):
  """Sets that are ranked among those that are decoded, with statistics."""
  model = make(0)
  sira = methods.create("sira", experts=4, rank=2, k=2)
  rule = surgery.Rule(r"layers\.\d+\.mlp\.up_proj", sira)
  surgery.adapt(model, [rule], rngs=nnx.Rngs(1))
  # A line's end of other alphabets, within an answer.
  choices = ("a\x85", "b\u2028", "c\n", "d")
  sets = [
    types.SimpleNamespace(
      task="task",
      language=str(number),
      zero_shot=False,
      inputs=own,
      choices=choices if number == 1 else (),
      choice_ids=[[5], [5, 9, 1], [7, 1], [11, 12, 13]],
      targets=("a",) * len(own),
    )
    for number, own in enumerate((PROMPTS[:3], PROMPTS[3:7], PROMPTS[7:]))
  ]

  def score(file, lines):
    """Until so many batches are kept."""
    recorder = analysis.Recorder(sets, examples=2)
    kept = kept_answers.KeptAnswers(
      file, kept_answers.key(model, sets, batch=3), recorder=recorder
    )
    add, added = kept.add, []

    def dying(*line):
      if len(added) == lines:
        raise Gone
      added.append(line)
      add(*line)

    monkeypatch.setattr(kept, "add", dying)
    how = dict(score=lambda *_: {"score": 0.0}, text=str, eos_id=0)
    how |= dict(max_new_tokens=2, batch_size=3, record=kept.record, kept=kept)
    _, answers = evaluation.evaluate(model, sets, **how)
    return answers, recorder.statistics(), added

  expected, counted, added = score(tmp_path / "whole.jsonl", None)
  assert len(added) == 5 and len({*map(len, expected)}) == 2
  for lines in range(5):
    file = tmp_path / f"{lines}.jsonl"
    with pytest.raises(Gone):
      score(file, lines)
    answers, statistics, rest = score(file, None)
    assert answers == expected and len(rest) == 5 - lines
    for site, fields in counted.sites.items():
      assert all(np.isfinite(values).all() for values in fields.values())
      for name, values in fields.items():
        np.testing.assert_array_equal(statistics.sites[site][name], values)
    kept = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    numbers = [number for line in kept for number in line["numbers"]]
    assert sorted(numbers) == list(range(len(PROMPTS)))
