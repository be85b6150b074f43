"""Mistral, Qwen and Gemma give Hugging Face's logits, however they are run."""

import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import decoding
from sira_jax.adapters import methods, surgery
from sira_jax.formats import huggingface, huggingface_writer
from sira_jax.models import attention, layers
from tests.tiny_t5 import GOLDEN, error

NAMES = sorted(path.name for path in (GOLDEN / "decoders").iterdir())
WINDOWS = {
  "mistral": (True,) * 3,
  "qwen2_windowed": (False, True, True),
  "gemma2": (True, False, True),
  "gemma3": (True, True, False),
}
FAMILIES = pytest.mark.parametrize("name", NAMES)


@functools.cache
def golden(name, **options):
  arrays = np.load(GOLDEN / "decoders" / name / "expected.npz")
  model = huggingface.load_model(GOLDEN / "decoders" / name, **options)
  return model, {k: v for k, v in arrays.items()}


@nnx.jit
def run(model, features):
  return model(**features)


@FAMILIES
def test_logits_equal_hugging_face(name):
  model, expected = golden(name)
  tokens = expected["decoder_input_tokens"].astype(np.int32)
  got = run(model, {"decoder_input_tokens": tokens})
  assert error(got, expected["logits"]) < 1e-5
  assert model.config.windowed == WINDOWS.get(name, ())


@FAMILIES
def test_decoding_equals_hugging_face(name):
  """With a cache, of prompts of their own lengths in one batch."""
  model, expected = golden(name)
  tokens = expected["decoder_input_tokens"][:, :9].tolist()
  prompts = [tokens[0], tokens[1], tokens[0][:4]]
  got = decoding.greedy(model, prompts, max_new_tokens=8, eos_id=10_000)
  assert got[:2] == expected["greedy"].tolist()
  alone = decoding.greedy(model, prompts[2:], max_new_tokens=8, eos_id=10_000)
  assert got[2] == alone[0]


@FAMILIES
def test_packed_equals_unpacked(name):
  """With positions that go on along the row, and that begin anew."""
  model, expected = golden(name)
  tokens = expected["decoder_input_tokens"].astype(np.int32)
  row = np.concatenate([tokens[0, :9], tokens[1, :13], [0, 0]])[None]
  ids = np.repeat([1, 2, 0], [9, 13, 2])[None]
  anew = np.concatenate([np.arange(9), np.arange(13), [0, 0]])[None]
  features = {"decoder_input_tokens": row, "decoder_segment_ids": ids}
  for more in ({}, {"decoder_positions": anew}):
    got = np.asarray(run(model, features | more))[0]
    assert error(got[:9], expected["logits"][0, :9]) < 1e-5
    assert error(got[9:22], expected["logits"][1, :13]) < 1e-5


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_tokens_see_their_window_alone(name):
  """The gradient says whom: the last of 5, or 6, in the first block."""
  model, expected = golden(name)
  tokens = expected["decoder_input_tokens"][:1].astype(np.int32)
  block = model.layers[0]
  layout = model._layout(jnp.arange(24)[None], attention.Sight())
  x = layers.look_up(model.embed_tokens, tokens)
  seen = jax.grad(lambda x: block(x, layout)[0][0, 20].sum())(x)
  window = model.config.window
  at = np.flatnonzero(np.abs(np.asarray(seen[0])).max(axis=-1))
  assert at.tolist() == list(range(21 - window, 21))


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_blocks_in_a_loop(name):
  """Blocks of different kinds are loops of their own."""
  model, expected = golden(name, scan=True)
  tokens = expected["decoder_input_tokens"].astype(np.int32)
  got = run(model, {"decoder_input_tokens": tokens})
  assert error(got, expected["logits"]) < 1e-5


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_adapters_merge_and_are_written(name, tmp_path):
  """Beside biases, and all tensors go back to where they came from."""
  folder = GOLDEN / "decoders" / name
  model = huggingface.load_model(folder)
  tokens = golden(name)[1]["decoder_input_tokens"].astype(np.int32)
  rule = surgery.Rule(r".*_proj", methods.create("lora", rank=2))
  surgery.adapt(model, [rule], rngs=nnx.Rngs(0))
  for _, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      shape = module.adapter.B.shape
      module.adapter.B[...] = jax.random.normal(jax.random.key(0), shape) / 9
  expected = run(model, {"decoder_input_tokens": tokens})
  assert error(golden(name)[1]["logits"], expected) > 0.05
  surgery.merge(model)
  huggingface_writer.write(
    tmp_path, model, source=folder, tokenizer=None, eos_id=1
  )
  again = huggingface.load_model(tmp_path)
  assert error(run(again, {"decoder_input_tokens": tokens}), expected) < 1e-5


def test_scaled_frequencies():
  """Llama 3.1's, worked out: 8192 tokens, low 1, high 4, factor 8."""
  turns = np.array([8.0, 4.0, 2.5, 1.0, 0.5])
  scaling = layers.RopeScaling(8.0, 1.0, 4.0, 8192)
  got = scaling(jnp.asarray(2 * np.pi * turns / 8192))
  # Kept above 4 turns; an eighth below 1; halfway, (1 + 1/8) / 2.
  expected = turns * [1, 1, 0.5 + 0.5 / 8, 1 / 8, 1 / 8]
  np.testing.assert_allclose(
    np.asarray(got) * 8192 / 2 / np.pi, expected, rtol=1e-6
  )
  np.testing.assert_allclose(layers.RopeScaling(4.0)(jnp.ones(2)), 0.25)
  for bad in ((8.0, 4.0, 1.0, 8192), (8.0, 1.0, None, 8192)):
    with pytest.raises(ValueError, match="low"):
      layers.RopeScaling(*bad)


OLD = {
  # What transformers before version 5 wrote.
  "llama3": dict(
    rope_parameters=...,
    rope_theta=500.0,
    rope_scaling={
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 32,
    },
  ),
  "gemma2": dict(
    rope_parameters=...,
    rope_theta=500.0,
    layer_types=...,
    cache_implementation="hybrid",
  ),
  "gemma3": dict(
    rope_parameters=...,
    rope_theta=900.0,
    rope_local_base_freq=50.0,
    rope_scaling={"rope_type": "linear", "factor": 4.0},
    layer_types=...,
    sliding_window_pattern=3,
    _sliding_window_pattern=...,
  ),
  "qwen2_windowed": dict(
    rope_parameters=..., rope_theta=500.0, layer_types=...
  ),
}


@pytest.mark.parametrize("name", OLD)
def test_configs_of_before(name, tmp_path):
  from tests.formats.test_huggingface import changed

  source = f"decoders/{name}"
  model = huggingface.load_model(changed(tmp_path, source, config=OLD[name]))
  assert model.config == golden(name)[0].config


@pytest.mark.parametrize(
  ("name", "config", "message"),
  [
    ("gemma2", dict(layer_types=["full_attention"]), "expected layer_types to"),
    ("gemma3", dict(layer_types=["chunked"] * 3), "expected layer_types to"),
    ("qwen3", dict(attention_bias=True), "attention_bias = True is not"),
    ("gemma2", dict(hidden_activation="gelu"), "hidden_activation = 'gelu'"),
    (
      "gemma3",
      dict(rope_parameters={"full_attention": 3}),
      "full_attention to be a dict",
    ),
    ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_att"),
    (
      "llama3",
      dict(rope_scaling={"rope_type": "linear", "factor": 2.0}),
      "rope_scaling and rope_parameters disagree",
    ),
    ("mistral", dict(num_hidden_layers=2**31 - 1), "at most 10000"),
  ],
)
def test_configs_that_are_refused(name, config, message, tmp_path):
  from tests.formats.test_huggingface import changed

  folder = changed(tmp_path, f"decoders/{name}", config=config)
  with pytest.raises(ValueError, match=re.escape(message)):
    huggingface.load_model(folder)
