# SPDX-License-Identifier: Apache-2.0
"""LoRA folders as PEFT has them, written and read."""

import json
import re

import numpy as np
import pytest
from safetensors import numpy as safetensors

from sira_jax.formats import peft

SHAPES = {"model.layers.0.mlp.up_proj": 3, "model.layers.10.mlp.up_proj": 2}
BASE = {"base": "owner/name", "encoder_decoder": False}


def layers(seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: (
      rng.normal(size=(5, rank)).astype(np.float32),
      rng.normal(size=(rank, 7)).astype(np.float32),
    )
    for name, rank in SHAPES.items()
  }


def as_peft(folder, name):
  """delta W and rank of a module, as PEFT's code has it: B A alpha / r."""
  config = json.loads((folder / "adapter_config.json").read_text())
  tensors = safetensors.load_file(folder / "adapter_model.safetensors")
  key = f"base_model.model.{name}"

  def own(patterns, default):
    for pattern, value in patterns.items():
      if re.match(rf"(.*\.)?({pattern})$", name):
        return value
    return default

  rank = own(config["rank_pattern"], config["r"])
  alpha = own(config["alpha_pattern"], config["lora_alpha"])
  a, b = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
  assert a.shape[0] == b.shape[1] == rank
  # Readers that know no alpha of a module's own must not differ.
  assert alpha == rank and config["lora_alpha"] == config["r"]
  assert name in config["target_modules"]
  return b @ a * (alpha / rank), rank


@pytest.mark.parametrize("uniform", [False, True])
def test_what_is_written_means_the_same(tmp_path, uniform):
  given = layers()
  assert peft.write(tmp_path, given, uniform=uniform, **BASE) == 3
  for name, (a, b) in given.items():
    delta, rank = as_peft(tmp_path, name)
    assert rank == (3 if uniform else SHAPES[name])
    np.testing.assert_allclose(delta, (a @ b).T, atol=1e-6)
  read = peft.read(tmp_path)
  for name, pair in given.items():
    rank = SHAPES[name]
    np.testing.assert_array_equal(read[name][0][:, :rank], pair[0])
    np.testing.assert_array_equal(read[name][1][:rank], pair[1])


def test_one_rank_needs_no_patterns(tmp_path):
  peft.write(tmp_path, layers(), uniform=True, **BASE)
  config = json.loads((tmp_path / peft.CONFIG).read_text())
  assert config["rank_pattern"] == config["alpha_pattern"] == {}
  assert config["r"] == config["lora_alpha"] == 3
  assert config["task_type"] == "CAUSAL_LM"
  assert config["base_model_name_or_path"] == "owner/name"
  # What some readers refuse, and others ignore.
  for name in ("use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save"):
    assert not config[name]
  assert config["bias"] == "none"


def test_nothing_to_write_is_refused(tmp_path):
  with pytest.raises(ValueError, match="rank 1 or more, got 0"):
    peft.write(tmp_path, {}, **BASE)
  empty = {"x": (np.zeros((5, 0)), np.zeros((0, 7)))}
  with pytest.raises(ValueError, match=r"rank 0: \['x'\]"):
    peft.write(tmp_path, empty, **BASE)


def changed(folder, **entries):
  """A folder with other entries of its config."""
  peft.write(folder, layers(), **BASE)
  file = folder / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | entries))
  return folder


def test_scales_are_read(tmp_path):
  """alpha / r, alpha / sqrt(r) as rsLoRA, and a pattern's that ends a name."""
  (_, plain), (_, other) = layers().values()
  alphas = {"r": 3, "lora_alpha": 12, "alpha_pattern": {r"0\.mlp\.up_proj": 6}}
  # The pattern ends layers.10's name too, but not at a dot.
  ranks = {"rank_pattern": {"layers.10.mlp.up_proj": 2}}
  read = peft.read(changed(tmp_path / "plain", **alphas, **ranks))
  first, second = (read[name][1] for name in SHAPES)
  np.testing.assert_allclose(first, plain * 2)
  np.testing.assert_allclose(second, other * 6)
  stable = changed(tmp_path / "stable", use_rslora=True, **alphas, **ranks)
  first = peft.read(stable)["model.layers.0.mlp.up_proj"][1]
  np.testing.assert_allclose(first, plain * 6 / 3**0.5, rtol=1e-6)


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias = 'all'"),
    ({"modules_to_save": ["classifier"]}, "modules_to_save"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    ({"something_new": 3}, "something_new"),
    ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
    ({"r": 0}, "expected r to be a number above 0, got 0"),
    ({"r": "3"}, "expected r to be a number"),
    ({"lora_alpha": None}, "expected lora_alpha"),
    ({"rank_pattern": {"(": 3}}, "expected rank_pattern to give regexes"),
    ({"alpha_pattern": [1]}, "expected alpha_pattern to give regexes"),
    ({"rank_pattern": {}}, r"lora_A \[3 d\]"),
  ],
)
def test_what_pairs_do_not_express_is_refused(tmp_path, entries, message):
  with pytest.raises(ValueError, match=message):
    peft.read(changed(tmp_path, **entries))


def test_tensors_that_are_no_pairs_are_refused(tmp_path):
  peft.write(tmp_path, layers(), **BASE)
  file = tmp_path / peft.WEIGHTS
  tensors = safetensors.load_file(file)
  key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
  magnitude = {"base_model.model.x.lora_magnitude_vector": np.ones(3)}
  prefix = {key.removeprefix("base_model."): tensors[key]}
  for more, less, message in (
    (magnitude, None, "lora_magnitude_vector"),
    (prefix, key, "got 'model.model.layers.0"),
    ({}, key, r"lora_B \[f 3\], got \(3, 5\) and None"),
  ):
    kept = {k: v for k, v in tensors.items() if k != less}
    safetensors.save_file(kept | more, file)
    with pytest.raises(ValueError, match=message):
      peft.read(tmp_path)
  safetensors.save_file({}, file)
  with pytest.raises(ValueError, match="holds no layer"):
    peft.read(tmp_path)


def test_entries_of_peft_that_say_nothing_are_read(tmp_path):
  """As PEFT 0.21 writes them."""
  idle = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "layer_replication": None,
    "loftq_config": {},
    "lora_bias": False,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_qalora": False,
  }
  assert peft.read(changed(tmp_path, **idle)).keys() == SHAPES.keys()
