# SPDX-License-Identifier: Apache-2.0
"""The entries of a config.json, each of which is used or refused by name."""

from collections.abc import Mapping
import math
import pathlib
import re
from typing import Any

_REQUIRED: Any = object()
# Of initialisation, training, generation, tokens and file keeping.
_WITHOUT_EFFECT = frozenset(
  re.findall(
    r"\w+",
    """
    _attn_implementation _name_or_path architectures attention_dropout
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation
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


class Entries:
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
