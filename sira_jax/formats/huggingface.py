# SPDX-License-Identifier: Apache-2.0
"""Reads a model and its tokenizer from a folder of a Hugging Face checkpoint.

    config.json             the architecture and its sizes
    model.safetensors       the weights, or several files and their index
    tokenizer.json          the tokenizer
    tokenizer_config.json   which token ends a text, if config.json does not

Every tensor is used exactly once or is a copy of one that is; each process
reads only the slices of it that its devices hold.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import pathlib
import re
from typing import Any

from flax import nnx
import jax.numpy as jnp
import numpy as np
import tokenizers

from sira_jax import sharding
from sira_jax.formats import (
  byte_tokenizer,
  huggingface_config,
  huggingface_encoders,
  safetensors_file,
)
from sira_jax.models import decoder, encoder, encoder_blocks, outlines, t5

HEAD = "lm_head.weight"
_T5_LAYERS = {
  "encoder": {
    "attention": "layer.0.SelfAttention",
    "attention_norm": "layer.0.layer_norm",
    "mlp": "layer.1.DenseReluDense",
    "mlp_norm": "layer.1.layer_norm",
  },
  "decoder": {
    "attention": "layer.0.SelfAttention",
    "attention_norm": "layer.0.layer_norm",
    "cross_attention": "layer.1.EncDecAttention",
    "cross_attention_norm": "layer.1.layer_norm",
    "mlp": "layer.2.DenseReluDense",
    "mlp_norm": "layer.2.layer_norm",
  },
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a family's checkpoints are laid out.

  Attributes:
    model: makes it of its config.
    name: our path of a parameter, without its last word -> the tensor's.
    table: the tensor of the embedding table.
    copies: tensors that may be there beside it and must be equal to it.
    unused: a regex of tensors that no model reads, of older checkpoints.
  """

  model: Callable[..., nnx.Module]
  name: Callable[[str], str]
  table: str
  copies: tuple[str, ...]
  unused: str


def _llama_name(path: str) -> str:
  return path if path == "lm_head" else f"model.{path}"


def _t5_name(path: str) -> str:
  """encoder.blocks.3.mlp.wi -> encoder.block.3.layer.1.DenseReluDense.wi."""
  stack, *rest = path.split(".")
  if rest[:1] != ["blocks"]:
    return path.replace(".norm", ".final_layer_norm")
  _, number, layer, *inner = rest
  inner = [
    "relative_attention_bias" if w == "position_bias" else w for w in inner
  ]
  return ".".join([stack, "block", number, _T5_LAYERS[stack][layer], *inner])


def encoder_layout(config: encoder_blocks.EncoderConfig) -> Layout:
  """How checkpoints of encoders are laid out: it depends on the family."""
  return Layout(
    model=encoder.Encoder,
    name=functools.partial(huggingface_encoders.name, config),
    table=huggingface_encoders.name(config, "tokens") + ".weight",
    copies=(),
    unused=huggingface_encoders.UNUSED,
  )


_LAYOUTS = {
  decoder.DecoderConfig: Layout(
    model=decoder.Decoder,
    name=_llama_name,
    table="model.embed_tokens.weight",
    copies=(),
    # What follows from rope_theta.
    unused=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
  ),
  t5.T5Config: Layout(
    model=t5.T5,
    name=_t5_name,
    table="shared.weight",
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    # Of T5 1.0, whose cross-attention has a bias in its files alone.
    unused=r"decoder\.block\.0\.layer\.1\.EncDecAttention"
    r"\.relative_attention_bias\.weight",
  ),
}


def load_model(
  folder: pathlib.Path,
  *,
  dtype=jnp.float32,
  spare: int | None = None,
  **settings: bool,
) -> nnx.Module:
  """The model in the folder, its weights cast to `dtype`.

  Where a mesh is in use, they are born on it. `spare` is the token that
  changes places with token 0, in every table of tokens (see `padding`); of an
  encoder it is the one that pads, 0 if that is 0 already. And
  `settings` are the model's: remat, scan, prefix.

  Raises:
    ValueError: a config that we do not implement; or one that lists every
      tensor that is missing, left over, of another shape or no float, or not
      the copy that it should be.
  """
  tensors = safetensors_file.read_folder(folder)
  config = _config(folder, tensors)
  if isinstance(config, encoder_blocks.EncoderConfig):
    tensors = huggingface_encoders.renamed(config, tensors)
  config = huggingface_encoders.padded(config, spare)
  layout = _layout(config)
  _check_blocks(folder, config, tensors)
  graph, shapes = nnx.split(_shapes(config, dtype=dtype, **settings))
  tied = getattr(config, "tied_embeddings", False)
  copies = layout.copies + (HEAD,) * tied
  if layout.table not in tensors:
    # Of a table that has several names, a file may have any.
    others = [name for name in copies if name in tensors]
    if others:
      tensors[layout.table] = tensors.pop(others[0])
  wanted = {_name(path): leaf for path, leaf in nnx.to_flat_state(shapes)}
  names = {path: tensor_name(layout, path) for path in wanted}
  problems = _problems(tensors, layout, copies, wanted, names)
  if problems:
    raise ValueError(
      f"{folder}: its tensors are not those of {config}:\n  "
      + "\n  ".join(problems)
    )

  tables = {layout.table, HEAD} if spare is not None else set()

  def read(path, index):
    tensor = tensors[names[path]]
    index = index[::-1] if _is_kernel(path) else index
    part = tensor[index]
    if names[path] in tables:
      part = np.array(part)
      _swap_rows(part, tensor, index, 0, spare)
    part = part.T if _is_kernel(path) else part
    # Copied: a change of the file would change the weights otherwise.
    part = np.array(part, dtype, order="C")
    safetensors_file.forget(tensor)
    return part

  return nnx.merge(graph, sharding.filled(shapes, read))


def tensor_name(layout: Layout, path: str) -> str:
  """The tensor of our parameter at a path."""
  module, _, last = path.rpartition(".")
  return f"{layout.name(module)}.{'bias' if last == 'bias' else 'weight'}"


def module_name(model: nnx.Module, path: str) -> str:
  """Hugging Face's name of the module at a path of our model.

  layers.3.mlp.up_proj of a decoder -> model.layers.3.mlp.up_proj.
  """
  return layout_of(model).name(path)


def layout_of(model: nnx.Module) -> Layout:
  """How checkpoints of the model's family are laid out."""
  return _layout(model.config)


def model_shapes(
  folder: pathlib.Path,
  *,
  dtype=jnp.float32,
  spare: int | None = None,
  **settings: bool,
) -> nnx.Module:
  """The model in the folder, its shapes alone, by its config.json.

  Args as of `load_model`.

  Where there are no weights, a T5 is taken to have a last layer of its own
  unless its config ties it; see `huggingface_config.read`.

  Raises:
    ValueError: a config that we do not implement.
  """
  if any(folder.glob("*.safetensors")):
    config = _config(folder, safetensors_file.read_folder(folder))
  else:
    config = huggingface_config.read(folder, own_head=False)
  config = huggingface_encoders.padded(config, spare)
  return _shapes(config, dtype=dtype, **settings)


def tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
  """The folder's tokenizer; ByT5's, which has no file, is made.

  Raises:
    ValueError: it has none that we read.
  """
  path = folder / "tokenizer.json"
  if not path.is_file():
    if _optional(folder, "tokenizer_config.json").get("tokenizer_class") == (
      "ByT5Tokenizer"
    ):
      return byte_tokenizer.make()
    raise ValueError(
      f"{folder}: expected a tokenizer.json. transformers makes one of another"
      " tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...)."
    )
  try:
    made = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # The library's errors have no narrower class.
    raise ValueError(f"{path}: expected a tokenizer: {error}") from error
  # Which some files ask for; rows are cut and filled elsewhere.
  made.no_padding()
  made.no_truncation()
  return made


def eos_id(folder: pathlib.Path) -> int:
  """The token that ends a text.

  config.json says which; where it names several, or none, it is the one that
  tokenizer_config.json calls eos_token.

  Raises:
    ValueError: neither does, or they disagree.
  """
  said = safetensors_file.read_json(folder / "config.json").get("eos_token_id")
  if type(said) is int:
    return said
  token = _optional(folder, "tokenizer_config.json").get("eos_token")
  token = token.get("content") if type(token) is dict else token
  found = tokenizer(folder).token_to_id(token) if type(token) is str else None
  several = said if type(said) is list else [found]
  if found is None or found not in several:
    raise ValueError(
      f"{folder}: expected config.json to say which eos_token_id ends a text,"
      f" or tokenizer_config.json which eos_token; got {said!r:.100} and"
      f" {token!r:.100} (id {found})."
    )
  return found


def fingerprint(folder: pathlib.Path) -> str:
  """sha256 over config.json and the weight files, by name and content."""
  whole = hashlib.sha256()
  for path in [folder / "config.json", *safetensors_file.files(folder)]:
    try:
      with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
      raise ValueError(f"{path}: cannot be read: {error}") from error
    whole.update(f"{path.name} {digest}\n".encode())
  return whole.hexdigest()


def _swap_rows(part, tensor, index, *pair):
  """Rows of a pair change places in the part of a tensor that is at index."""
  rows, *rest = index
  start, stop, _ = rows.indices(len(tensor))
  for here, there in zip(pair, pair[::-1], strict=True):
    if start <= here < stop:
      part[here - start] = tensor[there, *rest]


def _layout(config: huggingface_config.Config) -> Layout:
  if isinstance(config, encoder_blocks.EncoderConfig):
    return encoder_layout(config)
  return _LAYOUTS[type(config)]


def _shapes(config, **settings):
  layout = _layout(config)
  if settings.get("prefix") and not isinstance(config, decoder.DecoderConfig):
    raise ValueError(
      "config.base.prefix is for decoders: others read their prompts in both"
      " directions anyhow. Leave it False."
    )
  return outlines.outline(functools.partial(layout.model, config, **settings))


def _config(folder, tensors) -> huggingface_config.Config:
  table = next(
    (
      tensors[name]
      for layout in _LAYOUTS.values()
      for name in (layout.table, *layout.copies)
      if name in tensors
    ),
    None,
  )
  head = tensors.get(HEAD)
  own = head is not None and (table is None or not _equal(head, table))
  config = huggingface_config.read(folder, own_head=own)
  if isinstance(config, encoder_blocks.EncoderConfig):
    return huggingface_encoders.with_pooler(config, tensors)
  return config


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
  """Bit by bit; different tensors are so in their first rows already."""
  if a.shape != b.shape or a.dtype != b.dtype:
    return False
  step = max(1, 2**20 // max(1, a[:1].size))
  return all(
    a[i : i + step].tobytes() == b[i : i + step].tobytes()
    for i in range(0, len(a), step)
  )


def _check_blocks(folder, config, tensors):
  """Before blocks are made: that the files have tensors for as many."""
  if isinstance(config, t5.T5Config):
    count = config.encoder_layers + config.decoder_layers
  else:
    count = config.layers
  if count > len(tensors):
    raise ValueError(
      f"{folder}: its {count} blocks are more than the {len(tensors)} tensors"
      " that it has."
    )


def _problems(
  tensors: Mapping[str, np.ndarray],
  layout: Layout,
  copies: tuple[str, ...],
  wanted: Mapping[str, Any],
  names: Mapping[str, str],
) -> list[str]:
  """What keeps the tensors from being the parameters that are wanted."""
  problems = []
  for path, name in names.items():
    if name not in tensors:
      problems.append(f"missing: {name}")
      continue
    tensor, shape = tensors[name], wanted[path].shape
    shape = shape[::-1] if _is_kernel(path) else shape
    if tensor.shape != shape:
      problems.append(f"shape: {name} is {tensor.shape}, expected {shape}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
      problems.append(f"type: {name} is {tensor.dtype}, expected a float")
  for name in tensors.keys() - set(names.values()):
    if name in copies and layout.table in tensors:
      if not _equal(tensors[name], tensors[layout.table]):
        problems.append(f"copy: {name} differs from {layout.table}")
    elif not re.fullmatch(layout.unused, name):
      problems.append(f"left over: {name[:200]}")
  return sorted(problems)


def _is_kernel(path):
  """Whether we keep it [in, out], and a file [out, in]."""
  return path.endswith(".kernel")


def _name(path):
  return ".".join(map(str, path))


def _optional(folder, name):
  path = folder / name
  return safetensors_file.read_json(path) if path.is_file() else {}
