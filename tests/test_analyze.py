"""The command on a tiny run, with and without statistics; its mistakes."""

import json
import shutil
import sys

from absl import flags
import pytest

from sira_jax import (
  adapted,
  analysis,
  analyze,
  assembly,
  configuration,
  runs,
  sharding,
  stages,
  storage,
)
from tests import tiny_run
from tests.test_generate import leave_run

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, base):
  """Of a decoder with SiRA's routed experts, trained; without statistics."""
  changes = {"evaluation.examples": 3}
  config = tiny_run.config("sira", base | changes)
  return leave_run(config, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs it in this process -> what it prints."""
  monkeypatch.delenv("SIRA_JAX_TRACEBACK", raising=False)
  monkeypatch.setattr("sira_jax.process.prepare", lambda: None)

  def call(*words):
    own = flags.FlagValues()
    analyze.define_flags(own)
    monkeypatch.setattr(analyze.flags, "FLAGS", own)
    analyze.main(own(["analyze", *map(str, words)]))
    return capsys.readouterr().out

  return call


def test_statistics_of_the_evaluation_are_those_of_the_prompts(
  run, command, tmp_path, monkeypatch
):
  """Read anew, and then left by an evaluation, which spares the data."""
  words = f"--workdir={run}", "--permutations=20"
  printed = command(*words, f"--out={tmp_path / 'anew'}")
  assert "2 routed layers with 2 routers" in printed
  assert "numbers.json, report.html" in printed
  config = runs.load_config(run)
  with sharding.use(*adapted.layout(config)):
    made = assembly.build(config, run)
    stages.restore(
      made.base.model, run, made.stages, base=made.base.fingerprint
    )
    recorder = analysis.Recorder(made.data.sets)
    assembly.score(made, config, sets=made.data.sets, record=recorder)
  workdir = tmp_path / "run"
  shutil.copytree(run, workdir)
  analysis.save(recorder.statistics(), workdir)

  def refuse(*_):
    raise ValueError("the data are not needed")

  monkeypatch.setattr(assembly, "build", refuse)
  command(f"--workdir={workdir}", "--permutations=20")
  with pytest.raises(SystemExit, match="data are not needed"):
    command(f"--workdir={workdir}", "--anew")
  anew, left = (
    json.loads((folder / "numbers.json").read_text())
    for folder in (tmp_path / "anew", workdir / "analysis")
  )
  assert anew["examples"] == 12  # of two tasks in two languages
  assert anew["labels"]["language"] == ["en", "it"]
  assert sum(anew["tokens"]["task"]) > 12
  assert left == anew
  assert (
    "<h1>Routing of run</h1>"
    in (workdir / "analysis" / "report.html").read_text()
  )


@pytest.mark.parametrize("method", ["lora", "adamix", "full", "frozen"])
def test_nothing_is_routed(base, command, tmp_path, method):
  config = tiny_run.config(method, base)
  storage.write(tmp_path / "config.json", configuration.as_json(config))
  what = {"frozen": "nothing"}.get(method, method)
  with pytest.raises(SystemExit, match=f"Nothing is routed: .*trains {what}"):
    command(f"--workdir={tmp_path}")


def test_mistakes(run, command, tmp_path, monkeypatch):
  for word, message in (
    ("--permutations=0", "--permutations must be at least 1: 0"),
    ("--examples=0", "--examples must be at least 1"),
    ("more", "Unexpected arguments"),
    (f"--workdir={tmp_path}", "There is no run in"),
  ):
    with pytest.raises(SystemExit, match=message):
      command(f"--workdir={run}", word)
  (tmp_path / "routing.npz").write_bytes(b"damaged")
  shutil.copy(run / "config.json", tmp_path)
  with pytest.raises(SystemExit, match=r"routing\.npz cannot be read"):
    command(f"--workdir={tmp_path}")
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(SystemExit, match=r"sira_jax\[plots\]"):
    command(f"--workdir={run}")
