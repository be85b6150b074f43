# SPDX-License-Identifier: Apache-2.0
"""Libraries that one metric needs, imported when it is asked for."""

import importlib
import types

# The module -> the package that has it.
_PACKAGES = {
  "sacrebleu": "sacrebleu",
  "rouge_score.rouge_scorer": "rouge-score",
  "scipy.stats": "scipy",
  "seqeval.metrics": "seqeval",
}


def load(module: str) -> types.ModuleType:
  """The module.

  Raises:
    ModuleNotFoundError: if it is not installed; it says how to.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"This metric needs {_PACKAGES[module]}, and {error.name} is not"
      ' installed. Install the metrics extra: pip install "sira_jax[metrics]"',
      name=error.name,
    ) from error
