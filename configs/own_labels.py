# SPDX-License-Identifier: Apache-2.0
"""An encoder (BERT, MiniLM, E5, XLM-R) learns to label your own rows.

    python train.py --config=configs/own_labels.py --config.base.uri=FOLDER \
      --config.files.own.path=FILE --config.head.labels="('no','yes')"

where FOLDER is of a Hugging Face checkpoint, with its tokenizer, and each row
of FILE, such as my.jsonl, has a "text" and a "label". With
`--config.head.labels="()"` labels are numbers, and the head is a regression's;
`--config.files.own.metrics="('pearson',)"` scores it. The argument is a method,
as of the quickstart: `configs/own_labels.py:lora`.
"""

import ml_collections
from ml_collections import config_dict

from configs import own_data
from sira_jax import configuration
from sira_jax.adapters import heads

SETTINGS = {
  "lora": dict(rank=16),
  "sira": dict(experts=8, rank=4, k=2),
  "molora": dict(experts=8, rank=4),
}


def get_config(method: str = "lora") -> ml_collections.ConfigDict:
  """The config of a method, for one task named "own"."""
  if method not in SETTINGS:
    raise ValueError(
      f"Unknown argument {method!r}; there are {', '.join(SETTINGS)}."
    )
  config = own_data.get_config(method)
  config.base.uri = config_dict.placeholder(str)
  config.base.sha256 = None
  path = r"blocks\.\d+\.(attention\.[qkvo]|mlp\.w[io])"
  rule = configuration.rule(path, method, **SETTINGS[method])
  config.rules = dict(blocks=rule)
  config.head = configuration.group(
    heads.HeadFactory, labels=("no", "yes"), pooling="mean"
  )
  own = config.files.own
  own.inputs, own.targets = "{text}", "{label}"
  own.metrics = ("accuracy", "macro_f1")
  config.batches.update(batch_size=16, targets_length=1, pack=False)
  config.optimizer.learning_rate = 1e-3
  config.evaluation.examples = 500
  return config
