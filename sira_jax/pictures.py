# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a run found, by matplotlib."""

from collections.abc import Callable, Mapping, Sequence
import io
import os
import types
from typing import Any, BinaryIO

import numpy as np

from sira_jax import analysis, distributed, storage
from sira_jax.adapters import allocation as allocation_lib


def leave(draw: Callable[..., None], what: Any, file: storage.Path) -> None:
  """Draws a picture of `what` in `file`; without matplotlib, says so alone.

  Of several processes, the first does.
  """
  if not distributed.first():
    return
  try:
    stream = io.BytesIO()
    draw(what, stream)
  except ValueError as error:  # no reason to lose the results
    print(error)
    return
  storage.write(file, stream.getvalue())


def routing(
  report: analysis.Report, file: str | os.PathLike | BinaryIO
) -> None:
  """A picture: each expert's load by task and language, averaged by kind of
  site; and the mean entropy.

  Raises:
    ValueError: matplotlib is not installed.
  """
  figure = figures("expert load")
  kinds: dict[str, list[Mapping]] = {}
  for site, values in report["sites"].items():
    kinds.setdefault(site.rsplit(".", 1)[-1], []).append(values)
  columns = min(4, len(kinds))
  rows = -(-len(kinds) // columns)
  height = 0.22 * len(report["sets"]) + 1.0
  canvas = figure.Figure(
    figsize=(3.1 * columns + 1.6, rows * height + 0.6), layout="constrained"
  )
  axes = np.ravel(canvas.subplots(rows, columns, squeeze=False))
  for axis, (kind, members) in zip(axes, kinds.items(), strict=False):
    load = np.mean([values["load"] for values in members], axis=0)
    entropy = np.mean([values["entropy"] for values in members])
    uniform = 1 / load.shape[1]
    image = axis.imshow(
      load / uniform, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2
    )
    axis.set_title(f"{kind}  (entropy {entropy:.2f} nats)", fontsize=8)
    axis.set_xlabel("expert", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.set_yticks(range(len(report["sets"])), report["sets"])
  for axis in axes[len(kinds) :]:
    axis.set_axis_off()
  for index, axis in enumerate(axes):
    if index % columns:
      axis.set_yticklabels([])
  bar = canvas.colorbar(image, ax=axes.tolist(), shrink=0.6)
  bar.set_label("load, 1 = uniform", fontsize=7)
  bar.ax.tick_params(labelsize=6)
  canvas.savefig(file, dpi=130)


def allocation(
  counts: allocation_lib.Counts, file: str | os.PathLike | BinaryIO
) -> None:
  """A picture: how many experts each module of each layer has.

  Args:
    counts: site -> experts.
    file: to write.

  Raises:
    ValueError: matplotlib is not installed.
  """
  figure = figures("expert allocation")
  layers, modules, cells = allocation_lib.grid(counts)
  experts = np.full((len(layers), len(modules)), np.nan)
  for (layer, module), count in cells.items():
    experts[layers.index(layer), modules.index(module)] = count
  canvas = figure.Figure(
    figsize=(0.7 * len(modules) + 2.5, 0.22 * len(layers) + 1.2),
    layout="constrained",
  )
  axis = canvas.subplots()
  image = axis.imshow(experts, aspect="auto", cmap="viridis", vmin=0)
  axis.set_xticks(range(len(modules)), modules, rotation=45, ha="right")
  axis.set_yticks(range(len(layers)), layers)
  axis.tick_params(labelsize=6)
  for (row, column), count in np.ndenumerate(experts):
    if not np.isnan(count):
      # Viridis is dark below.
      color = "white" if count < 0.6 * np.nanmax(experts) else "black"
      style = dict(ha="center", va="center", fontsize=6, color=color)
      axis.text(column, row, f"{count:.0f}", **style)
  axis.set_title(f"{np.nansum(experts):.0f} experts", fontsize=8)
  bar = canvas.colorbar(image, ax=axis)
  bar.set_label("experts", fontsize=7)
  bar.ax.tick_params(labelsize=6)
  canvas.savefig(file, dpi=130)


def sparsity(
  study: Sequence[Mapping[str, Any]], file: str | os.PathLike | BinaryIO
) -> None:
  """Scores relative to stage 0 against the parameters that are left.

  Generalisation (on evaluation sets) beside memorisation (on examples that
  were trained on).

  Args:
    study: of each stage, what `stages.measure` gives.
    file: to be written.

  Raises:
    ValueError: matplotlib is not installed.
  """
  figure = figures("a sparsity study")
  canvas = figure.Figure(figsize=(9, 3.6), layout="constrained")
  parameters = [one["parameters"] for one in study]
  axes = canvas.subplots(1, 2, sharex=True, sharey=True)
  for axis, kind in zip(axes, ("generalisation", "memorisation"), strict=True):
    for name, first in study[0][kind].items():
      if first:
        relative = [100 * one[kind][name] / first for one in study]
        axis.plot(parameters, relative, marker="o", label=name)
    axis.set_title(kind, fontsize=9)
    axis.set_xlabel("parameters left", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
  axes[0].set_ylabel("percent of stage 0", fontsize=8)
  if axes[0].lines:
    axes[0].legend(fontsize=7)
  canvas.savefig(file, dpi=130)


def figures(subject: str) -> types.ModuleType:
  """matplotlib's module of figures.

  Raises:
    ValueError: it is not installed.
  """
  try:
    from matplotlib import figure
  except ImportError:
    raise ValueError(
      f"The picture of {subject} needs matplotlib: install sira_jax[plots]."
    ) from None
  return figure
