# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of encoders: what config.json says, and the tensors' names.

*Model                       no head; the pooler is there or is not
*ForSequenceClassification   a head of labels, over the pooler
*ForMaskedLM, BertForPreTraining   read as *Model: the head that guesses
                             words is left out
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
import re
from typing import Any

import numpy as np

from sira_jax.formats import safetensors_file
from sira_jax.formats.huggingface_entries import Entries
from sira_jax.models.encoder import Encoder
from sira_jax.models.encoder_blocks import EncoderConfig

_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
_ALWAYS = {
  "is_decoder": False,
  "position_embedding_type": "absolute",
  # Google's, of the pooler that all have.
  "directionality": "bidi",
  "pooler_type": "first_token_transform",
}
# Of training, of pretraining's heads, and of poolers that were never built.
_IGNORED = {
  "attention_probs_dropout_prob",
  "hidden_dropout_prob",
  "pooler_fc_size",
  "pooler_num_attention_heads",
  "pooler_num_fc_layers",
  "pooler_size_per_head",
  "tie_word_embeddings",
}
_MOST_LAYERS = 10_000
# Heads that guess words, and what follows from the number of positions.
UNUSED = (
  r"cls\..*|lm_head\..*"
  r"|((bert|roberta)\.)?embeddings\.(position|token_type)_ids"
)
_BODY = {
  "tokens": "embeddings.word_embeddings",
  "positions": "embeddings.position_embeddings",
  "types": "embeddings.token_type_embeddings",
  "norm": "embeddings.LayerNorm",
}
_BLOCK = {
  "attention.q": "attention.self.query",
  "attention.k": "attention.self.key",
  "attention.v": "attention.self.value",
  "attention.o": "attention.output.dense",
  "attention_norm": "attention.output.LayerNorm",
  "mlp.wi": "intermediate.dense",
  "mlp.wo": "output.dense",
  "mlp_norm": "output.LayerNorm",
}
_HEADS = {
  "bert": {"pooler": "bert.pooler.dense", "head": "classifier"},
  "roberta": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
}


def name(config: EncoderConfig, path: str) -> str:
  """blocks.3.mlp.wi -> encoder.layer.3.intermediate.dense.

  The body has the family's prefix where there is a head beside it.
  """
  prefix = "" if config.labels is None else f"{config.family}."
  if path in _BODY:
    return prefix + _BODY[path]
  if path in ("pooler", "head"):
    return _HEADS[config.family][path] if prefix else f"{path}.dense"
  _, number, layer = path.split(".", 2)
  return f"{prefix}encoder.layer.{number}.{_BLOCK[layer]}"


def renamed(
  config: EncoderConfig, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The tensors, by the names that `name` gives, if they have others.

  A body without a head may have the prefix, too; norms of before 2020 have a
  gamma and a beta.
  """
  found = {}
  for old, tensor in tensors.items():
    new = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", old)
    new = re.sub(r"(?<=LayerNorm\.)beta$", "bias", new)
    if config.labels is None:
      new = new.removeprefix(f"{config.family}.")
    # Two of a name would be one; the old one is refused later.
    found[old if new in found or (new != old and new in tensors) else new] = (
      tensor
    )
  return found


def padded(config: Any, spare: int | None) -> Any:
  """The config as it is, but of an encoder with a `spare`: that pads, as 0."""
  if spare is None or not isinstance(config, EncoderConfig):
    return config
  return dataclasses.replace(config, padding=0)


def with_pooler(
  config: EncoderConfig, tensors: Mapping[str, np.ndarray]
) -> EncoderConfig:
  """Without a pooler, where there is neither a head nor a tensor of one."""
  if config.labels is not None:
    return config
  names = (f"{config.family}.pooler.dense.weight", "pooler.dense.weight")
  return dataclasses.replace(config, pooler=any(n in tensors for n in names))


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder's config.json names one of `ARCHITECTURES`."""
  entries = safetensors_file.read_json(folder / "config.json")
  named = entries.get("architectures")
  return type(named) is list and str(*named[:1]) in ARCHITECTURES


def wrapping(folder: pathlib.Path) -> dict[str, str]:
  """The tokens that begin and end a text and pad it, as "cls", "sep", "pad".

  Raises:
    ValueError: tokenizer_config.json and special_tokens_map.json do not say.
  """
  found = {}
  for file in ("special_tokens_map.json", "tokenizer_config.json"):
    if (folder / file).is_file():
      found |= safetensors_file.read_json(folder / file)
  tokens = {}
  for name in ("cls", "sep", "pad"):
    token = found.get(f"{name}_token")
    token = token.get("content") if type(token) is dict else token
    if type(token) is not str:
      raise ValueError(
        f"{folder}: expected tokenizer_config.json to say which {name}_token"
        f" an encoder's text has, got {token!r:.100}."
      )
    tokens[name] = token
  return tokens


def written(model: Encoder) -> EncoderConfig:
  """The config of a checkpoint of the model, with the head that it has now.

  Raises:
    ValueError: a head over another pooling than Hugging Face's.
  """
  if model.head is None:
    return model.config
  if model.pooling != "pooler":
    raise ValueError(
      "Hugging Face's classifier reads the pooler, and this one"
      f" {model.pooling}: train it with pooling='pooler', or export it as"
      " native."
    )
  return dataclasses.replace(model.config, labels=model.head.out_features)


def headed(entries: Mapping[str, Any], model: Encoder) -> dict[str, Any]:
  """The entries of a config.json that say of a head, where they change."""
  kind = "Model" if model.head is None else "ForSequenceClassification"
  family = re.match("Bert|Roberta|XLMRoberta", entries["architectures"][0])[0]
  changed = {"architectures": [family + kind]}
  factory = getattr(model.head, "factory", None)
  if factory is not None:
    names = factory.labels or ("LABEL_0",)
    changed["id2label"] = {str(i): name for i, name in enumerate(names)}
    changed["label2id"] = {name: i for i, name in enumerate(names)}
    changed["problem_type"] = (
      "single_label_classification" if factory.labels else "regression"
    )
  return changed


def _encoder(
  entries: Entries, own_head: bool, *, family: str, headed: bool = False
) -> EncoderConfig:
  del own_head  # No head that is a copy of the table is read.
  entries.check(_ALWAYS)
  entries.used |= _IGNORED
  activation = entries.get("hidden_act", str, "gelu")
  if activation not in _ACTIVATIONS:
    raise ValueError(
      f"{entries.path}: hidden_act = {activation[:100]!r} is not supported;"
      f" known are {', '.join(_ACTIVATIONS)}."
    )
  blocks = entries.get("num_hidden_layers", int)
  if blocks > _MOST_LAYERS:  # before anything of that size is made
    raise ValueError(
      f"{entries.path}: expected num_hidden_layers to be at most"
      f" {_MOST_LAYERS}, got {blocks}."
    )
  padding = _padding(entries, family)
  try:
    return EncoderConfig(
      family=family,
      vocabulary_size=entries.get("vocab_size", int),
      layers=blocks,
      d_model=entries.get("hidden_size", int),
      heads=entries.get("num_attention_heads", int),
      d_ff=entries.get("intermediate_size", int),
      activation=_ACTIVATIONS[activation],
      norm_epsilon=entries.get("layer_norm_eps", float, 1e-12),
      positions=entries.get("max_position_embeddings", int, 512),
      first_position=padding + 1 if family == "roberta" else 0,
      types=entries.get("type_vocab_size", int, 2),
      padding=padding,
      pooler=True,
      labels=_labels(entries, headed),
    )
  except ValueError as error:
    if str(entries.path) in str(error):
      raise
    raise ValueError(f"{entries.path}: {error}") from None


def _padding(entries, family) -> int:
  """Which pads; it is also what RoBERTa counts positions from."""
  entries.used.add("pad_token_id")
  padding = entries.entries.get("pad_token_id", int(family == "roberta"))
  if type(padding) is not int or not 0 <= padding < 2**31:
    raise ValueError(
      f"{entries.path}: expected pad_token_id to be a token, got"
      f" {padding!r:.100}."
    )
  return padding


def _labels(entries, headed) -> int | None:
  """How many; transformers leaves them out where they are two."""
  count = entries.get("num_labels", int, None)
  names = entries.get("id2label", dict, None)
  if not headed:
    return None
  if count is not None and names is not None and count != len(names):
    raise ValueError(
      f"{entries.path}: num_labels = {count} and the {len(names)} of id2label"
      " disagree."
    )
  return count or len(names or "") or 2


_bert, _roberta = (
  functools.partial(_encoder, family=family) for family in _HEADS
)
ARCHITECTURES = {
  "BertModel": _bert,
  "BertForMaskedLM": _bert,
  "BertForPreTraining": _bert,
  "BertForSequenceClassification": functools.partial(_bert, headed=True),
} | {
  f"{family}{kind}": functools.partial(_roberta, headed=headed)
  for family in ("Roberta", "XLMRoberta")
  for kind, headed in (
    ("Model", False),
    ("ForMaskedLM", False),
    ("ForSequenceClassification", True),
  )
}
