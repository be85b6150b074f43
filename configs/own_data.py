# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M learns a task of your own rows, on a CPU.

    python train.py --config=configs/own_data.py --config.files.own.path=FILE

where each row of FILE, such as my.jsonl, has "inputs" and "targets". The other
fields of `files.Source` are flags, too; `docs/data.md` says what they mean. The
method is the quickstart's SiRA, or the argument: `configs/own_data.py:lora`.
"""

import ml_collections
from ml_collections import config_dict

from configs import quickstart
from sira_jax import configuration
from sira_jax.data import files


def get_config(method: str = "sira") -> ml_collections.ConfigDict:
  """The quickstart's config of a method, for one task named "own"."""
  config = quickstart.get_config(method)
  config.files = dict(
    own=configuration.group(
      files.Source, inputs="{inputs}\n", targets="{targets}"
    )
  )
  config.mixture = dict(
    tasks=("own",),
    languages=("en",),
    zero_shot=(),
    temperature=1.0,
    limits=dict(own=config_dict.placeholder(int)),
  )
  return config
