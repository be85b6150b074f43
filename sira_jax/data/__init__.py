# SPDX-License-Identifier: Apache-2.0
"""The only room that imports TensorFlow and seqio.

Nothing outside imports this package but assembly and validation, where a run
has no cache of its data, so that all else works where neither is installed.

TensorFlow only reads data here: its graphics devices are hidden from it, or it
would take the memory that JAX needs, and its start-up lines are discarded.
"""

import os

from sira_jax.data import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

try:
  with quiet.stderr():
    import seqio as _seqio  # noqa: F401
    import tensorflow as _tensorflow

    _tensorflow.config.set_visible_devices([], "GPU")
except ModuleNotFoundError as error:
  raise ModuleNotFoundError(
    f"sira_jax.data needs {error.name}, which is not installed. Install the"
    ' data extra: pip install "sira_jax[data]"; or read a cache of the data, by'
    " config.cache.folder, which needs none of it (docs/data.md).",
    name=error.name,
  ) from error
