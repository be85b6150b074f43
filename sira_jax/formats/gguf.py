# SPDX-License-Identifier: Apache-2.0
"""Reads a decoder and its sizes from a GGUF file.

Files of the `llama` architecture, which SmolLM2 shares. Everything a file
says is either used or refused: nothing is skipped in silence. Nothing that it
says is trusted, either: any bytes give a decoder or a ValueError, and no more
memory than a file of their size can ask for.
"""

import dataclasses
import functools
import hashlib
import math
from typing import Any

from flax import nnx
import gguf
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from sira_jax import sharding
from sira_jax.formats import gguf_file
from sira_jax.formats.gguf_file import PathLike
from sira_jax.models import decoder, outlines

# GGUF's names of our parameters; those of a block follow "blk.{i}.".
_NAMES = {
  "embed_tokens.embedding": "token_embd",
  "norm.scale": "output_norm",
  "lm_head.kernel": "output",
}
_BLOCK_NAMES = {
  "input_layernorm.scale": "attn_norm",
  "self_attn.q_proj.kernel": "attn_q",
  "self_attn.k_proj.kernel": "attn_k",
  "self_attn.v_proj.kernel": "attn_v",
  "self_attn.o_proj.kernel": "attn_output",
  "post_attention_layernorm.scale": "ffn_norm",
  "mlp.gate_proj.kernel": "ffn_gate",
  "mlp.up_proj.kernel": "ffn_up",
  "mlp.down_proj.kernel": "ffn_down",
}
# Any other "llama." entry (experts, rope scaling, windows) changes the
# function that the weights are for.
_REQUIRED_ENTRIES = {
  "attention.head_count": int,
  "attention.layer_norm_rms_epsilon": float,
  "block_count": int,
  "context_length": int,
  "embedding_length": int,
  "feed_forward_length": int,
}
_OPTIONAL_ENTRIES = {
  "attention.head_count_kv": int,
  "attention.key_length": int,
  "attention.value_length": int,
  "rope.dimension_count": int,
  "rope.freq_base": float,
  "vocab_size": int,
}


def read_config(path: PathLike) -> decoder.DecoderConfig:
  """The sizes of the decoder in the file.

  Raises:
    ValueError: no readable GGUF file, another architecture than llama, or an
      entry that this decoder does not implement.
  """
  entries = _llama_entries(path)
  tensors = {tensor.name for tensor in gguf_file.opened(path).tensors}
  d, heads = entries["embedding_length"], entries["attention.head_count"]
  head_dim = entries.get("attention.key_length", max(d // heads, 1))
  for name in ("attention.value_length", "rope.dimension_count"):
    if entries.get(name, head_dim) != head_dim:
      raise ValueError(
        f"{path}: expected llama.{name} to be the width of a head, "
        f"{head_dim}, got {entries[name]}; other widths are not supported."
      )
  vocabulary_size = entries.get("vocab_size")
  if vocabulary_size is None:
    vocabulary_size = len(gguf_file.entry(path, "tokenizer.ggml.tokens", list))
  if not vocabulary_size:
    raise ValueError(f"{path}: it has a vocabulary of 0 tokens.")
  return decoder.DecoderConfig(
    vocabulary_size=vocabulary_size,
    layers=entries["block_count"],
    d_model=d,
    heads=heads,
    kv_heads=entries.get("attention.head_count_kv", heads),
    head_dim=head_dim,
    d_ff=entries["feed_forward_length"],
    rope_theta=entries.get("rope.freq_base", 10_000.0),
    norm_epsilon=entries["attention.layer_norm_rms_epsilon"],
    tied_embeddings="output.weight" not in tensors,
    max_length=entries["context_length"],
  )


def decoder_shapes(
  path: PathLike, *, dtype=jnp.float32, **settings: bool
) -> decoder.Decoder:
  """The decoder in the file, its shapes alone; `settings` are `Decoder`'s.

  Raises:
    ValueError: as `read_config`.
  """
  graph, parameters = _skeleton(read_config(path), dtype, **settings)
  return nnx.merge(graph, nnx.from_flat_state(parameters))


def load_decoder(
  path: PathLike, *, dtype=jnp.float32, **settings: bool
) -> decoder.Decoder:
  """The decoder in the file, its weights dequantised to `dtype`.

  `settings` are `Decoder`'s: remat, scan, prefix.

  Raises:
    ValueError: as `read_config`; or one that lists every tensor that is
      missing, left over, of another shape or of a quantisation unknown.
  """
  config = read_config(path)
  tensors = {tensor.name: tensor for tensor in gguf_file.opened(path).tensors}
  _check_blocks(path, config, tensors)
  problems = _problems(tensors, _shapes(config))
  if problems:
    raise ValueError(
      f"{path}: its tensors are not those of {config}:\n  "
      + "\n  ".join(problems)
    )
  graph, parameters = _skeleton(config, dtype, **settings)
  heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
  names = {".".join(map(str, at)): _gguf_name(at) for at in parameters}

  @functools.lru_cache(maxsize=1)  # several devices take slices of it in turn
  def whole(name):
    tensor = tensors[name]
    array = gguf.dequantize(tensor.data, tensor.tensor_type)
    array = array.reshape(tensor.shape[::-1])
    role = name.split(".")[-2]
    return _paired_by_halves(array, heads[role]) if role in heads else array

  def read(path, index):
    array = whole(names[path])
    array = array.T if path.endswith(".kernel") else array
    # Copied: a change of the file would change the weights otherwise.
    return np.array(array[index], dtype, order="C")

  return nnx.merge(
    graph, sharding.filled(nnx.from_flat_state(parameters), read)
  )


def fingerprint(path: PathLike) -> str:
  """sha256 of the file, by which a checkpoint names its base.

  Raises:
    ValueError: there is no such file.
  """
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise ValueError(f"{path}: cannot be read: {error}") from error


def _llama_entries(path: PathLike) -> dict[str, Any]:
  """The metadata whose names begin with "llama.", without that prefix."""
  architecture = gguf_file.entry(path, "general.architecture", str)
  if architecture != "llama":
    raise ValueError(
      f"{path}: expected architecture llama, got {architecture[:100]}."
    )
  entries = {
    name.removeprefix("llama."): value
    for name, value in gguf_file.opened(path).entries.items()
    if name.startswith("llama.")
  }
  known = _REQUIRED_ENTRIES | _OPTIONAL_ENTRIES
  missing = sorted(_REQUIRED_ENTRIES.keys() - entries.keys())
  unknown = sorted(entries.keys() - known.keys())
  by_layer = sorted(
    n for n, v in entries.items() if isinstance(v, list | np.ndarray)
  )
  if missing or unknown or by_layer:
    raise ValueError(
      f"{path}: cannot make a decoder of its llama.* entries: missing "
      f"{missing}, not supported {unknown}, one value a layer {by_layer}."
    )
  for name, value in entries.items():
    kind = known[name]
    if type(value) is not kind or not 0 < value < math.inf:
      raise ValueError(
        f"{path}: expected llama.{name} to be a positive {kind.__name__}, got"
        f" {value!r:.100}."
      )
  return entries


def _check_blocks(path, config, tensors):
  """Before blocks are made: that the file has tensors for as many."""
  needed = config.layers * len(_BLOCK_NAMES)
  if needed > len(tensors):
    raise ValueError(
      f"{path}: its {config.layers} blocks of {len(_BLOCK_NAMES)} tensors each"
      f" are more than the {len(tensors)} tensors that it has."
    )


def _skeleton(config, dtype=jnp.float32, **settings):
  """A decoder's graph, and its parameters' shapes by path."""
  make = functools.partial(decoder.Decoder, config, dtype=dtype, **settings)
  graph, state = nnx.split(outlines.outline(make))
  return graph, dict(nnx.to_flat_state(state))


def _shapes(config) -> dict[str, tuple[int, ...]]:
  """Tensor -> our shape of it, from one block, however many there are said."""
  _, parameters = _skeleton(dataclasses.replace(config, layers=1))
  return {
    _gguf_name((at[0], block, *at[2:]) if at[0] == "layers" else at): one.shape
    for at, one in parameters.items()
    for block in range(config.layers if at[0] == "layers" else 1)
  }


def _gguf_name(at: tuple[str | int, ...]) -> str:
  """("layers", 3, "mlp", "up_proj", "kernel") -> "blk.3.ffn_up.weight"."""
  if at[0] == "layers":
    return f"blk.{at[1]}.{_BLOCK_NAMES['.'.join(at[2:])]}.weight"
  return f"{_NAMES['.'.join(at)]}.weight"


def _problems(
  tensors: dict[str, gguf_file.Tensor], shapes: dict[str, tuple[int, ...]]
) -> list[str]:
  """What keeps the tensors from being the parameters of these shapes."""
  problems = [f"missing: {name}" for name in shapes if name not in tensors]
  for name, tensor in tensors.items():
    if name not in shapes:
      problems.append(f"left over: {name}")
      continue
    # GGUF lists the fastest axis first, which makes a matrix [in, out] as our
    # kernels are, but an embedding table [d, vocabulary].
    shape = tensor.shape
    shape = shape[::-1] if name == "token_embd.weight" else shape
    if shape != shapes[name]:
      problems.append(f"shape: {name} is {shape}, expected {shapes[name]}")
    try:
      gguf.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError:
      problems.append(f"type: {name} is {tensor.tensor_type.name}, not known")
  return problems


def _paired_by_halves(
  rows: Float[np.ndarray, "f d"], heads: int
) -> Float[np.ndarray, "f d"]:
  """Moves each head's rows 2i, 2i + 1 to i, i + head_dim / 2.

  GGUF's llama rotates neighbours, `layers.rotate` halves.
  """
  f, d = rows.shape
  return rows.reshape(heads, -1, 2, d).swapaxes(1, 2).reshape(f, d)
