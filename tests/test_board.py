"""The curves of a run, as TensorFlow reads their files."""

import json
import sys

import pytest

from sira_jax import board, metrics_log
from tests import tiny_run


def curves(folder):
  """name -> step -> value, without what a later start has dropped."""
  from tensorflow.compat.v1 import train

  found = {}
  for file in sorted(
    folder.iterdir(), key=lambda file: file.stat().st_mtime_ns
  ):
    for event in train.summary_iterator(str(file)):
      if event.HasField("session_log"):  # the start of a process
        for points in found.values():
          for step in [step for step in points if step >= event.step]:
            del points[step]
      for one in event.summary.value:
        points = found.setdefault(one.tag, {})
        assert event.step not in points, "drawn twice"
        points[event.step] = one.simple_value
  return found


def test_a_log_has_curves(tmp_path):
  """Going on at step 1 drops what was drawn after it."""
  for start, losses in ((0, [3.0, 2.5, 2.25]), (1, [2.0])):
    log = metrics_log.MetricsLog(tmp_path / "metrics.jsonl", step=start)
    for step, loss in enumerate(losses, start + 1):
      log.append({"step": step, "loss": loss, "examples": 4})
    log.close()
  found = curves(tmp_path / board.FOLDER / "train")
  assert found == {"loss": {1: 3.0, 2: 2.0}, "examples": {1: 4, 2: 4}}


def test_without_tensorboardx(tmp_path, monkeypatch):
  """There are no curves, and the log is whole."""
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  log = metrics_log.MetricsLog(tmp_path / "metrics.jsonl", step=0)
  log.append({"step": 1, "loss": 1.0})
  log.close()
  assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1.0
  assert not (tmp_path / board.FOLDER).exists()


@pytest.mark.parametrize("kind", ["train", "validation"])
def test_a_run_has_curves(tmp_path, monkeypatch, kind):
  base = tiny_run.base(tmp_path)
  config = tiny_run.config("lora", base | {"training.steps": 4})
  config.selection = dict(metric="exact_match", examples=2, patience=None)
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir)
  found = curves(workdir / board.FOLDER / kind)
  if kind == "train":
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    expected = {one["step"]: one["loss"] for one in map(json.loads, lines)}
    assert found["loss"] == pytest.approx(expected)
  else:
    assert {"dates/en/exact_match", "dates/mean/exact_match"} <= found.keys()
    assert all(list(points) == [2, 4] for points in found.values())
