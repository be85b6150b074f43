"""Runs of a prefix LM."""

import json

import pytest

from sira_jax import export, first_step
from sira_jax.formats import huggingface
from tests import tiny_run
from tests.tiny_t5 import GOLDEN


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("base")
  return tiny_run.config("lora", tiny_run.base(folder) | {"base.prefix": True})


def test_a_run(config, tmp_path, monkeypatch):
  """Both know it: the model would refuse batches that do not."""
  tiny_run.main(monkeypatch, config, tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(lines[-1])["step"] == 2


def test_a_plan(config):
  plan = first_step.plan(config, *tiny_run.layout(config))
  # Packed: inputs, targets, weights, segments, positions, and prompts.
  assert plan.batch == 6 * 4 * config.batches.batch_size * config.batches.length


@pytest.mark.parametrize("kind", sorted(set(export.FORMATS) - {"native"}))
def test_formats_of_causal_decoders(config, tmp_path, kind):
  with pytest.raises(
    ValueError, match=f"prefix LM .*--format={kind} is causal"
  ):
    export.export(config, tmp_path / "run", tmp_path / "out", kind=kind)


def test_an_encoder_decoder_is_none():
  with pytest.raises(ValueError, match=r"config\.base\.prefix is for decoders"):
    huggingface.model_shapes(GOLDEN / "tiny_t5_gated", prefix=True)
