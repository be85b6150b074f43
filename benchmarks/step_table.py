# SPDX-License-Identifier: Apache-2.0
"""The table of `train_step`, and the machine that it was measured on."""

from collections.abc import Mapping, Sequence
import os
import pathlib
import platform
import subprocess

import flax
import jax

from sira_jax import markdown

ROOT = pathlib.Path(__file__).parents[1]
COLUMNS = {
  "ms": ("seconds", 1e3, ".1f"),
  "/ lora": ("ratio", 1, ".3f"),
  "cores: / lora": ("core_ratio", 1, ".3f"),
  "tokens/s": ("tokens_a_second", 1, ",.0f"),
  "added ms": ("added_seconds", 1e3, ".1f"),
  "temporary MiB": ("temporary", 2**-20, ",.0f"),
  "peak MiB": ("peak", 2**-20, ",.0f"),
  "planned MiB": ("planned", 2**-20, ",.0f"),
  "utilisation %": ("utilisation", 100, ".1f"),
  "with attention %": ("with_attention", 100, ".1f"),
}


def table(rows: Sequence[Mapping]) -> str:
  """Markdown, without columns of which nothing is known."""
  columns = {
    title: found
    for title, found in COLUMNS.items()
    if any(row.get(found[0]) is not None for row in rows)
  }
  lines = []
  for row in rows:
    cells = [
      "" if row.get(key) is None else format(row[key] * factor, form)
      for key, factor, form in columns.values()
    ]
    lines.append([row["program"], *cells])
  return markdown.table(["program", *columns], lines)


def here() -> dict:
  """The hardware, the versions and the commit."""
  device = jax.devices()[0]
  cpu = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    names = [n for n in info.read_text().splitlines() if "model name" in n]
    cpu = names[0].partition(":")[2].strip() if names else cpu
  versions = {"jax": jax.__version__, "flax": flax.__version__}
  try:
    from benchmarks import torch_peers
  except ImportError:
    pass
  else:
    versions |= torch_peers.VERSIONS
  command = ["git", "describe", "--always", "--dirty"]
  try:
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    commit = commit.stdout.strip() or None
  except OSError:
    commit = None
  return {
    "device": f"{device.device_kind} ({device.platform})",
    "cpu": f"{os.cpu_count()} x {cpu}",
    "versions": versions,
    "commit": commit,
  }
