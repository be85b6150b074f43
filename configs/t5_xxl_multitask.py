# SPDX-License-Identifier: Apache-2.0
"""Flan-T5 XXL learns spoken commands and dates by SiRA, its weights divided.

    python train.py --config=configs/t5_xxl_multitask.py --distributed
    python train.py --config=configs/t5_xxl_multitask.py:tiny  small, two steps

An encoder-decoder of 11 billion parameters. Its attention is adapted, the
decoder's to the encoder too. The weights come from the Hugging Face hub, the
tiny form's as well (Flan-T5 small). Nobody has run it yet, but for the tiny
form on a tiny random model; docs/scale.md has what it needs. The settings are
ours.
"""

import ml_collections

from configs import llama3_8b
from sira_jax import configuration
from sira_jax.training import optimizers

TINY = llama3_8b.TINY | {
  "base.uri": "hf://google/flan-t5-small",
  "batches.targets_length": 96,
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """The config; "tiny" makes it two small steps of a small base."""
  if argument not in ("", "tiny"):
    raise ValueError(f"Unknown argument {argument!r}; there is tiny, or none.")
  config = llama3_8b.get_config()
  config.base.uri = "hf://google/flan-t5-xxl"
  config.rules = dict(
    attention=configuration.rule(
      r".*\.(cross_)?attention\.[qkvo]", "sira", experts=16, rank=4, k=4
    )
  )
  config.batches.length = 512
  config.batches.targets_length = 256
  config.optimizer = configuration.group(
    optimizers.adafactor,
    given=("steps", "gates"),
    learning_rate=5e-4,
    clip=1.0,
  )
  config.optimizer.kind = "adafactor"
  if argument == "tiny":
    config.update_from_flattened_dict(TINY)
  return config
