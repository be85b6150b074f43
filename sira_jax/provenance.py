# SPDX-License-Identifier: Apache-2.0
"""What a run was started with, each time: its command, code and machine."""

from collections.abc import Mapping
import datetime
from importlib import metadata
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

from sira_jax import distributed, storage

FILE = "starts.jsonl"
# Those that are installed are named with their versions.
PACKAGES = (
  *("sira_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
  *("tensorflow", "seqio", "grain", "libtpu", "jax-cuda12-plugin"),
  "jax-cuda13-plugin",
)


def note(workdir: storage.Path) -> None:
  """Adds a line on this start to a run's starts.jsonl; the first process does.

  Lines that are damaged stay as they are, for nothing goes by them.
  """
  if not distributed.first():
    return
  file = workdir / FILE
  earlier = storage.text(file)
  storage.write(file, f"{earlier}{json.dumps(start())}\n")


def start() -> dict[str, Any]:
  """Of this process: when, command, commit, versions and devices.

  The commit is that of the folder this file is in, or null where git does not
  know it; "changed" says whether files differ from it.
  """
  devices = jax.devices()
  now = datetime.datetime.now(datetime.UTC)
  return {
    "time": now.isoformat(timespec="seconds"),
    "command": shlex.join(sys.argv),
    **commit(pathlib.Path(__file__).parent),
    "python": platform.python_version(),
    "versions": versions(),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "processes": jax.process_count(),
  }


def versions() -> Mapping[str, str]:
  """Package -> version, of those of `PACKAGES` that there are."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def commit(folder: pathlib.Path) -> dict[str, Any]:
  """ "commit" and "changed" of the git checkout that holds a folder."""
  try:
    name = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
  except (OSError, subprocess.SubprocessError):
    return {"commit": None, "changed": None}
  return {"commit": name, "changed": bool(changed)}


def _git(folder, *words):
  done = subprocess.run(
    ["git", "-C", str(folder), *words],
    capture_output=True,
    text=True,
    timeout=10,
    check=True,
  )
  return done.stdout.strip()
