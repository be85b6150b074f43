"""Signals, errors, arguments and compilations of a script."""

import os
import signal
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
