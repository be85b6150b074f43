# SPDX-License-Identifier: Apache-2.0
"""Settings of `train_step` that belong together, by the machine they suit."""

import dataclasses

from benchmarks.step_models import EncoderDecoder, Setting


@dataclasses.dataclass(frozen=True)
class Preset:
  """Settings that belong together; flags change them.

  Attributes:
    setting: the model and the batch.
    shares: of positions with a target, one table each.
    programs: what is measured.
    rounds: of turns.
    steps: of a turn, sent off one after another.
    side: of the matrices of the large product.
    plan: whether to compare SiRA's memory with `sira_jax.plan`.
  """

  setting: Setting
  shares: tuple[float, ...]
  programs: tuple[str, ...]
  rounds: int
  steps: int = 1
  side: int = 2048
  plan: bool = False


_METHODS = ("forward", "frozen", "lora", "sira", "molora", "sora")
PRESETS = {
  "cpu": Preset(
    Setting("135m", rows=8, length=64),
    shares=(1.0, 0.4),
    programs=(*_METHODS, "peft", "loops", "dense"),
    rounds=10,
  ),
  "cpu-long": Preset(
    Setting("135m", rows=2, length=512),
    shares=(1.0,),
    programs=("frozen", "lora", "sira", "dispatch", "gather", "peft"),
    rounds=7,
  ),
  "gpu": Preset(
    Setting("1b", rows=8, length=1024, dtype="bfloat16"),
    shares=(1.0,),
    programs=("sira", "frozen", "lora", "molora", "peft", "peft, compiled"),
    rounds=5,
    steps=4,
    side=8192,
    plan=True,
  ),
  "gpu-t5": Preset(
    EncoderDecoder(
      "t5-large", rows=16, length=512, targets_length=128, dtype="bfloat16"
    ),
    shares=(1.0,),
    programs=("sira", "frozen", "lora", "peft", "peft, compiled"),
    rounds=5,
    steps=4,
    side=8192,
    plan=True,
  ),
  "quick": Preset(
    Setting("tiny", rows=2, length=16, layers=1),
    shares=(0.5,),
    programs=("sira", "forward", "frozen", "lora", "dispatch"),
    rounds=2,
    side=64,
    plan=True,
  ),
}
