"""train.py and eval.py from end to end, stopped, killed and misused."""

import contextlib
import importlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import types

from absl import flags
import numpy as np
import pytest

from benchmarks import faults
from configs import quickstart
from sira_jax import assembly, checkpoints, process, runs
from tests import tiny_base
import train

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 12
SETTINGS = {
  "rules.attention.path": r"layers\.\d+\.self_attn\.[qkvo]_proj",
  "rules.mlp.path": r"layers\.\d+\.mlp\.(gate|up|down)_proj",
  "mixture.languages": ("en",),
  "mixture.zero_shot": ("it",),
  "batches.batch_size": 2,
  "batches.length": 96,
  "optimizer.learning_rate": 0.05,
  "optimizer.warmup_steps": 1,
  "training.steps": STEPS,
  "training.checkpoint_every": 5,
  "evaluation.examples": 2,
  "decoding.max_new_tokens": 4,
  "decoding.batch_size": 8,
}

del flags.FLAGS.workdir  # each script defines its own
evaluation = importlib.import_module("eval")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A tiny base: its file and sha256."""
  file = tmp_path_factory.mktemp("base") / "tiny.gguf"
  return types.SimpleNamespace(file=file, sha256=tiny_base.write(file))


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
  """All starts of a script share what they compile, with nobody else."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    patch.setenv("SIRA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    flags.FLAGS.mark_as_parsed()  # as their defaults, whichever test is first
    yield


@pytest.fixture(scope="module")
def arguments(base):
  """For train.py."""
  settings = {"base.uri": base.file, "base.sha256": base.sha256} | SETTINGS
  flags_given = [f"--config.{name}={value}" for name, value in settings.items()]
  given = ["--config=configs/quickstart.py", *flags_given]
  # Scripts start sooner without TensorFlow; README's are run with it.
  folder = base.file.with_name("cached")
  done = script("-m", "sira_jax.data.cache", f"--out={folder}", *given)
  assert done.returncode == 0, done.stderr
  return [*given, f"--config.cache.folder={folder}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, arguments):
  """A run that nothing happened to."""
  run = faults.Run(tmp_path_factory.mktemp("whole") / "run", arguments)
  run.finish()
  return run


def script(*command):
  """A finished process of a script, its output as text."""
  return subprocess.run(
    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
  )


def contents(folder):
  """Every file below, with its bytes and the time it was written."""
  return {
    str(path): path.is_file() and (path.stat().st_mtime_ns, path.read_bytes())
    for path in sorted(folder.rglob("*"))
  }


def test_what_a_run_leaves(whole):
  assert sorted(p.name for p in whole.workdir.iterdir()) == [
    ".lock",
    "before.json",
    "checkpoints",
    "config.json",
    "data.json",
    "metrics.jsonl",
    "predictions.jsonl",
    "results.json",
    "results.md",
    "routing.json",
    "routing.npz",
    "routing.png",
    "starts.jsonl",
    "tensorboard",
  ]
  read = lambda name: (whole.workdir / name).read_text()  # noqa: E731
  lines = [json.loads(line) for line in read("metrics.jsonl").splitlines()]
  assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
  assert all(np.isfinite(list(line.values())).all() for line in lines)
  results = json.loads(read("results.json"))
  assert {(x["task"], x["language"], x["zero_shot"]) for x in results} == {
    ("intents", "en", False),
    ("dates", "en", False),
    ("intents", "it", True),
    ("dates", "it", True),
  }
  table = read("results.md")
  assert re.search(r"^\| intents \| en +\| +2 ", table, re.MULTILINE)
  assert "| it (zero-shot)" in table and "| en (zero-shot)" not in table
  assert len(read("predictions.jsonl").splitlines()) == 8
  assert len(json.loads(read("routing.json"))["sites"]) == 14
  printed = whole.log.read_text()
  assert table in printed
  # No terminal: nothing is written over.
  assert "\r" not in printed and "\033" not in printed
  assert f"step {STEPS}/{STEPS}  loss" in printed


def test_a_finished_run_is_left_as_it_is(whole):
  before = contents(whole.workdir)
  whole.finish()
  assert whole.says("is finished")
  assert whole.says((whole.workdir / "results.md").read_text())
  assert contents(whole.workdir) == before


def test_eval_prints_the_same_table(whole):
  before = contents(whole.workdir)
  table = (whole.workdir / "results.md").read_text()
  for _ in range(2):
    done = script("eval.py", f"--workdir={whole.workdir}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"\n{table}")
  assert contents(whole.workdir) == before


def test_a_restored_model_says_the_same(whole):
  # The table of so small a model is all zeros; its answers are its own.
  config = runs.load_config(whole.workdir)
  run = assembly.build(config, whole.workdir)
  folder = whole.workdir / "checkpoints"
  with checkpoints.Checkpoints(folder, writable=False) as saved:
    saved.restore_adapter(run.base.model, base=run.base.fingerprint)
  _, answers = assembly.score(run, config, sets=run.data.sets)
  lines = (whole.workdir / "predictions.jsonl").read_text().splitlines()
  expected = [json.loads(line)["prediction"] for line in lines]
  assert [answer for one in answers for answer in one] == expected
  fresh = assembly.build(config, whole.workdir)
  _, untrained = assembly.score(fresh, config, sets=run.data.sets)
  assert untrained != answers


def test_stopped_runs_continue(tmp_path, arguments, whole):
  run = faults.Run(tmp_path / "run", arguments)
  for phase, kind in (
    ("first scores", signal.SIGTERM),
    ("training", signal.SIGTERM),
    ("training", signal.SIGINT),
  ):
    fault = run.interrupt(phase, kind, after=0.0)
    assert fault.code == process.STOPPED
    assert fault.saved == fault.step  # all that was done was saved
    assert fault.partial == 0
    assert "Traceback" not in run.log.read_text()
    assert run.says("topped") and run.says("he same command")
  run.finish()
  assert faults.differences(whole, run) == []


def test_killed_runs_continue(tmp_path, arguments, whole):
  run = faults.Run(tmp_path / "run", arguments)
  draw = random.Random(0)
  for phase, longest in (
    ("checkpoint", faults.WRITING),
    ("start-up", 10.0),
    ("results", 1.0),
  ):
    after = draw.uniform(0, longest)
    fault = run.interrupt(phase, signal.SIGKILL, after=after)
    assert fault.code == -signal.SIGKILL
    assert not (run.workdir / "results.json").exists()
  assert fault.saved == STEPS
  run.finish()
  assert not run.says("Training;")  # the last scores were all that lacked
  assert faults.differences(whole, run) == []


def test_the_default_workdir():
  for config, name in (
    ("configs/quickstart.py", "runs/quickstart"),
    ("configs/quickstart.py:lora", "runs/quickstart-lora"),
  ):
    flags.FLAGS(["train.py", f"--config={config}"])
    assert train.default_workdir() == name


@contextlib.contextmanager
def fails(message):
  with pytest.raises(SystemExit) as raised:
    yield
  assert str(raised.value).startswith("error: ")
  assert re.search(message, str(raised.value)), raised.value


@pytest.fixture
def start(monkeypatch, tmp_path, base):
  """Calls train.py's main with some changes to the config."""
  monkeypatch.delenv("SIRA_JAX_TRACEBACK", raising=False)
  monkeypatch.setattr(process, "prepare", lambda: None)

  def main(changes, workdir=tmp_path / "run"):
    config = quickstart.get_config()
    config.base.sha256 = None
    config.update_from_flattened_dict({"base.uri": str(base.file)} | SETTINGS)
    config.update_from_flattened_dict(changes)
    values = {"_CONFIG": config, "_WORKDIR": str(workdir), "_BEFORE": None}
    for flag, value in values.items():
      given = types.SimpleNamespace(value=value)
      monkeypatch.setattr(train, flag, given)
    train.main(["train.py"])

  return main


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"rules.attention.method": "nonsense"}, "method 'nonsense'; there are"),
    ({"rules.attention.k": 17}, "k = 17 exceeds the number of experts, 16"),
    (
      {
        "rules.attention.capacity_factor": None,
        "rules.attention.capacity": 0,
      },
      "capacity must be at least 1",
    ),
    ({"rules.mlp.rank": 0}, "rules.mlp: sira: rank must be at least 1"),
    ({"rules.mlp.rank": None}, "rules.mlp: rank cannot be none"),
    ({"base.dtype": None}, "config.base: dtype cannot be none"),
    ({"seed": None}, "config.seed"),
    ({"training.steps": 0}, "training.steps must be at least 1, got 0"),
    ({"optimizer.kind": "sgd"}, "optimizer.kind must be one of .*'adamw'"),
    ({"rules.mlp.gate": 1.0}, "rules have gates, but the config has no group"),
    ({"rules.mlp.level": "example"}, "runs of this script decode token by"),
    ({"batches.batch_size": 0}, "batches.batch_size must be at least 1"),
    ({"evaluation.examples": 0}, "evaluation.examples must be at least 1"),
    ({"decoding.batch_size": 0}, "decoding.batch_size must be at least 1"),
  ],
)
def test_refused_at_once(start, tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(assembly, "build", None)
  with fails(message):
    start(changes)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"rules.mlp.path": "layers.*up"}, r"matches no layer.*mlp\.up_proj"),
    ({"base.uri": "nowhere.gguf"}, "no file or folder nowhere.gguf"),
    ({"base.sha256": "0" * 64}, "another checksum than expected"),
    (
      {"mixture.tasks": ("jokes",), "mixture.rates": None},
      "Unknown task 'jokes'. Available are: intents, intent_names",
    ),
    ({"mixture.languages": ("xx",)}, "has no language 'xx'. It has: "),
    ({"mixture.languages": ()}, "language to train on at least"),
    ({"evaluation.split": "holdout"}, "Unknown split 'holdout'"),
    ({"batches.length": 5}, "No example of .* has at most 5 tokens"),
    ({"batches.length": 100_000}, "must be within the model's context of 256"),
    (
      {"decoding.max_new_tokens": 250},
      r"must leave room for the longest prompt, of \d+ tokens",
    ),
  ],
)
def test_refused_before_training(start, tmp_path, changes, message):
  with fails(message):
    start(changes)
  assert list(tmp_path.iterdir()) == []


def test_a_truncated_base_is_refused(start, tmp_path, base):
  data = base.file.read_bytes()
  for size in (100, len(data) // 2, len(data) - 100):
    short = tmp_path / "short.gguf"
    short.write_bytes(data[:size])
    with fails("short.gguf: expected a complete GGUF file"):
      start({"base.uri": str(short)})
    assert [p.name for p in tmp_path.iterdir()] == ["short.gguf"]


@pytest.fixture
def copy(tmp_path, whole):
  """A copy of the whole run, not finished."""
  copied = tmp_path / "copy"
  shutil.copytree(whole.workdir, copied)
  (copied / "results.json").unlink()
  return copied


def test_another_base_is_refused(start, copy, base, monkeypatch):
  saved = base.file.read_bytes()
  monkeypatch.setattr(
    evaluation, "_WORKDIR", types.SimpleNamespace(value=str(copy))
  )
  # The file is replaced by another, and the config trusts it.
  config = json.loads((copy / "config.json").read_text())
  config["base"]["sha256"] = None
  text = json.dumps(config, indent=2, sort_keys=True)
  (copy / "config.json").write_text(text)
  before = contents(copy)
  try:
    tiny_base.write(base.file, seed=1)
    with fails("trained on another base model: its sha256 was"):
      start({"cache.folder": config["cache"]["folder"]}, copy)
    with fails("trained on another base model: its sha256 was"):
      evaluation.main(["eval.py"])
  finally:
    base.file.write_bytes(saved)
  assert contents(copy) == before


def test_a_workdir_of_something_else_is_refused(start, copy, monkeypatch):
  monkeypatch.setattr(assembly, "build", None)
  before = contents(copy)
  with fails(r"another config(.|\n)*config\.training\.steps: 12 -> 13\n"):
    start({"training.steps": STEPS + 1}, copy)
  with fails("is not empty and holds no run"):
    start({}, copy / "checkpoints")
  with fails(r"cannot be used: .*/config.json is no folder"):
    start({}, copy / "config.json")
  with fails(r"cannot be used: .*/config.json is no folder"):
    start({}, copy / "config.json" / "run")
  assert contents(copy) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_cannot_be_written_is_refused(start, tmp_path):
  tmp_path.chmod(0o500)
  with fails("cannot be written"):
    start({})


def test_eval_needs_a_run(monkeypatch, tmp_path, copy):
  monkeypatch.setattr(process, "prepare", lambda: None)
  given = types.SimpleNamespace(value=str(tmp_path / "none"))
  monkeypatch.setattr(evaluation, "_WORKDIR", given)
  with fails("There is no run in"):
    evaluation.main(["eval.py"])
  shutil.rmtree(copy / "checkpoints")
  given.value, before = str(copy), contents(copy)
  with fails("There is no checkpoint in"):
    evaluation.main(["eval.py"])
  assert contents(copy) == before
  (copy / "data.json").write_text('{"data": "another"}')
  with fails("was begun with other data: their fingerprint was another"):
    evaluation.main(["eval.py"])


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--config.rules.mlp.rnk=3"], 'Did you mean "rank" instead of "rnk"'),
    (["--config=configs/quickstart.py:sirra"], "method 'sirra'; there are"),
    (["--config=configs/none.py"], "No such file.*'configs/none.py'"),
  ],
)
def test_a_wrong_flag_is_one_error(tmp_path, arguments, message):
  if "--config=" not in arguments[0]:
    arguments = ["--config=configs/quickstart.py", *arguments]
  done = script("train.py", *arguments, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 1 and done.stdout == ""
  assert re.match(rf"error: (.|\n)*{message}", done.stderr), done.stderr
  assert "Traceback" not in done.stderr and done.stderr.count("rror:") == 1
  assert list(tmp_path.iterdir()) == []
