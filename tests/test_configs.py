"""The papers' settings: whole, and two small steps of each on a tiny base."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from configs import (
  llama3_8b,
  lora_smoe_commonsense,
  sira_multitask,
  sora_glue,
  t5_xxl_multitask,
)
from sira_jax import adapted, assembly, validation
from sira_jax.adapters import allocation
from sira_jax.data.suites import commonsense
from tests import tiny_run, tiny_t5

CONFIGS = {
  "sira_multitask": sira_multitask,
  "sora_glue": sora_glue,
  "lora_smoe_commonsense": lora_smoe_commonsense,
}
LARGE = {"llama3_8b": llama3_8b, "t5_xxl_multitask": t5_xxl_multitask}
ROOT = pathlib.Path(__file__).parents[1]
METHODS_PAGE = ROOT / "docs" / "methods.md"


@pytest.mark.parametrize("name", CONFIGS | LARGE)
def test_whole_settings_are_accepted(name):
  config = (CONFIGS | LARGE)[name].get_config()
  validation.check(config)
  assert config.training.steps > 300


@pytest.mark.parametrize("name", CONFIGS | LARGE)
def test_an_unknown_argument_is_refused(name):
  with pytest.raises(ValueError, match="Unknown argument 'small'; there is"):
    (CONFIGS | LARGE)[name].get_config("small")


def test_sora_follows_the_released_script():
  config = sora_glue.get_config()
  first, *others = adapted.stages(config)
  assert first.gates.penalty == 0.0 and first.steps == 3900
  assert [stage.steps for stage in others] == [1170] * 6
  assert others[0].gates.penalty == pytest.approx(1.17e-4, rel=1e-2)
  assert others[-1].gates.penalty == 7e-4
  assert {stage.gates.form for stage in others} == {"released"}


def test_a_vote_by_lora_smoes_settings_makes_the_shipped_total():
  # 36 layers of q, k, v and o with 8 tasks: 688 experts, 8 x 86 of 144.
  rng = np.random.default_rng(0)
  sites = [f"layers.{i}.self_attn.{m}_proj" for i in range(36) for m in "qkvo"]
  scores = {t: dict(zip(sites, rng.random(144), strict=True)) for t in range(8)}
  settings = lora_smoe_commonsense.get_config().allocation
  counts = allocation.vote(
    scores, percentile=settings.percentile, group=settings.group
  )
  assert sum(counts.values()) == 688


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  """Runs a config's tiny form, once; returns its workdir."""
  folder, done = tmp_path_factory.mktemp("configs"), set()
  base = tiny_run.base(folder)

  def run(name):
    workdir = folder / "runs" / f"{name}-tiny"
    if name not in done:
      config = CONFIGS[name].get_config("tiny")
      config.update_from_flattened_dict(base)
      with pytest.MonkeyPatch.context() as patch:
        tiny_run.main(patch, config, workdir)
      done.add(name)
    return workdir

  return run


@pytest.mark.parametrize("name", CONFIGS)
def test_two_small_steps(ran, name):
  workdir = ran(name)
  results = json.loads((workdir / "results.json").read_text())
  assert {row["task"] for row in results} == {"intents", "dates"}
  files = sorted(workdir.rglob("metrics.jsonl"))
  steps = [json.loads(line) for file in files for line in file.open()]
  assert len(steps) == 2
  assert all(np.isfinite(step["loss"]) for step in steps)
  assert len(files) == (2 if name == "sora_glue" else 1)
  assert (workdir / "sparsity.md").exists() == (name == "sora_glue")
  found = (workdir / "allocation.json").exists()
  assert found == (name == "lora_smoe_commonsense")


@pytest.mark.parametrize("name", LARGE)
def test_two_small_steps_on_eight_devices(tmp_path, monkeypatch, name):
  """Weights, adapters and rows divided, as in the whole form."""
  config = LARGE[name].get_config("tiny")
  if name == "llama3_8b":
    config.update_from_flattened_dict(tiny_run.base(tmp_path))
  else:
    config.base.uri = str(tiny_t5.byte_folder(tmp_path))
    config.batches.length = 128  # of bytes
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir, devices=8)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  assert [np.isfinite(json.loads(line)["loss"]) for line in lines] == [True] * 2
  assert (workdir / "results.md").exists()
  (kept,) = (workdir / "checkpoints").glob("2/adapter/_sharding")
  assert '"fsdp"' in json.dumps(json.loads(kept.read_text())).replace("\\", "")


def test_lora_smoe_votes_on_the_tiny_base(ran):
  # 8 layers and 2 tasks: each task votes for the 5 above its 40th percentile.
  counts = allocation.load(ran("lora_smoe_commonsense") / "allocation.json")
  assert sum(counts.values()) == 10 and max(counts.values()) <= 2


def test_the_page_on_methods_prunes_soras_run(ran, monkeypatch, capsys):
  workdir = ran("sora_glue")
  monkeypatch.chdir(workdir.parents[1])
  blocks = re.findall(r"```python\n(.*?)```", METHODS_PAGE.read_text(), re.S)
  (code,) = [block for block in blocks if "runs/sora_glue-tiny" in block]
  exec(compile(code, METHODS_PAGE.name, "exec"), {})
  ranks = capsys.readouterr().out.splitlines()[-1]
  assert re.fullmatch(r"\d+ of 112 ranks are left", ranks), ranks


def test_the_suites_of_the_papers(tmp_path, monkeypatch):
  """GLUE's RTE from released files to results, by SoRA's settings."""
  base = tiny_run.base(tmp_path)
  rows = [
    {"sentence1": f"It is {i}.", "sentence2": "So.", "label": i % 2, "idx": i}
    for i in range(8)
  ]
  for split, part in (("train", rows[:6]), ("validation", rows[6:])):
    file = tmp_path / "glue" / "rte" / f"{split}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in part))
  config = sora_glue.get_config("rte")
  small = {k: v for k, v in sora_glue.TINY.items() if "mixture" not in k}
  config.update_from_flattened_dict(base | small)
  config.suites.glue.folder = str(tmp_path / "glue")
  config.evaluation.examples = 2
  tiny_run.main(monkeypatch, config, tmp_path / "run")
  (result,) = json.loads((tmp_path / "run" / "results.json").read_text())
  assert result["task"] == "glue_rte" and result["count"] == 2
  assert set(result["after"]) == {"accuracy"}
  lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
  assert {json.loads(line)["prompt"] for line in lines} == {
    f"rte sentence1: It is {i}. sentence2: So.\n" for i in (6, 7)
  }


def test_the_suite_is_whole():
  """It is written out, so that no config imports TensorFlow."""
  tasks = lora_smoe_commonsense.get_config("all").mixture.tasks
  assert tasks == tuple(commonsense.TASKS)
  program = "import sys, configs.sora_glue, configs.lora_smoe_commonsense\n"
  program += "print('tensorflow' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
  ("name", "argument"), [("sora_glue", "rte"), ("lora_smoe_commonsense", "all")]
)
def test_suites_that_are_not_there(tmp_path, monkeypatch, name, argument):
  """Nothing is loaded, and the run's reader learns how to get them."""
  config = CONFIGS[name].get_config(argument)
  validation.check(config)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(assembly.bases, "load", None)  # is not called
  with pytest.raises(SystemExit, match=r"There is no file of .* hf download"):
    tiny_run.main(monkeypatch, config, tmp_path / "run")
