# SPDX-License-Identifier: Apache-2.0
"""Folders of Hugging Face checkpoints are read whole, or refused by name."""

import contextlib
import json
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import meshes, sharding
from sira_jax.formats import bases, huggingface, safetensors_file
from sira_jax.models import decoder, t5
from tests import tiny_t5
from tests.tiny_t5 import GOLDEN, error, golden

CROSS = "decoder.block.0.layer.1.EncDecAttention"
NEVER_READ = f"{CROSS}.relative_attention_bias.weight"
FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def write(path, tensors):
  """A safetensors file, written without the library and without our reader."""
  names = {"float32": "F32", "bfloat16": "BF16", "int32": "I32"}
  header, data = {}, b""
  for name, array in tensors.items():
    end = len(data) + array.nbytes
    header[name] = dict(
      dtype=names[str(array.dtype)],
      shape=array.shape,
      data_offsets=[len(data), end],
    )
    data += array.tobytes()
  text = json.dumps(header).encode()
  # Aligned, so that an array could be the file's memory itself.
  text += b" " * (-(8 + len(text)) % 64)
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def changed(folder, name, *, config=(), tensors=None, drop=()):
  """A copy of a golden folder with other entries and tensors."""
  shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
  entries = json.loads((folder / "config.json").read_text()) | dict(config)
  entries = {k: v for k, v in entries.items() if v is not ...}
  (folder / "config.json").write_text(json.dumps(entries))
  arrays = dict(safetensors_file.read_folder(folder)) | (tensors or {})
  arrays = {k: v for k, v in arrays.items() if k not in drop}
  arrays = {k: np.array(v) for k, v in arrays.items()}
  for path in folder.glob("model*"):
    path.unlink()
  write(folder / "model.safetensors", arrays)
  return folder


def logits_of(folder, name):
  _, features, logits = golden(name)
  model = huggingface.load_model(folder)
  return nnx.jit(lambda m, f: m(**f))(model, features), logits


@pytest.mark.parametrize("name", [n for n in FOLDERS if "llama" in n])
def test_llama_equals_hugging_face(name):
  """Of bfloat16 in one file, tied; of float32 in four files, untied."""
  model, features, logits = golden(name)
  assert type(model) is decoder.Decoder
  assert model.config.rope_theta == 500.0
  got = nnx.jit(lambda m, f: m(**f))(model, features)
  assert error(got, logits) < 1e-4


def test_t5s_of_before_transformers_5(tmp_path):
  """As the hub has them: t5-small says nothing of ties, Flan-T5 says false."""
  new = dict(
    scale_decoder_outputs=..., dense_act_fn=..., is_gated_act=..., dtype=...
  )
  old = changed(
    tmp_path / "t5",
    "tiny_t5_relu",
    config=new
    | dict(
      tie_word_embeddings=...,
      num_decoder_layers=...,
      n_positions=512,
      output_past=True,
      task_specific_params={"summarization": {"num_beams": 4}},
    ),
    tensors={NEVER_READ: np.ones((8, 3), np.float32)},
  )
  got, expected = logits_of(old, "tiny_t5_relu")
  assert error(got, expected) < 1e-4
  flan = changed(
    tmp_path / "flan",
    "tiny_t5_gated",
    config=new | dict(tie_word_embeddings=False),
  )
  got, expected = logits_of(flan, "tiny_t5_gated")
  assert error(got, expected) < 1e-4


@pytest.mark.parametrize(
  "there", ["shared.weight", "decoder.embed_tokens.weight"]
)
def test_copies_of_the_table(tmp_path, there):
  """It has three names and perhaps a fourth; any of them will do."""
  table = dict(safetensors_file.read_folder(GOLDEN / "tiny_t5_relu"))
  table = np.array(table["shared.weight"])
  names = {there: table, "lm_head.weight": table}
  folder = changed(
    tmp_path, "tiny_t5_relu", tensors=names, drop={"shared.weight"} - {there}
  )
  got, expected = logits_of(folder, "tiny_t5_relu")
  assert error(got, expected) < 1e-4
  model = huggingface.load_model(folder)
  assert model.config.tied_embeddings and not hasattr(model, "lm_head")


def test_a_copy_that_is_none(tmp_path):
  other = np.zeros((64, 16), np.float32)
  folder = changed(
    tmp_path,
    "tiny_t5_relu",
    tensors={"encoder.embed_tokens.weight": other},
  )
  with pytest.raises(
    ValueError, match=r"embed_tokens\.weight differs from sha"
  ):
    huggingface.load_model(folder)


def test_every_wrong_tensor_is_listed(tmp_path):
  f32 = np.zeros
  folder = changed(
    tmp_path,
    "tiny_llama_sharded",
    tensors={
      "model.layers.0.mlp.up_proj.weight": f32((16, 24), np.float32),
      "model.layers.0.mlp.down_proj.weight": f32((16, 24), np.int32),
      "model.layers.1.self_attn.q_proj.bias": f32((32,), np.float32),
      "model.layers.1.self_attn.rotary_emb.inv_freq": f32((4,), np.float32),
    },
    drop={"model.norm.weight", "lm_head.weight"},
  )
  with pytest.raises(ValueError) as raised:
    huggingface.load_model(folder)
  assert str(raised.value).split("\n  ")[1:] == [
    "left over: model.layers.1.self_attn.q_proj.bias",
    "missing: lm_head.weight",
    "missing: model.norm.weight",
    "shape: model.layers.0.mlp.up_proj.weight is (16, 24), expected (24, 16)",
    "type: model.layers.0.mlp.down_proj.weight is int32, expected a float",
  ]


LLAMA, T5 = "tiny_llama_sharded", "tiny_t5_gated"


@pytest.mark.parametrize(
  "name, config, message",
  [
    (
      LLAMA,
      dict(rope_scaling={"rope_type": "llama3"}),
      "rope_scaling: expected factor to be a positive float, got None",
    ),
    (
      LLAMA,
      dict(rope_parameters={"rope_type": "yarn", "rope_theta": 5.0}),
      "rope_type = 'yarn' is not supported; known are default, linear, llama3",
    ),
    (LLAMA, dict(rope_parameters={"factor": 8.0}), r"entries \['factor'\]"),
    (LLAMA, dict(sliding_window=4096), "sliding_window = 4096 is not supp"),
    (LLAMA, dict(attention_bias=True), "attention_bias = True is not"),
    (LLAMA, dict(hidden_act="gelu"), "hidden_act = 'gelu' is not supported"),
    (LLAMA, dict(quantization_config={"bits": 4}), "quantization_config = "),
    (LLAMA, dict(logit_scale=0.1), r"entries \['logit_scale'\] are not known"),
    (LLAMA, dict(architectures=["GPT2LMHeadModel"]), "got .'GPT2LMHeadModel"),
    (LLAMA, dict(architectures=...), "architectures to be a list, got None"),
    (
      LLAMA,
      dict(hidden_size="16"),
      "hidden_size to be a positive int, got '16",
    ),
    (LLAMA, dict(hidden_size=True), "hidden_size to be a positive int, got Tr"),
    (
      LLAMA,
      dict(num_hidden_layers=9_999),
      "9999 blocks are more than the 21 tens",
    ),
    (LLAMA, dict(num_hidden_layers=2**31 - 1), "at most 10000, got 2147483647"),
    (LLAMA, dict(rms_norm_eps=float("nan")), "positive float, got nan"),
    (LLAMA, dict(rms_norm_eps=10**400), "positive float, got 1000"),
    (LLAMA, dict(vocab_size=2**31), "positive int, got 2147483648"),
    (LLAMA, dict(num_key_value_heads=3), "must be a multiple of kv_heads"),
    (T5, dict(feed_forward_proj="gated-tanh"), "'gated-tanh' is not supported"),
    (T5, dict(decoder_start_token_id=2), "decoder_start_token_id = 2 is not"),
    (T5, dict(relative_attention_num_buckets=6), "buckets=6"),
    (T5, dict(num_layers=3), "missing: encoder.block.2.layer.0.SelfAtt"),
    (T5, dict(d_kv=4), r"is \(24, 16\), expected \(12, 16\)"),
  ],
)
def test_configs_that_are_refused(tmp_path, name, config, message):
  folder = changed(tmp_path, name, config=config)
  with pytest.raises(ValueError, match=message):
    huggingface.load_model(folder)


def test_an_untied_t5_without_its_last_layer(tmp_path):
  config = dict(tie_word_embeddings=False)
  folder = changed(tmp_path, T5, config=config, drop={"lm_head.weight"})
  with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
    huggingface.load_model(folder)


def test_mistral_is_a_llama(tmp_path):
  config = dict(
    architectures=["MistralForCausalLM"],
    model_type="mistral",
    sliding_window=None,
    rope_theta=500.0,
    rope_parameters=...,
  )
  folder = changed(tmp_path, LLAMA, config=config)
  got, expected = logits_of(folder, LLAMA)
  assert error(got, expected) < 1e-4


@pytest.mark.parametrize("name", [LLAMA, "tiny_byt5"])
def test_a_mesh_reads_slices(name, monkeypatch):
  """Of each matrix no more than its part for a device is asked for."""
  whole, asked, filled = golden(name)[0], [], sharding.filled

  def watched(shapes, read):
    def seen(path, index):
      asked.append(read(path, index).size)
      return read(path, index)

    return filled(shapes, seen)

  monkeypatch.setattr(sharding, "filled", watched)
  with sharding.use(meshes.mesh(fsdp=4, tensor=2)):
    model = huggingface.load_model(GOLDEN / name)
    wanted = sharding.of(nnx.state(model), meshes.mesh(fsdp=4, tensor=2))
  parameters = dict(nnx.to_flat_state(nnx.state(model)))
  wanted = dict(nnx.to_flat_state(wanted))
  for path, leaf in nnx.to_flat_state(nnx.state(whole)):
    got = parameters[path].get_value()
    assert got.sharding == wanted[path].get_value()
    np.testing.assert_array_equal(got, leaf[...])
  biggest = max(leaf.size for leaf in jax.tree.leaves(nnx.state(whole)))
  assert max(asked) == biggest // 8


@pytest.mark.parametrize("devices", [0, 1])
def test_weights_are_not_the_files(tmp_path, devices):
  """What is written into it later changes none that were read."""
  folder = changed(tmp_path, LLAMA)
  mesh = meshes.mesh(devices=jax.devices()[: devices or 1])
  with sharding.use(mesh) if devices else contextlib.nullcontext():
    model = huggingface.load_model(folder)
  before = jax.tree.map(np.array, nnx.state(model))
  path = folder / "model.safetensors"
  with path.open("r+b") as file:
    size = 8 + int.from_bytes(file.read(8), "little")
    file.seek(size)
    file.write(bytes(path.stat().st_size - size))
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_bases_are_folders(tmp_path):
  folder = changed(tmp_path, T5)
  with pytest.raises(ValueError, match=r"expected a tokenizer\.json"):
    bases.load(uri=str(folder))
  tiny_t5.word_tokenizer(folder)
  base = bases.load(uri=str(folder), dtype="bfloat16")
  assert type(base.model) is t5.T5
  assert base.model.shared.embedding.dtype == jnp.bfloat16
  assert base.eos_id == 1
  assert base.tokenizer.encode("a a a").ids == [3, 3, 3]
  assert base.fingerprint == huggingface.fingerprint(folder)
  with (folder / "model.safetensors").open("r+b") as file:
    file.seek(-1, 2)
    file.write(b"\x7f")
  assert huggingface.fingerprint(folder) != base.fingerprint


def test_a_tokenizer_of_more_tokens_than_the_model(tmp_path):
  folder = changed(tmp_path, T5)
  tiny_t5.word_tokenizer(folder, more=62)
  with pytest.raises(ValueError, match="has 66 ids, and its model embeds 64"):
    bases.load(uri=str(folder))


@pytest.mark.parametrize(
  "said, token, expected",
  [
    (1, "<end>", 1),
    ([1, 2], "<end>", 2),
    ([1, 2], {"content": "<end>"}, 2),
    (None, "</s>", 1),
    ([1, 2], "a", None),
    (None, None, None),
    (None, "unknown", None),
  ],
)
def test_the_end_of_a_text(tmp_path, said, token, expected):
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": said}))
  tiny_t5.word_tokenizer(tmp_path, eos_token=token)
  if expected is None:
    with pytest.raises(ValueError, match="which eos_token_id ends a text"):
      huggingface.eos_id(tmp_path)
  else:
    assert huggingface.eos_id(tmp_path) == expected


def test_byt5s_tokenizer(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text(
    '{"tokenizer_class": "ByT5Tokenizer"}'
  )
  tokenizer = huggingface.tokenizer(tmp_path)
  text = "Zürich  2026 \t\n汉字 🙂 " + "".join(map(chr, range(1, 400)))
  ids = tokenizer.encode(text).ids
  assert ids == [3 + byte for byte in text.encode()]
  assert tokenizer.decode(ids) == text
  assert tokenizer.token_to_id("</s>") == 1
