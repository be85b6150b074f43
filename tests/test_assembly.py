"""An encoder-decoder through train.py; what cannot be put together."""

import json

import numpy as np
import pytest

from configs import quickstart
from sira_jax import assembly, first_step
from tests import tiny_run, tiny_t5

T5 = {
  "base.sha256": None,
  "batches.length": 128,
  "batches.targets_length": 96,
  "training.steps": 4,
  "training.checkpoint_every": 2,
}


@pytest.fixture
def folder(tmp_path):
  """A tiny ByT5."""
  return tiny_t5.byte_folder(tmp_path)


@pytest.mark.parametrize("method", ["sira", "sora"])
def test_an_encoder_decoder_trains(tmp_path, folder, monkeypatch, method):
  """On both stacks, its cross-attention included; scored before and after."""
  settings = T5 | {"base.uri": str(folder)}
  path = r".*(attention\.[qk]|cross_attention\.v|mlp\.wo)"
  config = tiny_run.config(method, settings, path=path)
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line)["loss"] for line in lines]
  assert len(losses) == 4 and losses[-1] < losses[0]
  results = json.loads((workdir / "results.json").read_text())
  assert {(one["task"], one["language"]) for one in results} == {
    ("intents", "en"),
    ("dates", "en"),
    ("intents", "it"),
    ("dates", "it"),
  }
  if method == "sira":
    sites = json.loads((workdir / "routing.json").read_text())["sites"]
    assert {name.split(".")[0] for name in sites} == {"encoder", "decoder"}
    loads = [np.array(site["load"]) for site in sites.values()]
    assert all(np.isfinite(load).all() for load in loads)


@pytest.mark.parametrize("pack", [False, True])
def test_a_plan_of_an_encoder_decoder(tmp_path, folder, pack):
  """Of its config.json alone."""
  (folder / "model.safetensors").unlink()
  settings = T5 | {"base.uri": str(folder), "batches.pack": pack}
  config = tiny_run.config("sira", settings, path=r".*attention\.q")
  config.base.remat = True
  plan = first_step.plan(config, *tiny_run.layout(config))
  shapes = 4 * config.batches.batch_size * (128 + 3 * 96)
  assert plan.batch == shapes + (
    8 * config.batches.batch_size * (128 + 96) if pack else 0
  )
  assert plan.trained > 0 and plan.flops > 0


def test_a_plan_of_full_fine_tuning(tmp_path):
  """All of the base is trained, and nothing is left frozen."""
  config = tiny_run.config("full", tiny_run.base(tmp_path))
  plan = first_step.plan(config, *tiny_run.layout(config))
  assert plan.frozen == 0 and plan.trained == 149_664


def test_the_length_of_targets(tmp_path, folder):
  config = quickstart.get_config()
  config.base.uri, config.base.sha256 = str(folder), None
  with pytest.raises(ValueError, match=r"an encoder-decoder, but .* is None"):
    assembly.build(config, tmp_path)
  decoder = quickstart.get_config()
  decoder.batches.targets_length = 8
  with pytest.raises(ValueError, match=r"a decoder, but .* is 8"):
    assembly.build(decoder, tmp_path)
