"""Signals, threads, errors, arguments and compilations of a script."""

import os
import signal
import subprocess
import sys
import threading
import zlib

import pytest

from sira_jax import process


@pytest.fixture
def interruptible():
  """Python's handler of Ctrl-C; a shell's background job is born without."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals(kind, interruptible):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with process.stop_signals() as received:
    assert received == []
    os.kill(os.getpid(), kind)
    assert received == [kind]
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)  # the second one does as usual
      signal.pause()
  after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  assert before == after


def test_a_user_sees_a_message_and_no_traceback(monkeypatch):
  monkeypatch.delenv("SIRA_JAX_TRACEBACK", raising=False)
  with (
    pytest.raises(SystemExit, match="error: no such l"),
    process.user_errors(),
  ):
    raise ValueError("no such layer")
  monkeypatch.setenv("SIRA_JAX_TRACEBACK", "1")
  with pytest.raises(ValueError, match="no such layer"), process.user_errors():
    raise ValueError("no such layer")
  with pytest.raises(TypeError), process.user_errors():
    raise TypeError("ours")


def test_left_over_arguments_are_refused():
  process.refuse_arguments(["train.py"])
  with pytest.raises(ValueError, match=r"\['workdir=x'\]"):
    process.refuse_arguments(["train.py", "workdir=x"])


def test_a_compilation_cut_short_is_dropped(tmp_path):
  entry = zlib.compress(bytes(range(256)) * 9)
  whole, half = tmp_path / "a-cache", tmp_path / "b-cache"
  whole.write_bytes(entry)
  half.write_bytes(entry[: len(entry) // 2])
  (tmp_path / "c-cache").write_bytes(b"")
  process._drop_halves(tmp_path)
  assert list(tmp_path.glob("*-cache")) == [whole]


# XLA, broken off by an ordinary exit, aborts the process.
_COMPILING = """
import time
import jax, jax.numpy as jnp
from sira_jax import distributed, process

def compile():
  def long(x):
    for i in range(1500):
      x = jnp.sort(x @ x, axis=i % 2)
    return x
  jax.jit(long).lower(jnp.ones((64, 64))).compile()

def main(argv):
  process.beside(compile)
  time.sleep(3)
  with process.user_errors():
    {end}

distributed.define_flags()
process.start(process.together(main))
"""


@pytest.mark.parametrize(
  ("end", "code", "message"),
  [
    ("raise ValueError('no such layer')", 1, "error: no such layer"),
    ("raise KeyError('ours')", 1, "KeyError: 'ours'"),
    ("raise KeyboardInterrupt", process.STOPPED, "Stopped"),
  ],
)
def test_a_script_ends_while_a_thread_compiles(end, code, message):
  found = subprocess.run(
    [sys.executable, "-c", _COMPILING.format(end=end)],
    capture_output=True,
    text=True,
  )
  assert found.returncode == code, found.stderr
  assert message in found.stderr


def test_what_a_thread_raises_is_lost(monkeypatch):
  said = []
  monkeypatch.setattr(threading, "excepthook", said.append)
  process.beside(lambda: 1 / 0).join()
  assert not said
