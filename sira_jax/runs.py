# SPDX-License-Identifier: Apache-2.0
"""A run's directory: its config, its metrics, and no second run in it."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
import pathlib
import signal
import sys
from typing import Any

from absl import logging
import jax
import ml_collections

from sira_jax import configuration
from sira_jax.formats import sources

# What a stopped run exits with: "try again later" of BSD's sysexits.
STOPPED = 75


def open_workdir(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> pathlib.Path:
  """Makes or reopens a run's directory.

  Raises:
    ValueError: it cannot be written, holds a run of another config (with the
      fields that differ), or holds files of something else.
  """
  file = workdir / "config.json"
  new = json.loads(configuration.as_json(config))
  if file.exists():
    changed = configuration.differences(json.loads(file.read_text()), new)
    if changed:
      raise ValueError(
        f"{workdir} holds a run of another config; there and here:\n  "
        + "\n  ".join(changed)
        + "\nGive another --workdir, or the config of that run."
      )
    return workdir
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if any(workdir.iterdir()):
      raise ValueError(
        f"{workdir} is not empty and holds no run (no config.json). Give"
        " another --workdir."
      )
    write(file, configuration.as_json(config))
  except OSError as error:
    raise ValueError(f"The workdir {workdir} cannot be used: {error}") from None
  return workdir


def load_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """The resolved config of the run in `workdir`.

  Raises:
    ValueError: there is none.
  """
  file = workdir / "config.json"
  if not file.exists():
    raise ValueError(
      f"There is no run in {workdir} (no config.json). Train first, or name"
      " its --workdir."
    )
  return ml_collections.ConfigDict(json.loads(file.read_text()))


def write(file: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all, whenever the process may die."""
  temporary = file.with_name(f".{file.name}.{os.getpid()}")
  temporary.write_text(text)
  temporary.replace(file)


def listing(workdir: pathlib.Path) -> str:
  """The names of what a run left."""
  names = [f"{p.name}/" if p.is_dir() else p.name for p in workdir.iterdir()]
  return ", ".join(sorted(name for name in names if name[0] != "."))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Ends the program with a ValueError's message and no traceback.

  For what a script does before its first step, where a ValueError is a user's
  mistake.
  """
  try:
    yield
  except ValueError as error:
    if os.environ.get("SIRA_JAX_TRACEBACK"):
      raise
    sys.exit(f"error: {error}")


def refuse_arguments(argv: Sequence[str]) -> None:
  """Raises ValueError if flags left any argument over."""
  if argv[1:]:
    raise ValueError(
      f"Unexpected arguments {argv[1:]}: flags are written --NAME=VALUE."
    )


def begin_process() -> None:
  """What a script does first: quiets libraries, caches compiled programs.

  Compiled programs are kept in the user's cache folder for later starts.
  """
  logging.set_verbosity(logging.WARNING)
  folder = sources.cache_folder() / "compilations"
  jax.config.update("jax_compilation_cache_dir", str(folder))


class MetricsLog:
  """metrics.jsonl: one JSON object a line, in step order, appended.

  Args:
    file: the log.
    step: where the run goes on; later lines, of steps that will be taken
      again, are dropped.
  """

  def __init__(self, file: pathlib.Path, *, step: int):
    lines = file.read_text().splitlines() if file.exists() else []
    kept = [line for line in lines if _step(line) <= step]
    write(file, "".join(line + "\n" for line in kept))
    self._stream = file.open("a")

  def append(self, values: Mapping[str, Any]) -> None:
    """Adds a line; `values` has a "step"."""
    self._stream.write(json.dumps(values) + "\n")
    self._stream.flush()

  def close(self) -> None:
    """Closes the file."""
    self._stream.close()


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
  """Yields a list that Ctrl-C and SIGTERM append to, instead of killing.

  A second signal kills as usual.
  """
  received: list[signal.Signals] = []
  kinds = (signal.SIGINT, signal.SIGTERM)
  before = {kind: signal.getsignal(kind) for kind in kinds}

  def receive(number, _):
    received.append(signal.Signals(number))
    for kind in kinds:
      signal.signal(kind, before[kind])

  for kind in kinds:
    signal.signal(kind, receive)
  try:
    yield received
  finally:
    for kind in kinds:
      signal.signal(kind, before[kind])


def _step(line):
  try:
    return json.loads(line)["step"]
  except ValueError:
    return float("inf")  # the half line of a process that was killed
