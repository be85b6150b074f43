"""The cross-lingual comparison: its settings, and its tables."""

import json

import pytest

from benchmarks import crosslingual, trials
from configs import crosslingual as config
from sira_jax import validation
from sira_jax.adapters import methods
from tests.benchmarks.test_ablations import config_of


@pytest.mark.parametrize("task", config.LANGUAGES)
def test_settings(task, tmp_path):
  """Every language is trained on or tested, of as many parameters."""
  found = crosslingual.settings(task, tmp_path)
  assert len(found) == 2 * len(config.SETTINGS)
  for name, flags in found.items():
    made = config_of(flags[:-1])  # no cache is there yet
    if task == "intents":
      validation.check(made)
    both = {*made.mixture.languages, *made.mixture.zero_shot}
    assert both == set(config.LANGUAGES[task]) and len(both) > 15
    assert f"on {len(made.mixture.languages)}" in name
  # One block of multilingual-e5-small: q, k, v, o; wi, wo.
  sizes = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]
  totals = {
    12 * sum(methods.create(name, **own).parameters(*size) for size in sizes)
    for name, own in config.SETTINGS.items()
  }
  assert totals == {2_985_984}


def test_labels_are_all_there_are():
  """Of the languages that training reads first; `read` checks all others."""
  from sira_jax.data import intents

  for language in crosslingual.FIVE:
    rows = intents.names(language)
    named = {row.targets for split in rows.values() for row in split}
    assert named <= set(config.INTENTS)


def test_unknown_arguments_are_refused():
  with pytest.raises(ValueError, match="there are intents_lora, "):
    config.get_config("intents")


ROWS = {
  ("lora on 1", 0): {"en": 90.0, "de": 50.0, "fr": 40.0},
  ("lora on 1", 1): {"en": 92.0, "de": 60.0, "fr": 50.0},
  ("sira on 5", 0): {"en": 80.0, "de": 70.0, "fr": 60.0},
}


@pytest.fixture
def finished(tmp_path):
  found = []
  for (name, seed), scores in ROWS.items():
    run = trials.Run(name, seed, tmp_path / name / str(seed))
    run.workdir.mkdir(parents=True)
    trained = ("en",) if name.endswith("1") else ("en", "de")
    rows = [
      dict(
        language=language,
        zero_shot=language not in trained,
        after=dict(accuracy=value, macro_f1=value / 2),
      )
      for language, value in scores.items()
    ]
    (run.workdir / "results.json").write_text(json.dumps(rows))
    found.append(run)
  return found


def test_tables(finished, tmp_path):
  assert crosslingual.table(finished).splitlines()[2:] == [
    # Means of two seeds: 90 and 92; (50 + 40) / 2 and (60 + 50) / 2.
    "| lora, 1 | 2 | 91.0 ± 1.4 | 45.5 ± 0.7 | 50.0 ± 7.1 | 25.0 ± 3.5 |",
    "| sira, 5 | 1 | 75.0 | 37.5 | 60.0 | 30.0 |",
  ]
  assert crosslingual.languages(finished).splitlines() == [
    "| accuracy | lora on 1 | sira on 5 |",
    "| --- | ---: | ---: |",
    "| de | 55.0 | (70.0) |",
    "| en | (91.0) | (80.0) |",
    "| fr | 45.0 | 60.0 |",
  ]
  crosslingual.draw(finished, tmp_path / "picture.png")
  assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_scores_before_are_of_the_same_mixture(tmp_path, monkeypatch):
  """Another run's are taken, if it tests what this one does."""
  runs = [
    trials.Run(name, 0, tmp_path / name, (f"--config.mixture.languages={x}",))
    for name, x in (("a", "1"), ("b", "2"), ("c", "2"))
  ]
  for run in runs[:2]:
    run.workdir.mkdir()
    (run.workdir / "before.json").write_text("[]")
  commands = []
  monkeypatch.setattr(
    trials, "supervise", lambda command, *_: commands.append(command)
  )
  trials.train(runs[2], others=runs, arguments=(), received=[])
  assert commands[0][-1] == f"--before={runs[1].workdir}"
