# SPDX-License-Identifier: Apache-2.0
"""Reads and writes LoRA folders as Hugging Face PEFT has them.

    adapter_config.json         ranks, scales and the modules they are for
    adapter_model.safetensors   base_model.model.MODULE.lora_A.weight [rank d]
                                base_model.model.MODULE.lora_B.weight [f rank]

    y = x W0 + scale * x lora_A^T lora_B^T      scale = lora_alpha / r

What is written has a scale of 1 for every module, folded into lora_B: readers
differ in whether they heed an alpha of a module's own. What is read may have
any scale; it comes out folded the same way.

Source: the released code of PEFT 0.21, of which no line is needed to run this.
"""

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

import numpy as np

from sira_jax.formats import safetensors_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# A [d rank] and B [rank f] of x A B.
Pair = tuple[np.ndarray, np.ndarray]

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Entries that do not change what the tensors mean.
_WITHOUT_EFFECT = {
  "auto_mapping",
  "base_model_name_or_path",
  "exclude_modules",
  "inference_mode",
  "layers_pattern",
  "layers_to_transform",
  "lora_dropout",
  "peft_version",
  "qalora_group_size",  # of use_qalora
  "revision",
  "target_modules",
  "task_type",
}
# Entries with the values that we implement, beside null, false and nothing.
_ALWAYS = {
  "bias": ("none",),
  # Others change the base's weights before training.
  "init_lora_weights": (True, False, "gaussian", "orthogonal"),
  "peft_type": ("LORA",),
  "megatron_core": ("megatron.core",),
}
_USED = {"alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora"}


def write(
  folder: pathlib.Path,
  layers: Mapping[str, Pair],
  *,
  base: str,
  encoder_decoder: bool,
  uniform: bool = False,
) -> int:
  """Writes a LoRA folder.

  Args:
    folder: made if it is not there.
    layers: module -> A [d rank] and B [rank f], by Hugging Face's names.
      Ranks may differ.
    base: what the folder calls its base model.
    encoder_decoder: what kind of model that is.
    uniform: fill up all with zeros to the largest rank, for readers that know
      one rank alone.

  Returns:
    The largest rank.

  Raises:
    ValueError: there are no layers, or one of rank 0, which PEFT refuses.
  """
  empty = [name for name, (a, _) in layers.items() if not a.shape[1]]
  if empty or not layers:
    raise ValueError(
      f"A LoRA folder needs layers of rank 1 or more, got {len(layers)}"
      f" layers, of rank 0: {empty[:3]}."
    )
  ranks = {name: a.shape[1] for name, (a, _) in layers.items()}
  largest, tensors = max(ranks.values()), {}
  for name, (a, b) in layers.items():
    fill = largest - ranks[name] if uniform else 0
    key = f"base_model.model.{name}"
    a, b = np.pad(a, ((0, 0), (0, fill))), np.pad(b, ((0, fill), (0, 0)))
    tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a.T)
    tensors[f"{key}.lora_B.weight"] = np.ascontiguousarray(b.T)
  own = {
    f"^{re.escape(name)}": rank
    for name, rank in ranks.items()
    if rank != largest and not uniform
  }
  config = {
    "base_model_name_or_path": base,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": largest,
    "lora_dropout": 0.0,
    "alpha_pattern": own,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": largest,
    "rank_pattern": own,
    "revision": None,
    "target_modules": list(layers),
    "task_type": "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
  }
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_file.write(folder / WEIGHTS, tensors, torch=True)
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
  return largest


def read(folder: pathlib.Path) -> dict[str, Pair]:
  """The layers of a LoRA folder, in float32, their scales in B.

  Raises:
    ValueError: it is no such folder or damaged; it holds a tensor that is not
      one of a pair, or a pair whose rank is not the one that its config says;
      or an entry of its config (DoRA, biases, modules saved whole, a changed
      base) means what a pair cannot express. Nothing is left out.
  """
  config = safetensors_file.read_json(folder / CONFIG)
  _check(folder / CONFIG, config)
  found: dict[str, dict[str, np.ndarray]] = {}
  for key, tensor in safetensors_file.read(folder / WEIGHTS).items():
    match = _KEY.fullmatch(key)
    if not match or tensor.ndim != 2:
      raise ValueError(
        f"{folder / WEIGHTS}: expected tensors"
        " base_model.model.MODULE.lora_A.weight and lora_B.weight, got"
        f" {key[:200]!r} of shape {tensor.shape}."
      )
    found.setdefault(match[1], {})[match[2]] = tensor
  if not found:
    raise ValueError(f"{folder / WEIGHTS}: it holds no layer.")
  return {name: _pair(folder, config, name, found[name]) for name in found}


def _pair(folder, config, name, tensors) -> Pair:
  """A and B of a module, the scale that its config gives it in B."""
  rank = _own(config.get("rank_pattern"), name, config["r"])
  alpha = _own(config.get("alpha_pattern"), name, config["lora_alpha"])
  a, b = tensors.get("A"), tensors.get("B")
  if a is None or b is None or not a.shape[0] == b.shape[1] == rank:
    shapes = [None if t is None else t.shape for t in (a, b)]
    raise ValueError(
      f"{folder}: {name} should have lora_A [{rank} d] and lora_B [f {rank}],"
      f" got {shapes[0]} and {shapes[1]}."
    )
  scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
  return np.array(a.T, np.float32), np.array(b.T, np.float32) * scale


def _own(patterns: Mapping[str, float] | None, name: str, default: float):
  """The value of the first pattern that ends the module's name, as in PEFT."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", name):
      return value
  return default


def _check(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Refuses what its pairs do not express, by name."""
  for name, known in _ALWAYS.items():
    if config.get(name) not in (None, *known):
      raise ValueError(
        f"{path}: {name} = {config[name]!r:.100} is not supported; expected"
        f" {' or '.join(map(repr, known))}."
      )
  kinds = {"r": int, "lora_alpha": (int, float)}
  for name, kind in kinds.items():
    value = config.get(name)
    if type(value) is bool or not isinstance(value, kind) or value <= 0:
      raise ValueError(
        f"{path}: expected {name} to be a number above 0, got {value!r:.100}."
      )
  for name in ("rank_pattern", "alpha_pattern"):
    _check_patterns(path, name, config.get(name) or {})
  unknown = config.keys() - _WITHOUT_EFFECT - _ALWAYS.keys() - _USED
  effective = {name: config[name] for name in unknown if _said(config[name])}
  if effective:
    raise ValueError(
      f"{path}: what it says of {', '.join(sorted(effective))} is not"
      f" supported: {effective!r:.300}."
    )


def _check_patterns(path, name, patterns):
  try:
    good = all(
      re.compile(key) and type(value) in (int, float) and value > 0
      for key, value in patterns.items()
    )
  except (AttributeError, TypeError, re.error):
    good = False
  if not good:
    raise ValueError(
      f"{path}: expected {name} to give regexes numbers above 0, got"
      f" {patterns!r:.200}."
    )


def _said(value):
  """Whether an entry asks for anything: not null, false, nothing or zeros."""
  if isinstance(value, Mapping):
    return any(map(_said, value.values()))
  return value not in (None, False, 0, "", [])
