# SPDX-License-Identifier: Apache-2.0
"""A script's process: its signals, threads, errors and compiled programs."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import gc
import os
import signal
import sys
import threading
import traceback
import zlib

from absl import app, flags, logging
import jax

from sira_jax import distributed, local_copies

# What a stopped run exits with: "try again later" of BSD's sysexits.
STOPPED = 75
_beside: list[threading.Thread] = []


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
  # Tracing makes millions of objects that stay: look for garbage less often.
  gc.set_threshold(100_000)

  def parse(argv):
    with flag_errors():
      return flags.FLAGS(argv)

  try:
    app.run(main, flags_parser=parse)
  except KeyboardInterrupt:
    message = "\nStopped; the same command goes on from what is saved."
    print(message, file=sys.stderr, flush=True)
    sys.exit(STOPPED)


def beside(function: Callable[[], object]) -> threading.Thread:
  """Runs a function in a thread, which a script of `together` waits for.

  But where an error ends the script. What the function raises is lost.
  """

  def run():
    with contextlib.suppress(Exception):
      function()

  thread = threading.Thread(target=run)
  _beside.append(thread)
  thread.start()
  return thread


def together(main: Callable[[Sequence[str]], None]) -> Callable:
  """`main` of a script of which several processes may run as one.

  What ends one of them with an error ends it at once; the others follow (see
  `distributed`). So it ends while a thread of `beside` is at work.
  """

  def run(argv):
    logging.set_verbosity(logging.WARNING)
    with user_errors():
      distributed.join()
    try:
      main(argv)
    except SystemExit as end:
      if _awaited() and end.code not in (None, 0, STOPPED):
        if isinstance(end.code, str):
          print(end.code, file=sys.stderr)
        distributed.leave(end.code if isinstance(end.code, int) else 1)
      raise
    except KeyboardInterrupt:
      if _awaited():
        print("\nStopped at once; the same command goes on.", file=sys.stderr)
        distributed.leave(STOPPED)
      raise
    except Exception:
      if _awaited():
        traceback.print_exc()
        distributed.leave(1)
      raise

  return run


def _awaited() -> bool:
  """Whether an ordinary exit would wait for somebody: processes or threads."""
  return distributed.several() or any(t.is_alive() for t in _beside)


def refuse_arguments(argv: Sequence[str]) -> None:
  """Raises ValueError if flags left any argument over."""
  if argv[1:]:
    raise ValueError(
      f"Unexpected arguments {argv[1:]}: flags are written --NAME=VALUE."
    )


def prepare() -> None:
  """Keeps compiled programs in the user's cache folder, for later starts."""
  folder = local_copies.folder() / "compilations"
  _drop_halves(folder)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # By default, what took less than a second is not kept.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
  """Yields a list that Ctrl-C and SIGTERM append to, instead of killing.

  A second signal kills as usual. Where several processes run as one, the list
  stays empty: JAX itself listens to SIGTERM, and `distributed.stopping` tells.
  """
  received: list[signal.Signals] = []
  kinds = () if distributed.several() else (signal.SIGINT, signal.SIGTERM)
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
