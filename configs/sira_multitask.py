# SPDX-License-Identifier: Apache-2.0
"""SiRA as in its paper, as far as that is known, on our tasks and our base.

    python train.py --config=configs/sira_multitask.py
    python train.py --config=configs/sira_multitask.py:tiny      two small steps

Source: Zhu et al. 2023 (arXiv 2311.09179), of which we know no official code.
A comment says of each value whether it is

    published       stated in the paper's abstract
    not confirmed   our memory of the paper, not checked against its text
    ours

Its tasks and base are others. As we remember the paper (not confirmed), they
are finance, forums and XTREME-UP in Swahili and Bengali, and a small PaLM 2.
Here they are spoken commands and dates in four languages, tested on four more,
and SmolLM2-135M. Not here: dropout of the adapters' input, and choosing the
best checkpoint by validation (both not confirmed). We have not run it to its
end: its batch wants an accelerator.
"""

import ml_collections
from ml_collections import config_dict

from configs import quickstart
from sira_jax import configuration, sharding
from sira_jax.training import optimizers

TINY = {
  "mixture.languages": ("en",),
  "mixture.zero_shot": ("it",),
  "batches.batch_size": 2,
  "mesh.data": 1,
  "batches.length": 96,
  "training.steps": 2,
  "training.checkpoint_every": 2,
  "evaluation.examples": 1,
  "decoding.max_new_tokens": 4,
  "decoding.batch_size": 4,
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """The config; "tiny" makes it two small steps."""
  if argument not in ("", "tiny"):
    raise ValueError(f"Unknown argument {argument!r}; there is tiny, or none.")
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.base = quickstart.get_config().base
  config.rules = dict(
    attention=configuration.rule(
      r"layers\.\d+\.self_attn\.[qkvo]_proj",  # not confirmed
      "sira",  # top k, a capacity limit, dropout of experts: published
      experts=16,  # not confirmed
      rank=4,  # not confirmed
      k=4,  # not confirmed
      alpha=None,  # ours
      compensate=False,  # weights as they come out of top k: not confirmed
      renormalise=False,  # not confirmed
      expert_dropout=0.5,  # not confirmed
      # Ours, and against the paper, whose limit shows a decoder the future:
      # see docs/fidelity.md. A causal limit: capacity=N, priority=position.
      capacity_factor=None,
      balance_coefficient=1e-2,  # ours; the paper's is not known
    )
  )
  config.mixture = dict(  # ours, all of it
    tasks=("intents", "dates"),
    languages=("en", "de", "fr", "es"),
    zero_shot=("it", "nl", "pt", "sv"),
    rates=dict(intents=15.0, dates=1.0),
    temperature=1.0,
    maximum=2000,
  )
  config.cache = dict(folder=config_dict.placeholder(str))  # docs/data.md
  config.batches = dict(
    batch_size=64,  # not confirmed
    length=128,  # ours, as the rest
    targets_length=config_dict.placeholder(int),  # of an encoder-decoder
    pack=False,
    too_long="skip",
    buckets=(),
  )
  config.optimizer = configuration.group(
    optimizers.adafactor,
    given=("steps", "gates"),
    learning_rate=5e-4,  # not confirmed, at a constant rate: ours
    clip=1.0,  # ours
  )
  config.optimizer.kind = "adafactor"  # not confirmed
  config.training = dict(
    steps=30_000,  # at most: not confirmed
    checkpoint_every=1000,  # ours
    microbatches=1,
    nonfinite="stop",
  )
  config.mesh = configuration.group(sharding.layout, given=("devices",))
  config.evaluation = dict(examples=64, split="test", rank=())
  config.decoding = dict(max_new_tokens=36, batch_size=64)
  if argument == "tiny":
    config.update_from_flattened_dict(TINY)
  return config
