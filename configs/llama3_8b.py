# SPDX-License-Identifier: Apache-2.0
"""Llama 3 8B learns spoken commands and dates by SiRA, its weights divided.

    python train.py --config=configs/llama3_8b.py --plan --topology=v5e:4x4
    python train.py --config=configs/llama3_8b.py --distributed
    python train.py --config=configs/llama3_8b.py:tiny     SmolLM2, two steps

For eight GPUs or sixteen TPU chips, and more: every device has a part of every
weight and of a batch's rows (`config.mesh`). The weights come from the Hugging
Face hub, for whoever has accepted their terms. Nobody has run it yet, but for
the tiny form; docs/scale.md has what it needs. The settings are ours.
"""

import ml_collections
from ml_collections import config_dict

from configs import quickstart
from sira_jax import configuration, sharding

TINY = {
  "base.dtype": "float32",
  "base.remat": True,
  "base.scan": True,
  "mixture.languages": ("en",),
  "mixture.zero_shot": ("it",),
  "batches.batch_size": 8,
  "batches.length": 96,
  "optimizer.warmup_steps": 1,
  "training.steps": 2,
  "training.checkpoint_every": 2,
  "evaluation.examples": 1,
  "decoding.max_new_tokens": 4,
  "decoding.batch_size": 8,
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """The config; "tiny" makes it two small steps of a small base."""
  if argument not in ("", "tiny"):
    raise ValueError(f"Unknown argument {argument!r}; there is tiny, or none.")
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.base = dict(
    uri="hf://meta-llama/Meta-Llama-3-8B",
    sha256=config_dict.placeholder(str),
    dtype="bfloat16",
    remat=True,
    scan=True,
    prefix=False,
  )
  config.rules = dict(
    attention=configuration.rule(
      r"layers\.\d+\.self_attn\.[qkvo]_proj", "sira", experts=16, rank=4, k=4
    )
  )
  config.mixture = dict(
    tasks=("intents", "dates"),
    languages=("en", "de", "fr", "es", "it", "nl", "pt", "sv"),
    zero_shot=("pl", "cs", "ru"),
    rates=dict(intents=15.0, dates=1.0),
    temperature=1.0,
    maximum=2000,
  )
  config.cache = dict(folder=config_dict.placeholder(str))  # docs/data.md
  config.batches = dict(
    batch_size=64,
    length=1024,
    targets_length=config_dict.placeholder(int),  # of an encoder-decoder
    pack=True,
    too_long="skip",
    buckets=(),
  )
  config.optimizer = dict(
    kind="adamw",
    learning_rate=5e-4,
    warmup_steps=50,
    final_fraction=0.1,
    weight_decay=0.0,
    b1=0.9,
    b2=0.999,
    clip=1.0,
  )
  config.training = dict(
    steps=1000, checkpoint_every=100, microbatches=1, nonfinite="stop"
  )
  config.mesh = configuration.group(
    sharding.layout, given=("devices",), data=1, fsdp=-1
  )
  config.evaluation = dict(examples=64, split="test", rank=())
  config.decoding = dict(max_new_tokens=48, batch_size=64)
  if argument == "tiny":
    config.base.update(quickstart.get_config().base)
    config.update_from_flattened_dict(TINY)
  return config
