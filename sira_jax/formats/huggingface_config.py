# SPDX-License-Identifier: Apache-2.0
"""What a Hugging Face config.json says of a model.

Every entry is used, has the one value that we implement, or is known to be
without effect on what the model computes; any other is refused by its name.
"""

import pathlib
from typing import Any

from sira_jax.formats import (
  huggingface_decoders,
  huggingface_encoders,
  safetensors_file,
)
from sira_jax.formats.huggingface_entries import Entries
from sira_jax.models import decoder, encoder_blocks, t5

Config = decoder.DecoderConfig | t5.T5Config | encoder_blocks.EncoderConfig

# Entries with the value that we implement; absent is that value, too.
_ALWAYS = {
  "quantization_config": None,
  "pruned_heads": {},
  "chunk_size_feed_forward": 0,
  "cross_attention_hidden_size": None,
  "add_cross_attention": False,
  "tie_encoder_decoder": False,
}
_ACTIVATIONS = {
  "relu": ("relu", False),
  "gated-gelu": ("gelu", True),
  "gated-silu": ("silu", True),
}


def read(folder: pathlib.Path, *, own_head: bool) -> Config:
  """The sizes of the model in a folder.

  Args:
    folder: with a config.json.
    own_head: whether its weights have a last layer (`lm_head.weight`) that is
      not a copy of the embedding table. T5's configs do not tell reliably:
      transformers 5 writes `tie_word_embeddings` true for all of them.

  Raises:
    ValueError: no config, another architecture than `ARCHITECTURES` has, or
      an entry that our model of it does not implement.
  """
  path = folder / "config.json"
  entries = Entries(path, safetensors_file.read_json(path))
  named = entries.get("architectures", list)
  if len(named) != 1 or named[0] not in ARCHITECTURES:
    raise ValueError(
      f"{path}: expected one architecture of {', '.join(ARCHITECTURES)}, got"
      f" {named!r:.100}."
    )
  config = ARCHITECTURES[named[0]](entries, own_head)
  entries.check(_ALWAYS)
  entries.check_all_used()
  return config


def _t5(entries: Entries, own_head: bool, **defaults: Any) -> t5.T5Config:
  # transformers 5 keeps here what `tie_word_embeddings` said before.
  scaled = entries.get("scale_decoder_outputs", bool, None)
  tied = entries.get("tie_word_embeddings", bool, None)
  projection = entries.get(
    "feed_forward_proj", str, defaults.get("projection", "relu")
  )
  if projection not in _ACTIVATIONS:
    raise ValueError(
      f"{entries.path}: feed_forward_proj = {projection[:100]!r} is not"
      f" supported; known are {', '.join(_ACTIVATIONS)}."
    )
  # Which follow from it, and which only transformers' own code reads.
  entries.used |= {"dense_act_fn", "is_gated_act"}
  activation, gated = _ACTIVATIONS[projection]
  for name in ("decoder_start_token_id", "pad_token_id"):
    if entries.entries.get(name) not in (0, None):
      raise ValueError(
        f"{entries.path}: {name} = {entries.entries[name]!r:.100} is not"
        " supported; expected 0, which begins a target and pads."
      )
  entries.used |= {"decoder_start_token_id", "pad_token_id"}
  layers = entries.get("num_layers", int)
  if scaled is None:
    scaled = tied is not False
  return t5.T5Config(
    vocabulary_size=entries.get("vocab_size", int),
    encoder_layers=layers,
    decoder_layers=entries.get("num_decoder_layers", int, layers),
    d_model=entries.get("d_model", int),
    heads=entries.get("num_heads", int),
    head_dim=entries.get("d_kv", int),
    d_ff=entries.get("d_ff", int),
    activation=activation,
    gated=gated,
    buckets=entries.get("relative_attention_num_buckets", int, 32),
    max_distance=entries.get("relative_attention_max_distance", int, 128),
    bias_by_layer=defaults.get("bias_by_layer", False),
    norm_epsilon=entries.get("layer_norm_epsilon", float, 1e-6),
    tied_embeddings=tied is not False and not own_head,
    scaled_logits=defaults.get("scaled", scaled),
  )


def _mt5(entries, own_head):
  # Its official configs leave out neither entry that differs from T5's.
  return _t5(entries, own_head, projection="gated-gelu", scaled=False)


def _umt5(entries, own_head):
  # Its logits are scaled if they are tied, whatever transformers 5 writes.
  scaled = {"scaled": False} if own_head else {}
  return _t5(
    entries, own_head, projection="gated-gelu", bias_by_layer=True, **scaled
  )


ARCHITECTURES = {
  **huggingface_decoders.ARCHITECTURES,
  **huggingface_encoders.ARCHITECTURES,
  "T5ForConditionalGeneration": _t5,
  "T5WithLMHeadModel": _t5,  # its name before 2020
  "MT5ForConditionalGeneration": _mt5,
  "UMT5ForConditionalGeneration": _umt5,
}
