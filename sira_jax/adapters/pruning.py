# SPDX-License-Identifier: Apache-2.0
"""Removes the ranks whose gate is zero: what SoRA leaves is a smaller LoRA."""

import dataclasses

from flax import nnx
import numpy as np

from sira_jax.adapters import surgery
from sira_jax.adapters.adapter import Adapter
from sira_jax.adapters.variables import AdapterParam, GateParam


def prune(model: nnx.Module, *, fold: bool = True) -> tuple[surgery.Site, ...]:
  """Removes, in place, every rank with a gate of exactly zero.

  The model computes what it did, with less: a layer's A and B keep the ranks
  that are left (of several experts, as many as the one with most), and a layer
  with none left loses its adapter. An expert with none left goes too, but its
  column of the router stays, since the probabilities of the others depend on
  it. The scale stays alpha / (largest rank).

  Source: Ding et al. 2023 (SoRA), of which the released code has no pruning.

  Args:
    model: adapted.
    fold: multiply the gates into B and drop them: plain LoRA is left. False
      keeps them, for more training.

  Returns:
    The sites that are left, with their new ranks.

  Raises:
    ValueError: no adapter of the model has gates.
  """
  layers = _gated(model)
  if not layers:
    raise ValueError(
      "The model has no gates to prune by: adapt it with sora, or with sira and"
      " a gate."
    )
  for layer in layers.values():
    _prune(layer, fold)
  return surgery.sites(model)


def remaining(model: nnx.Module) -> dict[str, tuple[int, int]]:
  """path -> (ranks with a gate that is not zero, ranks) of each gated layer."""
  return {
    path: (int((gate != 0).sum()), gate.size)
    for path, layer in _gated(model).items()
    for gate in [np.asarray(layer.adapter.g[...])]
  }


def _gated(model):
  return {
    path: layer
    for path, layer in surgery.adapted(model).items()
    if isinstance(layer.adapter, Adapter) and layer.adapter.g is not None
  }


def _prune(layer, fold):
  adapter, factory = layer.adapter, layer.adapter.factory
  g = np.asarray(adapter.g[...])
  counts = (g != 0).sum(axis=1)
  experts, rank = np.flatnonzero(counts), int(counts.max())
  if not rank:
    surgery.remove(layer)
    return
  # Each expert's live ranks first, in their order, filled up with dead ones.
  order = np.argsort(g == 0, axis=1, stable=True)[experts, :rank]
  rows = experts[:, None]
  a = adapter.A[...][:, rows, order]
  b, g = adapter.B[...][rows, order], adapter.g[...][rows, order]
  live = factory.live or tuple(range(factory.experts))
  live = tuple(live[i] for i in experts)
  if len(live) == factory.experts:
    live = None
  factory = dataclasses.replace(factory, rank=rank, live=live)
  adapter.A = AdapterParam(a, **adapter.A.get_metadata())
  if fold:
    b, adapter.g = b * g[..., None], None
    method = "lora" if factory.method == "sora" else factory.method
    factory = dataclasses.replace(factory, gate=None, method=method)
  else:
    adapter.g = GateParam(g, **adapter.g.get_metadata())
  adapter.B = AdapterParam(b, **adapter.B.get_metadata())
  adapter.factory = factory
