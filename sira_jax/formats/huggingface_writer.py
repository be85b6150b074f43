# SPDX-License-Identifier: Apache-2.0
"""Writes a model as a folder of a Hugging Face checkpoint.

    config.json         of the folder that the model came from, or made
    *.safetensors       its weights, in files of `SHARD` bytes at most
    tokenizer.json ...  of that folder, or made

`huggingface.load_model`, transformers and servers read it.
"""

from collections.abc import Iterator
import json
import pathlib
import shutil

from flax import nnx
import jax
import numpy as np
import tokenizers

from sira_jax.formats import (
  huggingface,
  huggingface_encoders,
  safetensors_file,
)
from sira_jax.models import decoder, encoder

SHARD = 5 * 2**30
# Of the folder that the model came from; weights and old model cards stay.
_KEPT = ("*.json", "*.model", "*.txt", "*.jinja")
_DECODER = {
  "vocab_size": "vocabulary_size",
  "num_hidden_layers": "layers",
  "hidden_size": "d_model",
  "num_attention_heads": "heads",
  "num_key_value_heads": "kv_heads",
  "head_dim": "head_dim",
  "intermediate_size": "d_ff",
  "rope_theta": "rope_theta",
  "rms_norm_eps": "norm_epsilon",
  "tie_word_embeddings": "tied_embeddings",
  "max_position_embeddings": "max_length",
}


def write(
  folder: pathlib.Path,
  model: nnx.Module,
  *,
  source: pathlib.Path,
  tokenizer: tokenizers.Tokenizer,
  eos_id: int,
  spare: int | None = None,
  shard: int = SHARD,
) -> list[str]:
  """Writes the model's weights, with all that a reader needs beside them.

  One file's tensors at a time are in this host's memory.

  Args:
    folder: made if it is not there.
    model: without adapters: merged.
    source: what the model was loaded from: a folder, whose config and tokenizer
      are taken over, or a file.
    tokenizer: of a model that comes from a file.
    eos_id: what ends its texts.
    spare: the token that had changed places with token 0; see `padding`.
    shard: bytes of a file of weights, at most, but for a single tensor.

  Returns:
    The names of the files of weights.

  Raises:
    ValueError: a head that Hugging Face's classifiers do not have.
  """
  layout = huggingface.layout_of(model)
  if isinstance(model, encoder.Encoder):
    layout = huggingface.encoder_layout(huggingface_encoders.written(model))
  folder.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    for pattern in _KEPT:
      for file in source.glob(pattern):
        if file.name != safetensors_file.INDEX:
          shutil.copyfile(file, folder / file.name)
    if isinstance(model, encoder.Encoder):
      _change_encoder_config(folder / "config.json", model)
  else:
    _write_decoder_config(folder, model, eos_id)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": tokenizer.id_to_token(eos_id),
    }
    _dump(folder / "tokenizer_config.json", told)
  return _write_weights(
    folder, _parameters(model, layout), layout, spare, shard
  )


def _write_weights(folder, parameters, layout, spare, limit):
  """The shards and their index; a single one needs none."""
  tables = {layout.table, huggingface.HEAD}
  tables = set() if spare is None else tables
  sizes = {name: value.nbytes for name, (value, _) in parameters.items()}
  shards = list(_shards(sizes, limit))
  names, where = [], {}
  for number, keys in enumerate(shards, start=1):
    name = safetensors_file.SINGLE
    if len(shards) > 1:
      name = f"model-{number:05}-of-{len(shards):05}.safetensors"
    tensors = {key: _tensor(*parameters[key]) for key in keys}
    for key in tables & tensors.keys():
      tensors[key] = np.array(tensors[key])
      tensors[key][[0, spare]] = tensors[key][[spare, 0]]
    safetensors_file.write(folder / name, tensors, torch=True)
    names.append(name)
    where |= dict.fromkeys(keys, name)
  if len(shards) > 1:
    index = {
      "metadata": {"total_size": sum(sizes.values())},
      "weight_map": where,
    }
    _dump(folder / safetensors_file.INDEX, index)
  return names


def _parameters(model, layout) -> dict[str, tuple[jax.Array, bool]]:
  """Tensor's name -> the parameter, and whether a file has it transposed."""
  found = {}
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    name = huggingface.tensor_name(layout, ".".join(map(str, path)))
    found[name] = variable[...], path[-1] == "kernel"
  return found


def _tensor(value: jax.Array, transposed: bool) -> np.ndarray:
  array = np.asarray(jax.device_get(value))
  return np.ascontiguousarray(array.T) if transposed else array


def _shards(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
  """Names of tensors, in order, that go into a file together."""
  shard, used = [], 0
  for name, size in sizes.items():
    if shard and used + size > limit:
      yield shard
      shard, used = [], 0
    shard.append(name)
    used += size
  yield shard


def _change_encoder_config(file, model: encoder.Encoder):
  """The copied config.json says what is written: a head, or none."""
  entries = safetensors_file.read_json(file)
  _dump(file, entries | huggingface_encoders.headed(entries, model))


def _write_decoder_config(folder, model: decoder.Decoder, eos_id):
  """config.json of a decoder that came without one."""
  dtype = str(model.embed_tokens.embedding.dtype)
  own = {
    theirs: getattr(model.config, ours) for theirs, ours in _DECODER.items()
  }
  _dump(
    folder / "config.json",
    {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "hidden_act": "silu",
      "attention_bias": False,
      "mlp_bias": False,
      "eos_token_id": eos_id,
      "torch_dtype": dtype,
      **own,
    },
  )


def _dump(file, content):
  file.write_text(json.dumps(content, indent=2) + "\n")
