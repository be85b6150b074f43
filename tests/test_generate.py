# SPDX-License-Identifier: Apache-2.0
"""The command against the evaluation of the same run; users' mistakes."""

import io
import json
import os
import pathlib
import subprocess
import sys

from absl import flags
import pytest

from sira_jax import (
  adapted,
  assembly,
  checkpoints,
  configuration,
  decoding,
  generate,
  runs,
  sharding,
  storage,
  texts,
)
from sira_jax import predictions as predictions_lib
from sira_jax.training import step as training
from tests import tiny, tiny_run, tiny_t5
from tests.test_architecture import BLOCKER

ROOT = pathlib.Path(__file__).parents[1]


def leave_run(config, workdir):
  """What generation needs of a run, and what was decoded at its end."""
  with sharding.use(*adapted.layout(config)):
    return _leave_run(config, workdir)


def _leave_run(config, workdir):
  run = assembly.build(config, workdir)
  tiny.randomize(run.base.model)
  optimizer, _ = assembly.optimizer(config, run.stages[0])
  state = training.init(run.base.model, optimizer, seed=0)
  with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
    meta = {"base": run.base.fingerprint, "data": run.data.fingerprint}
    saved.save(state, step=2, meta=meta)
  storage.write(workdir / "config.json", configuration.as_json(config))
  _, predictions = assembly.score(run, config, sets=run.data.sets)
  file = workdir / "predictions.jsonl"
  predictions_lib.save(file, run.data.sets, predictions)
  return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Of a decoder with SiRA's routed experts."""
  folder = tmp_path_factory.mktemp("run")
  config = tiny_run.config("sira", tiny_run.base(folder))
  return leave_run(config, folder / "run")


@pytest.fixture(scope="module")
def t5_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("t5")
  changes = {
    "base.uri": str(tiny_t5.byte_folder(folder)),
    "base.sha256": None,
    "batches.length": 128,
    "batches.targets_length": 96,
    "mixture.tasks": ("dates",),
    "mixture.rates": None,
  }
  config = tiny_run.config("sira", {}, path=r".*\.blocks\.0\.mlp\.wo")
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  return leave_run(config, folder / "run")


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs it in this process -> the lines that it prints."""
  monkeypatch.delenv("SIRA_JAX_TRACEBACK", raising=False)
  monkeypatch.setattr("sira_jax.process.prepare", lambda: None)

  def call(*words):
    own = flags.FlagValues()
    generate.define_flags(own)
    monkeypatch.setattr(generate.flags, "FLAGS", own)
    generate.main(own(["generate", *map(str, words)]))
    return capsys.readouterr().out.split("\n")[:-1]

  return call


def examples(workdir):
  lines = (workdir / "predictions.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


WITHOUT = f"""{BLOCKER}
import runpy
sys.argv[0] = "generate"
runpy.run_module("sira_jax.generate", run_name="__main__")
"""


def test_answers_are_those_of_the_evaluation(run):
  """In a process without TensorFlow, from the run's own prompts."""
  file = run / "predictions.jsonl"
  words = [f"--workdir={run}", f"--file={file}", "--json"]
  done = subprocess.run(
    [sys.executable, "-c", WITHOUT, *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  blocked, *lines = done.stdout.splitlines()
  assert done.returncode == 0 and blocked == "blocked", done.stderr[-2000:]
  assert "step 2" in done.stderr
  found = [json.loads(line) for line in lines]
  expected = examples(run)
  assert [one["prompt"] for one in found] == [e["prompt"] for e in expected]
  answers = [e["prediction"] for e in expected]
  assert [one["text"] for one in found] == answers
  assert len(set(answers)) > 1 and all(len(o["tokens"]) <= 4 for o in found)


def test_an_encoder_decoder(t5_run, command):
  expected = examples(t5_run)
  file = t5_run / "predictions.jsonl"
  words = [f"--workdir={t5_run}", f"--file={file}", "--json"]
  found = [json.loads(line) for line in command(*words)]
  assert [e["text"] for e in found] == [e["prediction"] for e in expected]


def restored_once(monkeypatch, workdir):
  """The model of a run, which the command is given from now on."""
  model = adapted.restore(runs.load_config(workdir), workdir)
  monkeypatch.setattr(adapted, "restore", lambda *_: model)
  return model


def test_flags_reach_the_decoding(run, command, monkeypatch):
  """Standard input, and each way to decode."""
  seen = []

  def fake(kind, answer):
    def call(model, inputs, **options):
      seen.append((kind, inputs, options))
      return [answer for _ in inputs]

    return call

  beam = generate.beams.Beam
  answer = [beam([5], -0.5), beam([6], -1.5)]
  monkeypatch.setattr(decoding, "greedy", fake("greedy", [5]))
  monkeypatch.setattr(decoding, "sample", fake("sample", [[5], [6]]))
  monkeypatch.setattr(generate.beams, "search", fake("beams", answer))
  model = restored_once(monkeypatch, run)
  monkeypatch.setattr(sys, "stdin", io.StringIO("one\r\ntwo \n"))
  tokenizer, eos_id = model.base.tokenizer, model.base.eos_id
  shown = [texts.decode(tokenizer, [i], eos_id=eos_id) for i in (5, 6)]
  where = f"--workdir={run}"

  def options(**more):
    return dict(max_new_tokens=4, batch_size=8, eos_id=eos_id) | more

  ids = [[0, *tokenizer.encode(text).ids] for text in ("one", "two ")]
  assert command(where) == ['> "one"', shown[0], '> "two "', shown[0]]
  assert seen.pop() == ("greedy", ids, options())
  assert command(where, "one", "--temperature=0", "--max_new_tokens=9") == [
    shown[0]
  ]
  assert seen.pop() == ("greedy", ids[:1], options(max_new_tokens=9))
  words = [where, "one", "--samples=2", "--json"]
  limits = ["--temperature=0.5", "--top_k=3", "--top_p=0.5"]
  found = [json.loads(line) for line in command(*words, *limits)]
  drawn = dict(temperature=0.5, top_k=3, top_p=0.5, samples=2, seed=0)
  assert seen.pop() == ("sample", ids[:1], options(**drawn))
  assert found == [
    dict(prompt="one", sample=i, text=text, tokens=[5 + i])
    for i, text in enumerate(shown)
  ]
  searched = dict(beams=3, length_penalty=0.0, early_stopping=True)
  found = command(*words, "--beams=3", "--length_penalty=0", "--early_stopping")
  assert seen.pop() == ("beams", ids[:1], options(**searched))
  assert [json.loads(line)["score"] for line in found] == [-0.5, -1.5]
  assert len(command(where, "one", "--beams=2")) == 1
  default = dict(beams=2, length_penalty=1.0, early_stopping=False)
  assert seen.pop()[2] == options(**default)


@pytest.mark.parametrize(
  "words, message",
  [
    ("", "There is no prompt"),
    ("a|", "prompt 2 is empty"),
    ("a --file=x", "and not both"),
    ("--file=absent", "absent"),
    ("a --beams=2 --temperature=1", "--beams searches and --temperature draws"),
    ("a --top_p=0.5", "--top_p does nothing without --temperature"),
    ("a --seed=1 --beams=2", "--seed does nothing without --temperature"),
    ("a --temperature=0 --top_k=5", "--top_k does nothing without"),
    ("a --length_penalty=2", "--length_penalty does nothing without --beams"),
    (
      "a --samples=2",
      "--samples does nothing without --temperature above 0 or",
    ),
    ("a --samples=3 --beams=2", "only as many answers as beams"),
    ("a --temperature=1 --top_p=1.5", "top_p above 0 and at most 1, got 1.5"),
    ("a --temperature=1 --top_k=0", "top_k of at least 1"),
    ("a --temperature=-1", "a temperature above 0, got -1"),
    ("a --max_new_tokens=0", "--max_new_tokens must be at least 1"),
    ("a --temperature=1 --seed=4294967296", "--seed must be below 2"),
    ("a --fsdp=16", "config.mesh: "),
    ("a --workdir=nowhere", "There is no run in nowhere"),
    ("a", "has no checkpoint yet"),
  ],
)
def test_mistakes_load_nothing(tmp_path, command, monkeypatch, words, message):
  def load(_):
    raise AssertionError("loaded")

  config = tiny_run.config("lora", {})
  (tmp_path / "config.json").write_text(configuration.as_json(config))
  monkeypatch.setattr(adapted, "load", load)
  monkeypatch.setattr(sys, "stdin", io.StringIO())
  monkeypatch.chdir(tmp_path)
  words = [w for part in words.split() for w in part.split("|")]
  with pytest.raises(SystemExit, match=f"^error: .*{message}"):
    command("--workdir=.", *words)


def test_a_run_of_another_version(tmp_path, command):
  def fails(config, message):
    (tmp_path / "config.json").write_text(configuration.as_json(config))
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
      command(f"--workdir={tmp_path}", "a")

  config = tiny_run.config("lora_smoe", {})
  fails(config, "has no allocation.json")
  config.mesh.pods = 2
  fails(config, "config.mesh has no field pods")
  del config.base
  fails(config, r"lacks the groups \['base'\]")


def test_files_of_prompts(tmp_path):
  def read(text, name="prompts.txt", **options):
    file = tmp_path / name
    file.write_text(text)
    return generate.read([], str(file), **{"escapes": False} | options)

  assert read("a\nb \\n\n") == ["a", "b \\n"]
  # Only what is a line's end: a prompt may have other breaks.
  assert read("a\u2028b\r\nc") == ["a\u2028b", "c"]
  assert read(r"a\nb\t\\n\x", escapes=True) == ["a\nb\t\\n\\x"]
  with pytest.raises(ValueError, match=r"prompts\.txt, line 2 is empty"):
    read("a\n\nb\n")
  line = json.dumps({"prompt": "a\\n\n", "target": "b"})
  assert read(line, "a.jsonl", escapes=True) == ["a\\n\n"]
  for wrong in ("a", "[1]", '{"text": "a"}', '{"prompt": 1}'):
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: expected"):
      read(f"{line}\n{wrong}\n", "a.jsonl")


def test_prompts_that_do_not_fit(run, command, monkeypatch):
  restored_once(monkeypatch, run)
  with pytest.raises(SystemExit, match=r"error: Expected prompts of 1 to 252"):
    command(f"--workdir={run}", "a" * 999)
  with pytest.raises(SystemExit, match="error: Expected no padding inside"):
    command(f"--workdir={run}", "<|endoftext|>")
