# SPDX-License-Identifier: Apache-2.0
"""Metric functions of targets and predictions, as seqio's, in percent.

They need no TensorFlow. Targets and predictions are texts; a target may be of
several right answers (`references.py`).
"""

from collections.abc import Callable
import functools

from sira_jax.metrics.answers import squad, token_f1
from sira_jax.metrics.entities import entity_f1
from sira_jax.metrics.generation import bleu, chrf, rouge
from sira_jax.metrics.labels import (
  accuracy,
  exact_match,
  f1,
  intent_accuracy,
  macro_f1,
  matthews,
)
from sira_jax.metrics.numbers import pearson, spearman
from sira_jax.metrics.tags import span_f1

METRICS: dict[str, Callable[..., dict[str, float]]] = {
  "exact_match": exact_match,
  "accuracy": accuracy,
  "intent_accuracy": intent_accuracy,
  "token_f1": token_f1,
  "macro_f1": macro_f1,
  "f1_equivalent": functools.partial(f1, positive="equivalent"),  # MRPC
  "f1_duplicate": functools.partial(f1, positive="duplicate"),  # QQP
  "f1_true": functools.partial(f1, positive="True"),  # MultiRC
  "matthews": matthews,
  "pearson": pearson,
  "spearman": spearman,
  "squad": squad,
  "bleu": bleu,
  "chrf": chrf,
  "rouge": rouge,
  "span_f1": span_f1,
  "entity_f1": entity_f1,
}
"""Those that a config may name."""
