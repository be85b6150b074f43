# SPDX-License-Identifier: Apache-2.0
"""Reads a decoder, its sizes and its tokenizer from a GGUF file.

Files of the `llama` architecture, which SmolLM2 shares. Everything a file
says is either used or refused: nothing is skipped in silence.
"""

import dataclasses
import functools
import hashlib
import os
from typing import Any

from flax import nnx
import gguf
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
import tokenizers

from sira_jax.models import decoder

PathLike = str | os.PathLike[str]

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
  "attention.head_count",
  "attention.layer_norm_rms_epsilon",
  "block_count",
  "context_length",
  "embedding_length",
  "feed_forward_length",
}
_OPTIONAL_ENTRIES = {
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "rope.dimension_count",
  "rope.freq_base",
  "vocab_size",
}


def _smollm() -> tokenizers.pre_tokenizers.PreTokenizer:
  return tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


_PRE_TOKENIZERS = {"smollm": _smollm}
# Token types that are matched before BPE, and whether they are special.
_ADDED_TYPES = {
  gguf.TokenType.CONTROL: True,
  gguf.TokenType.USER_DEFINED: False,
}
_REQUIRED: Any = object()


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Ids with a role, None where the file names none."""

  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  unknown_id: int | None


def read_config(path: PathLike) -> decoder.DecoderConfig:
  """The sizes of the decoder in the file.

  Raises:
    ValueError: no readable GGUF file, another architecture than llama, or an
      entry that this decoder does not implement.
  """
  entries = _llama_entries(path)
  tensors = {tensor.name for tensor in _open(path).tensors}
  d, heads = entries["embedding_length"], entries["attention.head_count"]
  head_dim = entries.get("attention.key_length", d // heads)
  for name in ("attention.value_length", "rope.dimension_count"):
    if entries.get(name, head_dim) != head_dim:
      raise ValueError(
        f"{path}: expected llama.{name} to be the width of a head, "
        f"{head_dim}, got {entries[name]}; other widths are not supported."
      )
  vocabulary_size = entries.get("vocab_size")
  if vocabulary_size is None:
    vocabulary_size = len(_entry(path, "tokenizer.ggml.tokens"))
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


def load_decoder(path: PathLike, *, dtype=jnp.float32) -> decoder.Decoder:
  """The decoder in the file, its weights dequantised to `dtype`.

  Raises:
    ValueError: as `read_config`; or one that lists every tensor that is
      missing, left over, of another shape or of a quantisation unknown.
  """
  config = read_config(path)
  graph, state = nnx.split(
    nnx.eval_shape(
      lambda: decoder.Decoder(config, rngs=nnx.Rngs(0), dtype=dtype)
    )
  )
  parameters = dict(nnx.to_flat_state(state))
  tensors = {tensor.name: tensor for tensor in _open(path).tensors}
  wanted = {_gguf_name(at): at for at in parameters}
  problems = _problems(
    tensors, {name: parameters[at].shape for name, at in wanted.items()}
  )
  if problems:
    raise ValueError(
      f"{path}: its tensors are not those of {config}:\n  "
      + "\n  ".join(problems)
    )
  heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
  for name, at in wanted.items():
    array = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
    role = name.split(".")[-2]
    if role in heads:
      array = _paired_by_halves(array, heads[role])
    if at[-1] == "kernel":
      array = array.T
    parameters[at] = parameters[at].replace(jnp.asarray(array, dtype))
  return nnx.merge(graph, nnx.from_flat_state(parameters))


def tokenizer(path: PathLike) -> tokenizers.Tokenizer:
  """The file's tokenizer, its control tokens registered as special.

  Raises:
    ValueError: another kind than byte-level BPE of a known pre-tokenizer.
  """
  kind = _entry(path, "tokenizer.ggml.model")
  pre = _entry(path, "tokenizer.ggml.pre", "default")
  if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
    raise ValueError(
      f"{path}: expected a tokenizer of model gpt2 (byte-level BPE) with a "
      f"pre-tokenizer of {sorted(_PRE_TOKENIZERS)}, got model {kind}, "
      f"pre-tokenizer {pre}."
    )
  for option in ("add_bos_token", "add_eos_token", "add_space_prefix"):
    if _entry(path, f"tokenizer.ggml.{option}", False):
      raise ValueError(
        f"{path}: tokenizer.ggml.{option} is set; tokenizers that add to the "
        "text are not supported."
      )
  tokens = _entry(path, "tokenizer.ggml.tokens")
  types = _entry(path, "tokenizer.ggml.token_type")
  merges = _entry(path, "tokenizer.ggml.merges")
  built = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(" ")) for merge in merges],
    )
  )
  built.pre_tokenizer = _PRE_TOKENIZERS[pre]()
  built.decoder = tokenizers.decoders.ByteLevel()
  for type_, special in _ADDED_TYPES.items():
    built.add_tokens(
      [
        tokenizers.AddedToken(token, special=special, normalized=False)
        for token, its_type in zip(tokens, types, strict=True)
        if its_type == type_
      ]
    )
  return built


def special_tokens(path: PathLike) -> SpecialTokens:
  """The ids that the file gives a role."""
  roles = ("bos", "eos", "padding", "unknown")
  ids = (_entry(path, f"tokenizer.ggml.{r}_token_id", None) for r in roles)
  return SpecialTokens(*ids)


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


def _open(path: PathLike) -> gguf.GGUFReader:
  try:
    stat = os.stat(path)
    return _reader(os.fspath(path), stat.st_size, stat.st_mtime_ns)
  # The reader trusts the file, so a bad one fails wherever it first hurts:
  # ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError, ...
  except Exception as error:
    raise ValueError(
      f"{path}: expected a complete GGUF file: {type(error).__name__}: {error}"
    ) from error


# Reading 10^5 metadata strings takes seconds, and a program asks for the
# sizes, the weights and the tokenizer in turn.
@functools.lru_cache(maxsize=1)
def _reader(path: str, size: int, mtime_ns: int) -> gguf.GGUFReader:
  del size, mtime_ns  # A changed file is another one.
  return gguf.GGUFReader(path)


def _entry(path: PathLike, name: str, default: Any = _REQUIRED) -> Any:
  field = _open(path).get_field(name)
  if field is not None:
    return field.contents()
  if default is _REQUIRED:
    raise ValueError(f"{path}: expected a metadata entry {name}, found none.")
  return default


def _llama_entries(path: PathLike) -> dict[str, Any]:
  """The metadata whose names begin with "llama.", without that prefix."""
  architecture = _entry(path, "general.architecture")
  if architecture != "llama":
    raise ValueError(
      f"{path}: expected architecture llama, got {architecture}."
    )
  entries = {
    name.removeprefix("llama."): field.contents()
    for name, field in _open(path).fields.items()
    if name.startswith("llama.")
  }
  missing = sorted(_REQUIRED_ENTRIES - entries.keys())
  unknown = sorted(entries.keys() - _REQUIRED_ENTRIES - _OPTIONAL_ENTRIES)
  by_layer = sorted(n for n, v in entries.items() if isinstance(v, list))
  if missing or unknown or by_layer:
    raise ValueError(
      f"{path}: cannot make a decoder of its llama.* entries: missing "
      f"{missing}, not supported {unknown}, one value a layer {by_layer}."
    )
  return entries


def _gguf_name(at: tuple[str | int, ...]) -> str:
  """("layers", 3, "mlp", "up_proj", "kernel") -> "blk.3.ffn_up.weight"."""
  if at[0] == "layers":
    return f"blk.{at[1]}.{_BLOCK_NAMES['.'.join(at[2:])]}.weight"
  return f"{_NAMES['.'.join(at)]}.weight"


def _problems(
  tensors: dict[str, gguf.ReaderTensor], shapes: dict[str, tuple[int, ...]]
) -> list[str]:
  """What keeps the tensors from being the parameters of these shapes."""
  problems = [f"missing: {name}" for name in shapes if name not in tensors]
  for name, tensor in tensors.items():
    if name not in shapes:
      problems.append(f"left over: {name}")
      continue
    # GGUF lists the fastest axis first, which makes a matrix [in, out] as our
    # kernels are, but an embedding table [d, vocabulary].
    shape = tuple(tensor.shape.tolist())
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
