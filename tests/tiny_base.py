"""A base model of two small blocks in a GGUF file, with SmolLM2's tokenizer.

Of the tokenizer it has the first tokens alone, and the merges that make them:
reading all of them takes longer than all else that a start does.
"""

import hashlib
import pathlib

import gguf
import numpy as np
import pytest

from configs import quickstart
from sira_jax.formats import sources

D, HEADS, KV_HEADS, D_FF, LAYERS, CONTEXT = 32, 2, 1, 64, 2, 256
TOKENS = 4096


def write(path: pathlib.Path, *, seed: int = 0) -> str:
  """Writes the file, its weights drawn from the seed; returns its sha256."""
  real = gguf.GGUFReader(_smollm2())
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(LAYERS)
  writer.add_context_length(CONTEXT)
  writer.add_embedding_length(D)
  writer.add_feed_forward_length(D_FF)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(KV_HEADS)
  writer.add_layer_norm_rms_eps(1e-5)
  for name, value in _tokenizer(real).items():
    types = real.fields[name].types
    writer.add_key_value(name, value, types[0], *types[1:2])
  rng = np.random.default_rng(seed)
  for name, shape in _shapes(TOKENS).items():
    noise = rng.normal(size=shape).astype(np.float32)
    scale = "norm" in name
    writer.add_tensor(name, 1 + 0.1 * noise if scale else 0.2 * noise)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _smollm2():
  base = quickstart.get_config().base
  try:
    return sources.fetch(base.uri, sha256=base.sha256)
  except ValueError as error:
    pytest.skip(f"SmolLM2's tokenizer cannot be had: {error}")


def _tokenizer(real):
  """The entries of the real file's tokenizer, of its first tokens."""
  entries = {
    name: field.contents()
    for name, field in real.fields.items()
    if name.startswith("tokenizer.ggml.")
  }
  for name in ("tokens", "token_type"):
    del entries[f"tokenizer.ggml.{name}"][TOKENS:]
  known = set(entries["tokenizer.ggml.tokens"])
  entries["tokenizer.ggml.merges"] = [
    merge
    for merge in entries["tokenizer.ggml.merges"]
    if known.issuperset([*merge.split(" "), merge.replace(" ", "")])
  ]
  return entries


def _shapes(vocabulary):
  kv = D // HEADS * KV_HEADS
  block = {
    "attn_norm": (D,),
    "attn_q": (D, D),
    "attn_k": (kv, D),
    "attn_v": (kv, D),
    "attn_output": (D, D),
    "ffn_norm": (D,),
    "ffn_gate": (D_FF, D),
    "ffn_up": (D_FF, D),
    "ffn_down": (D, D_FF),
  }
  outer = {"token_embd": (vocabulary, D), "output_norm": (D,)}
  return {f"{name}.weight": shape for name, shape in outer.items()} | {
    f"blk.{i}.{name}.weight": shape
    for i in range(LAYERS)
    for name, shape in block.items()
  }
