"""The table of ablations: its settings, and the paired test."""

import json
import sys
from unittest import mock

from absl import flags
from ml_collections import config_flags
import numpy as np
import pytest

from benchmarks import ablations, trials
from sira_jax import configuration, validation


def config_of(arguments):
  configuration.let_flags_say_none()
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config", lock_config=True, flag_values=values
  )
  command = ["train.py", *arguments]
  with mock.patch.object(sys, "argv", command):
    values(command)
  return values["config"].value


@pytest.mark.parametrize("name", ablations.SETTINGS)
def test_each_setting_is_another_config(name):
  config = config_of(ablations.SETTINGS[name])
  validation.check(config)
  mine = configuration.as_json(config)
  others = (f for n, f in ablations.SETTINGS.items() if n != name)
  assert all(mine != configuration.as_json(config_of(f)) for f in others)


def test_p_value():
  # Of ten signs, those that are all + or all - are as far from 0: 2 of 2**10.
  assert ablations.p_value(np.full(10, 0.5)) == pytest.approx(2 / 2**10)
  assert ablations.p_value(np.zeros(10)) == 1.0
  assert ablations.p_value(np.array([1.0, -1.0] * 5)) > 0.99


def leave(run, answers, losses=(1.0,)):
  run.workdir.mkdir(parents=True)
  lines = [json.dumps({"loss": loss}) + "\n" for loss in losses]
  (run.workdir / "metrics.jsonl").write_text("".join(lines))
  rows = [
    dict(task="t", language="en", prompt=str(n), target="x", prediction=answer)
    for n, answer in enumerate(answers)
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (run.workdir / "predictions.jsonl").write_text(text)


def test_differences(tmp_path):
  runs = trials.plan({"sira": (), "lora": ()}, [0, 1], tmp_path)
  for run, answers in zip(runs, ("xxy", "xyx", "xxx", "xyy"), strict=True):
    leave(run, answers)
  sira, lora = runs[0::2], runs[1::2]
  # Seed 0: 0, -1, +1; seed 1: 0, -1, -1.
  found = ablations.differences(lora, sira)
  np.testing.assert_array_equal(found, [0.0, -1.0, 0.0])
  # Of one seed that both have.
  found = ablations.differences(lora[:1], sira)
  np.testing.assert_array_equal(found, [0.0, -1.0, 1.0])
  with pytest.raises(ValueError, match="no seed in common"):
    ablations.differences(lora[:1], sira[1:])
  other = trials.Run("other", 0, tmp_path / "other")
  leave(other, "xx")
  with pytest.raises(ValueError, match="not the same examples"):
    ablations.differences([other], sira)


def test_comparison(tmp_path):
  runs = trials.plan({"lora": (), "sira": ()}, [0, 1], tmp_path)
  for run, losses in zip(runs, ([9, *[2] * 20], [1], [5], [4]), strict=True):
    leave(run, ("x" if run.setting == "lora" else "y") * 10, losses)
  # 2 - 1 and 5 - 4: what was before the last 20 steps is not told.
  assert ablations.comparison(runs).splitlines()[2:] == [
    "| lora | +100.0 | 0.002 | 1.000 ± 0.000 |"
  ]
  # Of one seed in common.
  assert ablations.loss_differences(runs[2:3], runs[3:]) == [1.0]
  assert ablations.loss_differences(runs[2:3], runs[1:2]) == []
