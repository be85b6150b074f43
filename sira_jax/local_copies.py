# SPDX-License-Identifier: Apache-2.0
"""Files of cloud storage, copied once to a disk of this machine."""

import os
import pathlib
import shutil
import sys
import threading

from etils import epath


def folder() -> pathlib.Path:
  """Where fetched files are kept; `sources.fetch` says how to choose."""
  own = os.environ.get("SIRA_JAX_CACHE")
  if own:
    return pathlib.Path(own).expanduser()
  shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(shared).expanduser() / "sira_jax"


def place(uri: str) -> pathlib.Path:
  """Where the copy of SCHEME://BUCKET/PATH belongs.

  Raises:
    ValueError: a part of it is empty, or ".".
  """
  scheme, _, rest = uri.partition("://")
  parts = rest.split("/")
  # They become a path under the folder, which they must not leave.
  if not set(parts).isdisjoint({"", ".", ".."}):
    raise ValueError(
      f"Expected {scheme}://BUCKET/PATH without empty parts, got {uri}."
    )
  return folder().joinpath(scheme, *parts)


def copy(source: epath.Path, target: pathlib.Path) -> None:
  """Copies a file, unless it was and has not changed in size or time since."""
  stat = source.stat()
  if target.exists():
    known = target.stat()
    if (known.st_size, int(known.st_mtime)) == (stat.length, int(stat.mtime)):
      return
  print(f"copying {source}", file=sys.stderr, flush=True)
  target.parent.mkdir(parents=True, exist_ok=True)
  # Whole or not at all, and beside it: os.replace needs one file system.
  own = f"{os.getpid()}-{threading.get_ident()}"
  part = target.with_name(f".{target.name}.{own}")
  try:
    with source.open("rb") as reader, part.open("wb") as writer:
      shutil.copyfileobj(reader, writer, length=1 << 24)
    os.utime(part, (stat.mtime, stat.mtime))
    os.replace(part, target)
  finally:
    part.unlink(missing_ok=True)
