"""A cached run trains, stops, goes on and is scored where no TensorFlow is."""

import json
import pathlib
import subprocess
import sys

import pytest

from sira_jax.data import cache
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
# What the data room needs, and itself.
BLOCKED = (
  *("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "clu"),
  *("sentencepiece", "home_assistant_intents", "hassil", "emoji", "babel"),
  "sira_jax.data",
)
SCRIPT = f"""
import os, runpy, signal, sys

sys.modules |= dict.fromkeys({BLOCKED!r})
from sira_jax import metrics_log

stop, *sys.argv = sys.argv[1:]
append = metrics_log.MetricsLog.append


def counting(self, record):
  append(self, record)
  if record["step"] == int(stop):
    os.kill(os.getpid(), signal.SIGTERM)


metrics_log.MetricsLog.append = counting
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(*words, stop=0):
  return subprocess.run(
    [sys.executable, "-c", SCRIPT, str(stop), *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=400,
  )


def plain(*words):
  return subprocess.run(
    [sys.executable, "train.py", *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=400,
  )


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    patch.setenv("SIRA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


def test_train_go_on_and_score(tmp_path):
  changes = tiny_run.base(tmp_path) | {
    "training.steps": 6,
    "training.checkpoint_every": 3,
  }
  config = tiny_run.config("lora", changes)
  folder = tmp_path / "cache"
  cache.write(config, str(folder))
  changes = tiny_run.SETTINGS | changes | {"cache.folder": folder}
  arguments = [
    "--config=configs/quickstart.py:lora",
    *(f"--config.{name}={value}" for name, value in changes.items()),
    r"--config.rules.attention.path=layers\.\d+\.self_attn\.q_proj",
    r"--config.rules.mlp.path=layers\.\d+\.mlp\.up_proj",
  ]
  ran, whole = (
    [*arguments, f"--workdir={tmp_path / name}"] for name in ("ran", "whole")
  )
  done = script("train.py", *ran, stop=3)
  assert done.returncode == 75, done.stderr
  # A step's metrics are appended once the next is sent.
  assert "Stopped at step 4" in done.stdout
  moved = tmp_path / "elsewhere"
  folder.rename(moved)
  done = script("train.py", *ran)
  assert done.returncode == 1 and "There is no cache in" in done.stderr
  # Streamed, they come in another order; nothing is changed by the attempt.
  kept = (tmp_path / "ran" / "config.json").read_text()
  done = plain(*ran, "--config.cache.folder=none")
  assert done.returncode == 1 and "begun with other data" in done.stderr
  assert (tmp_path / "ran" / "config.json").read_text() == kept
  moving = f"--config.cache.folder={moved}"
  done = script("train.py", *ran, moving)
  assert done.returncode == 0, done.stderr
  assert "Continuing at step 4 of 6" in done.stdout
  assert "read from the cache" in done.stdout
  # In one go, where TensorFlow is: the very same steps and answers.
  done = plain(*whole, moving)
  assert done.returncode == 0, done.stderr
  one, two = (
    [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").open()]
    for n in ("ran", "whole")
  )
  assert [x["loss"] for x in one] == [x["loss"] for x in two]
  assert len(one) == 6
  for name in ("results.json", "predictions.jsonl"):
    texts = [(tmp_path / n / name).read_text() for n in ("ran", "whole")]
    assert texts[0] == texts[1]
  done = script("eval.py", f"--workdir={tmp_path / 'ran'}")
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith((tmp_path / "ran" / "results.md").read_text())
  moved.rename(folder)
  done = script("eval.py", f"--workdir={tmp_path / 'ran'}", f"--cache={folder}")
  assert done.returncode == 0, done.stderr
