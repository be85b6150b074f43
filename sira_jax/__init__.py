# SPDX-License-Identifier: Apache-2.0
"""Sparse mixtures of low-rank adapters for large language models.

from flax import nnx
import sira_jax

rules = [sira_jax.Rule(r".*_proj", sira_jax.METHODS["sira"](experts=8))]
sites = sira_jax.adapt(model, rules, rngs=nnx.Rngs(0))
"""

from sira_jax.adapters.methods import METHODS
from sira_jax.adapters.pruning import prune
from sira_jax.adapters.surgery import Rule, adapt, merge
from sira_jax.adapters.variables import AdapterConstant, AdapterParam, Trainable

__all__ = [
  "METHODS",
  "AdapterConstant",
  "AdapterParam",
  "Rule",
  "Trainable",
  "adapt",
  "merge",
  "prune",
]
