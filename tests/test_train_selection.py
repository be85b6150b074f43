"""Runs of train.py that keep their best checkpoint, and may end early."""

import itertools
import json
import math

from flax import nnx
import numpy as np
import pytest

from sira_jax import adapted, process, scoring, selection, sharding
from sira_jax.adapters.variables import Trainable
from tests import tiny_run
import train

CHANGES = {
  "training.steps": 10,
  "training.checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


def config(base, **settings):
  found = tiny_run.config("lora", base | CHANGES)
  found.selection = dict(metric="exact_match", examples=3, patience=None)
  found.selection.update(settings)
  return found


def follow(patch, values):
  """Has the checkpoints score `values`, whatever they answer."""
  found = {2 * number: value for number, value in enumerate(values, 1)}
  original, scored = selection.Selection.add, []

  def add(self, step, results):
    scored.append(step)
    assert {one.count for one in results} == {3}  # of the validation split
    assert not any(one.zero_shot for one in results)
    with pytest.MonkeyPatch.context() as inner:
      inner.setattr(selection, "value", lambda *_: found[step])
      return original(self, step, results)

  patch.setattr(selection.Selection, "add", add)
  return scored


def kept(workdir):
  """The steps of the checkpoints that are left."""
  names = [file.name for file in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


def trained(config, workdir):
  """What eval.py and export read of a run: the step, and its numbers."""
  with sharding.use(*tiny_run.layout(config)):
    found = adapted.restore(config, workdir)
  state = nnx.to_flat_state(nnx.state(found.base.model, Trainable))
  return found.step, {path: np.array(x.get_value()) for path, x in state}


def test_the_best_is_kept_and_taken(base, tmp_path, monkeypatch, capsys):
  """Of steps 2 to 10, that of step 4; the newest two are there as well."""
  workdir, settings = tmp_path / "run", config(base)
  scored = follow(monkeypatch, [1.0, 3.0, 2.0, 3.0, 0.0])
  tiny_run.main(monkeypatch, settings, workdir)
  assert scored == [2, 4, 6, 8, 10]
  assert kept(workdir) == [4, 8, 10]
  assert "Taking step 4 of 10." in capsys.readouterr().out

  # It is what a run of four steps has, given the schedule of ten.
  step, best = trained(settings, workdir)
  assert step == 4
  stopped, fit = tmp_path / "stopped", train.fit

  def until_four(*arguments):
    at_four = lambda signals, step: step == 4  # noqa: E731
    monkeypatch.setattr(train.distributed, "stopping", at_four)
    return fit(*arguments)

  monkeypatch.setattr(train, "fit", until_four)
  plain = settings.copy_and_resolve_references()
  plain.unlock()
  del plain.selection
  with pytest.raises(SystemExit) as ended:
    tiny_run.main(monkeypatch, plain, stopped)
  assert ended.value.code == process.STOPPED
  step, four = trained(plain, stopped)
  assert step == 4
  assert best.keys() == four.keys()
  for path, array in four.items():
    np.testing.assert_array_equal(best[path], array, str(path))


def test_patience(base, tmp_path, monkeypatch, capsys):
  """Two in a row are no better, so the steps after 6 are left out."""
  workdir = tmp_path / "run"
  scored = follow(monkeypatch, [1.0, 0.0, 1.0, 5.0, 5.0])
  tiny_run.main(monkeypatch, config(base, patience=2), workdir)
  assert scored == [2, 4, 6] and kept(workdir) == [2, 4, 6]
  assert "patience is at its end" in capsys.readouterr().out
  assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 6
  assert (workdir / "results.json").exists()


def test_killed_before_it_was_scored(base, tmp_path, monkeypatch):
  """A checkpoint that was saved is scored by the next start, once."""
  workdir, values = tmp_path / "run", [1.0, 3.0, 2.0, 2.0, 2.0]
  settings, original = config(base, patience=2), scoring.validate
  with monkeypatch.context() as patch:
    calls = itertools.count()

    def dying(*arguments):
      if next(calls) == 2:
        raise KeyboardInterrupt
      return original(*arguments)

    patch.setattr(scoring, "validate", dying)
    first = follow(patch, values)
    with pytest.raises(KeyboardInterrupt):
      tiny_run.main(patch, settings, workdir)
    assert first == [2, 4]
  second = follow(monkeypatch, values)
  tiny_run.main(monkeypatch, settings, workdir)
  assert second == [6, 8] and selection.best(workdir) == 4
  # As one that nothing happened to.
  third, whole = follow(monkeypatch, values), tmp_path / "whole"
  tiny_run.main(monkeypatch, settings, whole)
  assert third == [2, 4, 6, 8]
  for name in ("validation.json", "results.json", "predictions.jsonl"):
    assert (workdir / name).read_text() == (whole / name).read_text()


def test_a_damaged_best(base, tmp_path, monkeypatch, capsys):
  """The newest is taken instead, and said."""
  workdir, settings = tmp_path / "run", config(base)
  follow(monkeypatch, [9.0, 3.0, 2.0, 2.0, 2.0])
  tiny_run.main(monkeypatch, settings, workdir)
  step, _ = trained(settings, workdir)
  assert step == 2
  meta = workdir / "checkpoints" / "2" / "meta"
  for file in meta.rglob("*"):
    if file.is_file():
      file.write_bytes(b"{")
  capsys.readouterr()
  assert trained(settings, workdir)[0] == 10
  assert "DAMAGED: the checkpoint of step 2" in capsys.readouterr().out


def test_its_log(base, tmp_path, monkeypatch):
  """validation.json has the scores; an untrained metric is refused."""
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config(base, metric=None), workdir)
  found = json.loads((workdir / "validation.json").read_text())
  assert [one["step"] for one in found] == [2, 4, 6, 8, 10]
  assert all(math.isfinite(one["value"]) for one in found)
  assert {one["language"] for one in found[0]["results"]} == {"en"}
  with pytest.raises(SystemExit, match="which no task that is trained on has"):
    tiny_run.main(monkeypatch, config(base, metric="bleu"), tmp_path / "other")


@pytest.mark.parametrize(
  "changes",
  [
    {"training.steps": 0, "rules": {}},
    {"sparsity": dict(penalties=(0.0, 1.0))},
  ],
)
def test_what_has_no_choice_is_refused(base, tmp_path, monkeypatch, changes):
  found = config(base)
  if "sparsity" in changes:
    found = tiny_run.config("sora", base | CHANGES)
    found.selection = dict(metric=None, examples=3, patience=None)
    found.sparsity.penalties = (0.0, 1.0)
  else:
    found.training.steps, found.rules = 0, {}
  with pytest.raises(SystemExit, match="among the checkpoints of one training"):
    tiny_run.main(monkeypatch, found, tmp_path / "run")
