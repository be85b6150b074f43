# SPDX-License-Identifier: Apache-2.0
"""Pictures of an analysis, by matplotlib, as PNGs."""

from collections.abc import Iterator
import io

import numpy as np
from scipy.cluster import hierarchy

from sira_jax import pictures
from sira_jax.routing_numbers import Clusters, Layer, Numbers

_COLUMNS = 5
# Of shares, 1 is uniform; of cosines, -1 to 1.
_SHARES = dict(cmap="RdBu_r", vmin=0, vmax=2)
_COSINES = dict(cmap="RdBu_r", vmin=-1, vmax=1)


def by_module(numbers: Numbers) -> dict[str, dict[str, Layer]]:
  """Module -> block -> layer, in the model's order."""
  found: dict[str, dict[str, Layer]] = {}
  for layer in numbers.layers.values():
    found.setdefault(layer.module, {})[layer.block] = layer
  return found


def load(numbers: Numbers) -> bytes:
  """Each expert's load by block, a panel a module; 1 is uniform."""
  modules = by_module(numbers)
  blocks = max(map(len, modules.values()))
  figure, axes = _panels(len(modules), height=0.13 * blocks + 0.9)
  for axis, (module, layers) in zip(axes, modules.items(), strict=True):
    most = max(len(layer.load) for layer in layers.values())
    table = np.full((len(layers), most), np.nan)
    for row, layer in enumerate(layers.values()):
      table[row, : len(layer.load)] = layer.load * len(layer.load)
    image = axis.imshow(table, aspect="auto", **_SHARES)
    axis.set_title(module, fontsize=8)
    axis.set_xlabel("expert", fontsize=7)
    _rows(axis, list(layers))
  _bar(figure, axes, image, "load, 1 = uniform")
  return _png(figure)


def lines(numbers: Numbers, field: str, unit: str) -> bytes:
  """A number of each layer along the blocks, a line a module."""
  figure = pictures.figures("a routing analysis").Figure(
    figsize=(8, 3), layout="constrained"
  )
  axis = figure.subplots()
  blocks = list(dict.fromkeys(one.block for one in numbers.layers.values()))
  for module, layers in by_module(numbers).items():
    values = [getattr(layer, field) for layer in layers.values()]
    points = [
      (blocks.index(block), value)
      for block, value in zip(layers, values, strict=True)
      if value is not None
    ]
    if points:
      axis.plot(*zip(*points, strict=True), marker=".", label=module)
  _blocks(axis, blocks)
  axis.set_ylabel(unit, fontsize=8)
  axis.set_ylim(bottom=0)
  axis.legend(fontsize=6, ncols=2)
  return _png(figure)


def shares(numbers: Numbers, name: str) -> Iterator[tuple[str, bytes]]:
  """Of each module, a panel a block: each expert's share, by label."""
  labels = list(numbers.labels[name])
  if name == "language":
    labels = [
      f"{one} (zero-shot)" if one in numbers.zero_shot else one
      for one in labels
    ]
  for module, layers in by_module(numbers).items():
    figure, axes = _panels(len(layers), height=0.14 * len(labels) + 0.65)
    for axis, (block, layer) in zip(axes, layers.items(), strict=True):
      table = layer.shares[name] * len(layer.load)
      image = axis.imshow(table, aspect="auto", **_SHARES)
      axis.set_title(block, fontsize=7)
      _rows(axis, labels)
    _bar(figure, axes, image, "share, 1 = uniform")
    yield module, _png(figure)


def information(numbers: Numbers, name: str) -> bytes:
  """Mutual information along the blocks, beside that of permuted labels."""
  modules = by_module(numbers)
  figure, axes = _panels(len(modules), height=1.7, sharey=True)
  for axis, (module, layers) in zip(axes, modules.items(), strict=True):
    found = [layer.information[name] for layer in layers.values()]
    at = range(len(found))
    axis.fill_between(
      at,
      [one["baseline"] for one in found],
      [one["quantile"] for one in found],
      color="tab:orange",
    )
    axis.plot(at, [one["nats"] for one in found], marker=".")
    axis.set_title(module, fontsize=8)
    _blocks(axis, list(layers), most=5)
  # Only now: it ends the axes' growing with what is drawn.
  axes[0].set_ylim(bottom=0)
  axes[0].set_ylabel("nats", fontsize=7)
  return _png(figure)


def similarity(numbers: Numbers) -> Iterator[tuple[str, bytes]]:
  """Of each module with linear experts, a panel a block: their cosines."""
  for module, layers in by_module(numbers).items():
    there = {b: x for b, x in layers.items() if x.similarity is not None}
    if not there:
      continue
    figure, axes = _panels(len(there), height=1.6)
    for axis, (block, layer) in zip(axes, there.items(), strict=True):
      image = axis.imshow(layer.similarity, **_COSINES)
      axis.set_title(block, fontsize=7)
      axis.tick_params(labelsize=5)
    _bar(figure, axes, image, "cosine")
    yield module, _png(figure)


def clusters(found: Clusters) -> bytes:
  """A tree of languages, and the distances between them in its order."""
  count = len(found.languages)
  figure = pictures.figures("a routing analysis").Figure(
    figsize=(0.5 * count + 5, 0.3 * count + 1.5), layout="constrained"
  )
  tree, table = figure.subplots(1, 2)
  hierarchy.dendrogram(
    found.merges,
    labels=list(found.languages),
    orientation="left",
    color_threshold=0,
    above_threshold_color="0.3",
    ax=tree,
  )
  tree.set_xlabel("share of the choices", fontsize=7)
  tree.tick_params(labelsize=7)
  # The tree's first leaf is below.
  order = found.order[::-1]
  names = [found.languages[i] for i in order]
  image = table.imshow(found.distances[np.ix_(order, order)], cmap="viridis_r")
  table.set_xticks(range(count), names)
  table.set_yticks(range(count), names)
  table.tick_params(labelsize=7)
  _bar(figure, [table], image, "share of the choices")
  return _png(figure)


def _panels(count, *, height, **options):
  """A figure and so many axes, side by side in rows."""
  columns = min(_COLUMNS, count)
  rows = -(-count // columns)
  figure = pictures.figures("a routing analysis").Figure(
    figsize=(1.9 * columns + 1.3, rows * height + 0.3), layout="constrained"
  )
  axes = np.ravel(figure.subplots(rows, columns, squeeze=False, **options))
  for axis in axes[count:]:
    axis.set_axis_off()
  for axis in axes[:count]:
    axis.tick_params(labelsize=6)
  return figure, list(axes[:count])


def _rows(axis, names):
  """Names of a panel's rows, where it is the first of its row."""
  axis.set_yticks(range(len(names)), names)
  axis.tick_params(labelsize=6)
  if not axis.get_subplotspec().is_first_col():
    axis.set_yticklabels([])


def _blocks(axis, blocks, most=10):
  """Names of some blocks along the horizontal axis."""
  every = -(-len(blocks) // most)
  at = range(0, len(blocks), every)
  axis.set_xticks(at, [blocks[i] for i in at], rotation=40, ha="right")
  axis.tick_params(labelsize=6)
  axis.grid(alpha=0.3)


def _bar(figure, axes, image, label):
  bar = figure.colorbar(image, ax=axes, shrink=0.8)
  bar.set_label(label, fontsize=7)
  bar.ax.tick_params(labelsize=6)


def _png(figure):
  stream = io.BytesIO()
  figure.savefig(stream, format="png", dpi=110)
  return stream.getvalue()
