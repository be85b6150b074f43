"""Which checkpoint is best, by scores written out here."""

import json

import pytest

from sira_jax import evaluation, selection


def result(task, language, **scores):
  return evaluation.Result(task, language, False, 2, scores)


RESULTS = [
  result("intents", "en", exact_match=50.0, f1=70.0),
  result("intents", "de", exact_match=30.0, f1=50.0),
  result("dates", "en", exact_match=10.0),
]


@pytest.mark.parametrize(
  ("metric", "expected"),
  [
    # intents' mean is 40, dates' 10.
    ("exact_match", 25.0),
    # dates has none.
    ("f1", 60.0),
    # (40 + 60) / 2 of intents, 10 of dates.
    (None, 30.0),
  ],
)
def test_value(metric, expected):
  assert selection.value(RESULTS, metric) == expected


def scored(folder, values, *, step=None, **settings):
  """A selection whose checkpoints, every 10 steps, scored `values`."""
  settings = dict(metric=None, examples=2, patience=None) | settings
  found = selection.Selection(folder, settings, step=step or 0)
  for number, value in enumerate(values, 1):
    found.add(10 * number, [result("dates", "en", exact_match=value)])
  return found


@pytest.mark.parametrize(
  ("values", "best"),
  [
    ([], None),
    ([0.0], 10),
    ([5.0, 7.0, 6.0], 20),
    ([5.0, 7.0, 7.0], 20),  # of equal ones, the first
    ([float("nan"), 1.0], 20),
    ([float("nan")], None),
  ],
)
def test_best(tmp_path, values, best):
  assert scored(tmp_path, values).best == best
  assert selection.best(tmp_path) == best


@pytest.mark.parametrize(
  ("values", "patience", "exhausted"),
  [
    ([5.0, 4.0], None, False),
    ([5.0, 4.0], 2, False),
    ([5.0, 4.0, 5.0], 2, True),
    ([5.0, 4.0, 6.0, 1.0], 2, False),
    ([float("nan"), float("nan")], 2, True),
  ],
)
def test_patience(tmp_path, values, patience, exhausted):
  assert scored(tmp_path, values, patience=patience).exhausted is exhausted


def test_going_on_drops_what_came_later(tmp_path):
  scored(tmp_path, [5.0, 4.0, 9.0], patience=1)
  settings = dict(metric=None, examples=2, patience=1)
  found = selection.Selection(tmp_path, settings, step=20)
  assert found.best == 10 and found.exhausted
  assert [found.lacks(step) for step in (10, 20, 30)] == [False, False, True]
  found.add(30, [result("dates", "en", exact_match=6.0)])
  steps = [
    one["step"] for one in json.loads((tmp_path / selection.FILE).read_text())
  ]
  assert steps == [10, 20, 30] and selection.best(tmp_path) == 30


def test_without_a_choice(tmp_path):
  found = selection.Selection(tmp_path, None, step=0)
  assert not found.lacks(10) and not found.exhausted and found.best is None


def test_what_it_says(tmp_path):
  found = scored(tmp_path, [5.0], metric="exact_match", patience=1)
  text = found.add(20, [result("dates", "en", exact_match=4.0)])
  assert text == (
    "validation: exact match 4.0 at step 20; best: step 10; patience is at its"
    " end"
  )
  text = found.add(30, [result("dates", "en", exact_match=6.25)])
  assert text == "validation: exact match 6.2 at step 30, the best"


def test_damage_is_said(tmp_path, capsys):
  """Who only reads moves nothing; who trains goes on, without what was."""
  file = tmp_path / selection.FILE
  file.write_text('[{"step": 1}]')
  with pytest.raises(ValueError, match=r"cannot be read: KeyError\('value'\)"):
    selection.best(tmp_path)
  assert [one.name for one in tmp_path.iterdir()] == [selection.FILE]
  assert selection.Selection(tmp_path, None, step=9).best is None
  assert "DAMAGED" in capsys.readouterr().out and not file.exists()


@pytest.mark.parametrize("name", ["examples", "patience"])
def test_numbers(name):
  with pytest.raises(ValueError, match=rf"selection.{name} must be at least 1"):
    selection.check(**{name: 0})
