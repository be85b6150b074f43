"""Runs of train.py and eval.py that differ from the quickstart's in kind."""

import importlib
import json
import threading
import types

from absl import flags
import jax
import numpy as np
import pytest

from configs import quickstart
from sira_jax import assembly, process, stages, validation
from sira_jax.adapters import methods, surgery
from tests import tiny_run
import train

if "workdir" in flags.FLAGS:
  del flags.FLAGS.workdir  # each script defines its own
evaluation = importlib.import_module("eval")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


def printed_by_eval(workdir, monkeypatch, capsys):
  capsys.readouterr()
  values = {"_WORKDIR": str(workdir), "_FSDP": None, "_TENSOR": None}
  values["_CACHE"] = None
  for flag, value in values.items():
    given = types.SimpleNamespace(value=value)
    monkeypatch.setattr(evaluation, flag, given)
  evaluation.main(["eval.py"])
  return capsys.readouterr().out


@pytest.mark.parametrize("method", [*methods.METHODS, "frozen"])
def test_the_quickstart_has_every_method(method):
  config = quickstart.get_config(method)
  validation.check(config)
  assert {rule.method for rule in config.rules.values()} <= {method}


def test_the_quickstart_compares_equals():
  """Parameters within 2 % of SiRA's, over the layers of one block."""
  sizes = [(576, 576), (576, 192), (576, 192), (576, 576)]
  sizes += [(576, 1536), (576, 1536), (1536, 576)]
  for method, settings in quickstart.SETTINGS.items():
    if method in ("full", "lora_smoe"):  # the latter by its exact budget
      continue
    factory = methods.create(method, **settings)
    total = 20 * sum(factory.parameters(d, f) for d, f in sizes)
    assert abs(total / quickstart.PARAMETERS - 1) < 0.02, method


PATH = {
  "rules.mlp.rank": 6,
  # Gates of many sizes and small steps, so that they die one after another.
  "rules.mlp.gate": 0.03,
  "rules.mlp.gate_std": 0.02,
  "optimizer.learning_rate": 0.01,
  "sparsity.learning_rate": 1.0,
  "sparsity.penalties": (0.0, 2.0, 3.0),
  "sparsity.stage_steps": 3,
  "training.steps": 4,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory, base):
  """A run of three stages of SoRA that was stopped twice on the way."""
  workdir = tmp_path_factory.mktemp("sora") / "run"
  config = tiny_run.config("sora", base | PATH)
  original, calls = train.fit, []

  def stopping(run, config, workdir, stage, state, signals):
    calls.append((stage.number, int(state.step)))
    if len(calls) in (2, 5):
      signals.append("stop")  # after one step
    return original(run, config, workdir, stage, state, signals)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "fit", stopping)
    for _ in range(2):
      with pytest.raises(SystemExit) as stopped:
        tiny_run.main(patch, config, workdir)
      assert stopped.value.code == process.STOPPED
    tiny_run.main(patch, config, workdir)
  # (stage, the step that it goes on at): what is done is not done again.
  one, two, three = [(0, 0), (1, 0)], [(0, 4), (1, 1), (2, 0)], [(0, 4), (1, 3)]
  assert calls == [*one, *two, *three, (2, 1)]
  return workdir


def test_a_sparsifying_run(path, base, tmp_path, monkeypatch):
  """Stopped and continued, it equals one that never stopped."""
  whole = tmp_path / "whole"
  tiny_run.main(monkeypatch, tiny_run.config("sora", base | PATH), whole)
  study = json.loads((path / "sparsity.json").read_text())
  for one, other in zip(
    study, json.loads((whole / "sparsity.json").read_text()), strict=True
  ):
    one.pop("seconds_per_step"), other.pop("seconds_per_step")
    assert one == other
  assert [one["penalty"] for one in study] == [0.0, 2.0, 3.0]
  ranks = [one["ranks"] for one in study]
  assert ranks[0] == 12 and ranks[0] > ranks[1] >= ranks[2] > 0
  parameters = [one["parameters"] for one in study]
  # A rank of an up_proj of 32 -> 64, and its gate.
  assert parameters == [n * (32 + 64 + 1) for n in ranks]
  assert (path / "sparsity.png").stat().st_size > 1000
  table = (path / "sparsity.md").read_text()
  assert f"| 2 | 3 | {ranks[2]} |" in table and "memorisation: " in table
  lines = (path / "stage_1" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
  # Each stage warms its learning rate up anew.
  assert json.loads(lines[0])["learning_rate"] == 0.0


def test_eval_of_a_sparsifying_run(path, monkeypatch, capsys):
  printed = printed_by_eval(path, monkeypatch, capsys)
  assert "stage 2, step 3" in printed
  assert printed.endswith((path / "results.md").read_text())


def test_a_restored_stage_has_its_ranks(path, base):
  config = tiny_run.config("sora", base | PATH)
  run = assembly.build(config, path)
  stage, step = stages.restore(
    run.base.model, path, run.stages, base=run.base.fingerprint
  )
  assert (stage.number, step) == (2, 3)
  study = json.loads((path / "sparsity.json").read_text())
  left = [site.factory.rank for site in surgery.sites(run.base.model)]
  assert sum(left) == study[1]["ranks"]  # stage 2 began with those


def test_an_allocated_run(base, tmp_path, monkeypatch, capsys):
  site = "layers.{}.mlp.{}_proj"
  path = r"layers\.\d+\.mlp\.(up|down)_proj"
  changes = {
    "allocation.samples": 2,
    "allocation.budget": 7,
    "allocation.unit": "experts",
    "allocation.maximum": 4,
    "rules.mlp.rank": 2,
  }
  config = tiny_run.config("lora_smoe", base | changes, path=path)
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir)
  counts = json.loads((workdir / "allocation.json").read_text())
  assert set(counts) == {
    site.format(n, m) for n in (0, 1) for m in ("up", "down")
  }
  assert sum(counts.values()) == 7 and max(counts.values()) <= 4
  assert (workdir / "allocation.png").stat().st_size > 1000
  printed = capsys.readouterr().out
  assert (
    "Measuring the sensitivity" in printed and "Experts by layer" in printed
  )
  assert printed_by_eval(workdir, monkeypatch, capsys).endswith(
    (workdir / "results.md").read_text()
  )
  # The run goes on with its own allocation, whatever a new one would be.
  changed = dict.fromkeys(counts, 1)
  (workdir / "allocation.json").write_text(json.dumps(changed))
  run = assembly.build(config, workdir)
  assert [site.factory.experts for site in run.sites] == [1] * 4


def test_the_frozen_base(base, tmp_path, monkeypatch, capsys):
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, tiny_run.config("frozen", base), workdir)
  for result in json.loads((workdir / "results.json").read_text()):
    assert result["before"] == result["after"]
  assert not (workdir / "checkpoints").exists()
  assert printed_by_eval(workdir, monkeypatch, capsys).endswith(
    (workdir / "results.md").read_text()
  )


def test_scores_before_training_of_another_run(base, tmp_path, monkeypatch):
  """They are taken over as they are, and only if they would be the same."""
  other, workdir = tmp_path / "other", tmp_path / "run"
  config = tiny_run.config("frozen", base)
  tiny_run.main(monkeypatch, config, other)
  file = other / "before.json"
  file.write_text(file.read_text().replace("0.0", "12.5"))
  changed = tiny_run.config("lora", base | {"decoding.max_new_tokens": 5})
  with pytest.raises(SystemExit, match=r"decoding\.max_new_tokens: 4 -> 5"):
    tiny_run.main(monkeypatch, changed, workdir, before=str(other))
  assert not workdir.exists()
  tiny_run.main(monkeypatch, config, workdir, before=str(other))
  assert (workdir / "before.json").read_text() == file.read_text()
  assert "12.5" in (workdir / "results.md").read_text()
  file.write_text(file.read_text()[:-2])
  with pytest.raises(SystemExit, match=r"before\.json cannot be read"):
    tiny_run.main(monkeypatch, config, tmp_path / "third", before=str(other))
  file.unlink()
  with pytest.raises(SystemExit, match="it has none"):
    tiny_run.main(monkeypatch, config, tmp_path / "third", before=str(other))


def test_full_fine_tuning(base, tmp_path, monkeypatch, capsys):
  workdir = tmp_path / "run"
  config = tiny_run.config("full", base)
  tiny_run.main(monkeypatch, config, workdir)
  run = assembly.build(config, workdir)
  trained = sum(site.parameters for site in run.sites)
  printed = capsys.readouterr().out
  assert f"{trained:,} parameters, trained: 100.0% of the base" in printed
  before = np.asarray(run.base.model.norm.scale[...])
  stages.restore(run.base.model, workdir, run.stages, base=run.base.fingerprint)
  assert (np.asarray(run.base.model.norm.scale[...]) != before).any()
  assert printed_by_eval(workdir, monkeypatch, capsys).endswith(
    (workdir / "results.md").read_text()
  )


@pytest.mark.parametrize(
  "method, changes, message",
  [
    ("sora", {"sparsity.penalties": (0.2, 0.1)}, "must rise from stage to"),
    ("sora", {"sparsity.penalties": ()}, "penalties must name one"),
    ("sora", {"sparsity.form": "hard"}, "Unknown form 'hard'"),
    ("sora", {"sparsity.stage_steps": 1}, "warmup_steps < steps"),
    ("lora_smoe", {"allocation.budget": None}, "needs a budget"),
    ("lora_smoe", {"allocation.percentile": 40.0}, "and not both"),
    ("lora_smoe", {"allocation.unit": "bytes"}, "there are experts, param"),
    ("lora_smoe", {"allocation.samples": 0}, "samples must be at least 1"),
    ("lora_smoe", {"allocation.budget": 10**9}, "cannot be met exactly"),
    ("adamix", {"rules.mlp.consistency": -1.0}, "must not be negative"),
    ("frozen", {"training.steps": 3}, "nothing to train"),
  ],
)
def test_refused(base, tmp_path, monkeypatch, method, changes, message):
  changes = {"sparsity.penalties": (0.1, 0.2)} | changes
  if method != "sora":
    changes.pop("sparsity.penalties")
  config = tiny_run.config(method, base)
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  with pytest.raises(SystemExit, match=f"error: .*{message}"):
    tiny_run.main(monkeypatch, config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_compiles_its_step_beside_and_once(
  devices, base, tmp_path, monkeypatch
):
  """What one step passes to the next is where the first one's was."""
  changes = {"training.steps": 3, "mesh.data": devices, **base}
  config = tiny_run.config("sira", changes)
  found = []

  def listen(event, seconds, **about):
    if "backend_compile" in event and about.get("fun_name") == "jit(step)":
      found.append(threading.current_thread())

  jax.monitoring.register_event_duration_secs_listener(listen)
  tiny_run.main(monkeypatch, config, tmp_path / "run", devices=devices)
  assert len(found) == 1 and found != [threading.main_thread()]


def test_a_run_of_buckets(base, tmp_path, monkeypatch, capsys):
  """Batches of several lengths, said and measured."""
  changes = {"batches.buckets": (48, 64), "batches.pack": False, **base}
  changes |= {"training.steps": 6, "training.checkpoint_every": 6}
  config = tiny_run.config("lora", changes)
  tiny_run.main(monkeypatch, config, tmp_path / "run")
  said = capsys.readouterr().out
  assert "6 steps of 2 rows of 48, 64 or 96 tokens" in said
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  positions = {line["positions"] for line in lines}
  assert positions <= {96, 128, 192} and len(positions) > 1
  real = sum(line["tokens"] for line in lines)
  share = 1 - real / sum(line["positions"] for line in lines)
  assert f"{share:.1%} were padding" in said
