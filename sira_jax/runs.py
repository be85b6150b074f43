# SPDX-License-Identifier: Apache-2.0
"""A run's directory: its config, its metrics, and no second run in it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import os
import pathlib
import signal
import sys
from typing import Any
import zlib

from absl import app, flags, logging
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
    ValueError: as `check_workdir`.
  """
  check_workdir(workdir, config)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "config.json").exists():
      write(workdir / "config.json", configuration.as_json(config))
  except OSError as error:
    raise ValueError(f"The workdir {workdir} cannot be used: {error}") from None
  return workdir


def check_workdir(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks that a run of this config may use `workdir`; changes nothing.

  Raises:
    ValueError: it cannot be written, holds a run of another config (with the
      fields that differ), or holds files of something else.
  """
  file = workdir / "config.json"
  if file.exists():
    new = json.loads(configuration.as_json(config))
    changed = configuration.differences(_read(file), new)
    if changed:
      raise ValueError(
        f"{workdir} holds a run of another config; there and here:\n  "
        + "\n  ".join(changed)
        + "\nGive another --workdir, or the config of that run."
      )
  there = workdir.absolute()
  while not there.exists():
    there = there.parent
  if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
    what = "cannot be written" if there.is_dir() else "is no folder"
    raise ValueError(f"The workdir {workdir} cannot be used: {there} {what}.")
  # What `write` leaves if it is killed is not something else.
  known = f".{file.name}"
  foreign = (p for p in workdir.glob("*") if not p.name.startswith(known))
  if not file.exists() and any(foreign):
    raise ValueError(
      f"{workdir} is not empty and holds no run (no config.json). Give"
      " another --workdir."
    )


def load_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """The resolved config of the run in `workdir`.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  file = workdir / "config.json"
  if not file.exists():
    raise ValueError(
      f"There is no run in {workdir} (no config.json). Train first, or name"
      " its --workdir."
    )
  return ml_collections.ConfigDict(_read(file))


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
  """Ends the program with a mistake's message and no traceback.

  For what a script does before its first step, where a ValueError or the
  system's OSError is a user's mistake. With `$SIRA_JAX_TRACEBACK` set, the
  traceback is shown.
  """
  try:
    yield
  except (ValueError, OSError) as error:
    if os.environ.get("SIRA_JAX_TRACEBACK"):
      raise
    sys.exit(f"error: {error}")


@contextlib.contextmanager
def flag_errors() -> Iterator[None]:
  """As `user_errors`, for where flags are defined or read."""
  with user_errors():
    try:
      yield
    except AttributeError as error:
      (cause,) = error.args  # the KeyError of a ConfigDict, or a text
      name = cause.args[0] if isinstance(cause, KeyError) else cause
      raise ValueError(f"The config has no such field: {name}") from error
    except flags.Error as error:
      # Where a config file raises, config_flags makes its traceback the text.
      inner = error.__context__ and error.__context__.__context__
      raise ValueError(inner or error) from error


def start(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a script's `main`, given the arguments that flags leave over.

  A mistake in a flag ends with its message. So does Ctrl-C or SIGTERM where
  nothing has to be saved, and with the code `STOPPED`.
  """
  signal.signal(signal.SIGTERM, signal.default_int_handler)

  def parse(argv):
    with flag_errors():
      return flags.FLAGS(argv)

  try:
    app.run(main, flags_parser=parse)
  except KeyboardInterrupt:
    message = "\nStopped; the same command goes on from what is saved."
    print(message, file=sys.stderr, flush=True)
    sys.exit(STOPPED)


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
  _drop_halves(folder)
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


def _drop_halves(folder):
  """Removes what a process was killed in the midst of writing.

  JAX would warn of such an entry, and compile its program, at every start.
  What was written before the last look is not looked at again.
  """
  stamp = folder / "checked"
  last = stamp.stat().st_mtime_ns if stamp.exists() else 0
  new = [f for f in folder.glob("*-cache") if f.stat().st_mtime_ns >= last]
  if new:
    stamp.touch()
  for file in new:
    entry = file.read_bytes()
    try:
      # JAX compresses with zstandard instead where that is installed.
      if not entry.startswith(b"\x28\xb5\x2f\xfd"):
        zlib.decompress(entry)
    except zlib.error:
      file.unlink(missing_ok=True)


def _read(file):
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{file} cannot be read: {error}") from None


def _step(line):
  try:
    return json.loads(line)["step"]
  except ValueError:
    return float("inf")  # the half line of a process that was killed
