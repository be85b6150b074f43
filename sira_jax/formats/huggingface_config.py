# SPDX-License-Identifier: Apache-2.0
"""What a Hugging Face config.json says of a model.

Every entry is used, has the one value that we implement, or is known to be
without effect on what the model computes; any other is refused by its name.
"""

from collections.abc import Mapping
import math
import pathlib
import re
from typing import Any

from sira_jax.formats import safetensors_file
from sira_jax.models import decoder, t5

Config = decoder.DecoderConfig | t5.T5Config

_REQUIRED: Any = object()
# Of initialisation, training, generation, tokens and file keeping.
_WITHOUT_EFFECT = frozenset(
  re.findall(
    r"\w+",
    """
    _attn_implementation _name_or_path architectures attention_dropout
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
    classifier_dropout diversity_penalty do_sample dropout_rate dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_factor
    initializer_range is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length model_type n_positions no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_past output_scores pad_token_id prefix
    pretraining_tp problem_type remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p unk_token_id
    use_bfloat16 use_cache
    """,
  )
)
# Entries with the value that we implement; absent is that value, too.
_ALWAYS = {
  "quantization_config": None,
  "pruned_heads": {},
  "chunk_size_feed_forward": 0,
  "cross_attention_hidden_size": None,
  "add_cross_attention": False,
  "tie_encoder_decoder": False,
}
_LLAMA = {
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
  "rope_scaling": None,
  "sliding_window": None,
  "use_sliding_window": False,
  "partial_rotary_factor": 1.0,
  "rope_interleaved": False,
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
  entries = _Entries(path, safetensors_file.read_json(path))
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


class _Entries:
  """The entries of a config, and which of them were asked for."""

  def __init__(self, path: pathlib.Path, entries: Mapping[str, Any]):
    self.path, self.entries, self.used = path, entries, set()

  def get(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
    """An entry of that type; a number is above 0; null is the default."""
    self.used.add(name)
    value = self.entries.get(name)
    if value is None and default is not _REQUIRED:
      return default
    if kind is float and type(value) is int and value < 2**53:
      value = float(value)
    number = kind in (int, float)
    limit = 2**31 if kind is int else math.inf
    if type(value) is not kind or (number and not 0 < value < limit):
      raise ValueError(
        f"{self.path}: expected {name} to be a {'positive ' * number}"
        f"{kind.__name__}, got {value!r:.100}."
      )
    return value

  def check(self, expected: Mapping[str, Any]) -> None:
    """Refuses entries of these names with other values."""
    for name, value in expected.items():
      self.used.add(name)
      found = self.entries.get(name, value)
      if found != value and found is not None:
        raise ValueError(
          f"{self.path}: {name} = {found!r:.200} is not supported; expected"
          f" {value!r}."
        )

  def check_all_used(self) -> None:
    """Refuses entries that nobody asked for and that may have an effect."""
    unknown = sorted(self.entries.keys() - self.used - _WITHOUT_EFFECT)
    if unknown:
      raise ValueError(
        f"{self.path}: the entries {unknown} are not known here, so what the"
        " model computes may depend on them. Remove them from a copy if it"
        " does not."
      )


def _llama(entries: _Entries, own_head: bool) -> decoder.DecoderConfig:
  del own_head  # Its configs tell.
  d, heads = (
    entries.get(name, int) for name in ("hidden_size", "num_attention_heads")
  )
  entries.check(_LLAMA)
  return decoder.DecoderConfig(
    vocabulary_size=entries.get("vocab_size", int),
    layers=entries.get("num_hidden_layers", int),
    d_model=d,
    heads=heads,
    kv_heads=entries.get("num_key_value_heads", int, heads),
    head_dim=entries.get("head_dim", int, max(d // heads, 1)),
    d_ff=entries.get("intermediate_size", int),
    rope_theta=_rope_theta(entries),
    norm_epsilon=entries.get("rms_norm_eps", float, 1e-6),
    tied_embeddings=entries.get("tie_word_embeddings", bool, False),
    max_length=entries.get("max_position_embeddings", int, 2048),
  )


def _rope_theta(entries):
  """Of `rope_parameters`, as transformers 5 writes it, or of `rope_theta`."""
  theta = entries.get("rope_theta", float, 10_000.0)
  nested = entries.get("rope_parameters", dict, {})
  inner = _Entries(f"{entries.path}: rope_parameters", nested)
  inner.check({"rope_type": "default", "partial_rotary_factor": 1.0})
  theta = inner.get("rope_theta", float, theta)
  inner.check_all_used()
  return theta


def _t5(entries: _Entries, own_head: bool, **defaults: Any) -> t5.T5Config:
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
  "LlamaForCausalLM": _llama,
  "MistralForCausalLM": _llama,
  "T5ForConditionalGeneration": _t5,
  "T5WithLMHeadModel": _t5,  # its name before 2020
  "MT5ForConditionalGeneration": _mt5,
  "UMT5ForConditionalGeneration": _umt5,
}
