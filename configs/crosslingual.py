# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: SIM905 - as literals, the lists would have a line for each item.
"""A multilingual encoder labels texts in languages that it was not trained on.

    python train.py --config=configs/crosslingual.py:intents_sira
    python train.py --config=configs/crosslingual.py:debian_lora

The argument is a task and a method of `SETTINGS`, all of one number of
parameters. The task is the intent of a spoken command, in 38 languages, or the
section of a Debian package, by its description in 16, which `python -m
sira_jax.data.prepare debian` fetches. It trains on English; languages are
`--config.mixture.languages` and `zero_shot`. The base is multilingual-e5-small,
or any encoder: `--config.base.uri=FOLDER`. `benchmarks/crosslingual.py`
compares the methods.
"""

import itertools

import ml_collections
from ml_collections import config_dict

from configs import quickstart
from sira_jax import configuration
from sira_jax.adapters import heads

# 2,985,984 parameters each, beside the head's; of scales that make an update of
# each as large as LoRA's.
SETTINGS = {
  "lora": dict(rank=36, alpha=36.0),
  "molora": dict(experts=8, rank=4, alpha=32.0),
  "sira": dict(experts=8, rank=4, k=2, alpha=4.0),
}
# The texts of packages have vectors that differ little: their head needs larger
# steps than adapters, or it learns how frequent the sections are, no more. So
# the rate is ten times the other task's, and the adapters' scales are smaller.
DEBIAN_RATE, DEBIAN_SCALE = 1e-2, 1 / 16
INTENTS = """
  HassBroadcast HassCancelAllTimers HassCancelTimer
  HassClimateGetTemperature HassClimateSetFanMode HassClimateSetTemperature
  HassDecreaseTimer HassFanSetSpeed HassGetCurrentDate HassGetCurrentTime
  HassGetState HassGetWeather HassIncreaseTimer HassLawnMowerDock
  HassLawnMowerStartMowing HassLightSet HassListAddItem HassListCompleteItem
  HassListRemoveItem HassMediaNext HassMediaPause HassMediaPlayerMute
  HassMediaPlayerUnmute HassMediaPrevious HassMediaSearchAndPlay
  HassMediaUnpause HassNevermind HassPauseTimer HassRespond HassSetPosition
  HassSetVolume HassSetVolumeRelative HassShoppingListAddItem
  HassShoppingListCompleteItem HassStartTimer HassTimerStatus HassTurnOff
  HassTurnOn HassUnpauseTimer HassVacuumCleanArea HassVacuumReturnToBase
  HassVacuumStart
""".split()
# Those of bookworm.
SECTIONS = """
  admin cli-mono comm database debug devel doc editors education electronics
  embedded fonts games gnome gnu-r gnustep golang graphics hamradio haskell
  httpd interpreters introspection java javascript kde kernel libdevel libs
  lisp localization mail math metapackages misc net news ocaml oldlibs
  otherosfs perl php python ruby rust science shells sound tasks tex text
  utils vcs video web x11 xfce zope
""".split()
LANGUAGES = {
  "intents": """
    en ar bg ca cs cy da de el es eu fi fr ga gl hr hu hy it ko lt lv ml
    nb ne nl pl pt ro ru sk sl sr sv th uk vi zh
  """.split(),
  "debian": "en cs da de es fr it ja ko pl pt pt-BR ru sk uk zh".split(),
}
_ARGUMENTS = [
  f"{task}_{name}" for task, name in itertools.product(LANGUAGES, SETTINGS)
]


def get_config(argument: str = "intents_sira") -> ml_collections.ConfigDict:
  """The config of a task and a method, such as "debian_lora"."""
  if argument not in _ARGUMENTS:
    raise ValueError(
      f"Unknown argument {argument!r}; there are {', '.join(_ARGUMENTS)}."
    )
  task, method = argument.split("_")
  config = quickstart.get_config(method)
  config.base.uri = "hf://intfloat/multilingual-e5-small"
  config.base.sha256 = config_dict.placeholder(str)
  path = r"blocks\.\d+\.(attention\.[qkvo]|mlp\.w[io])"
  rule = configuration.rule(path, method, **SETTINGS[method])
  config.rules = dict(blocks=rule)
  config.optimizer.learning_rate = 1e-3
  config.mixture = dict(
    tasks=("intent_names",),
    languages=("en",),
    zero_shot=tuple(x for x in LANGUAGES[task] if x != "en"),
    temperature=1.0,
    limits=dict(intent_names=config_dict.placeholder(int)),
  )
  labels, length, texts = INTENTS, 64, 4
  if task == "debian":
    config.suites = dict(debian=dict(folder="data/debian", ending=""))
    config.mixture.tasks = ("debian_section",)
    config.mixture.limits = dict(debian_section=config_dict.placeholder(int))
    labels, length, texts = SECTIONS, 128, 4
    rule.alpha *= DEBIAN_SCALE
    config.optimizer.learning_rate = DEBIAN_RATE
  config.head = configuration.group(
    heads.HeadFactory, labels=tuple(labels), pooling="mean"
  )
  config.batches.update(
    batch_size=8, length=length, targets_length=texts, pack=True
  )
  config.training.update(steps=300, checkpoint_every=100)
  config.evaluation.update(examples=50)
  return config
