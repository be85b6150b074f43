"""A run's directory, its log, signals and errors."""

import json
import os
import pathlib
import signal

import ml_collections
import pytest

from sira_jax import runs


def config(rate=0.5):
  return ml_collections.ConfigDict({"a": {"rate": rate}, "names": ("x", "y")})


def test_a_workdir_is_made_and_reopened(tmp_path):
  workdir = tmp_path / "deep" / "run"
  for _ in range(2):
    assert runs.open_workdir(workdir, config()) == workdir
  assert runs.load_config(workdir).a.rate == 0.5
  assert list(runs.load_config(workdir).names) == ["x", "y"]
  assert [p.name for p in workdir.iterdir()] == ["config.json"]


def test_another_config_is_refused(tmp_path):
  runs.open_workdir(tmp_path, config())
  with pytest.raises(ValueError, match=r"config\.a\.rate: 0\.5 -> 0\.7\n"):
    runs.open_workdir(tmp_path, config(0.7))


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.txt").touch()
  with pytest.raises(ValueError, match="not empty and holds no run"):
    runs.open_workdir(tmp_path, config())
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_process_killed_while_it_made_the_workdir(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, "replace", _killed)
    runs.open_workdir(tmp_path, config())
  assert len(list(tmp_path.iterdir())) == 1
  runs.open_workdir(tmp_path, config())
  assert runs.load_config(tmp_path).a.rate == 0.5


def _killed(*_):
  raise KeyboardInterrupt


def test_a_file_is_no_workdir(tmp_path):
  file = tmp_path / "file"
  file.touch()
  with pytest.raises(ValueError, match="cannot be used"):
    runs.open_workdir(file, config())


def test_no_run_to_load(tmp_path):
  with pytest.raises(ValueError, match="no run in"):
    runs.load_config(tmp_path)


def test_a_broken_config_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  for read in (runs.load_config, lambda w: runs.open_workdir(w, config())):
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
      read(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  file = tmp_path / "file"
  runs.write(file, "old")
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, "replace", _killed)
    runs.write(file, "new")
  assert file.read_text() == "old"
  runs.write(file, "new")
  assert file.read_text() == "new"


def test_listing(tmp_path):
  (tmp_path / "b").mkdir()
  for name in ("c", "a", ".hidden"):
    (tmp_path / name).touch()
  assert runs.listing(tmp_path) == "a, b/, c"


def test_log_goes_on_where_the_run_does(tmp_path):
  file = tmp_path / "metrics.jsonl"
  log = runs.MetricsLog(file, step=0)
  for step in (1, 2, 3):
    log.append({"step": step, "loss": step / 2})
  log.close()
  with file.open("a") as stream:
    stream.write('{"step": 4, "lo')  # killed here
  log = runs.MetricsLog(file, step=2)
  log.append({"step": 3, "loss": 9.0})
  log.close()
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [(x["step"], x["loss"]) for x in lines] == [(1, 0.5), (2, 1), (3, 9)]


def test_each_line_is_in_the_file_at_once(tmp_path):
  log = runs.MetricsLog(tmp_path / "log", step=0)
  log.append({"step": 1})
  assert (tmp_path / "log").read_text() == '{"step": 1}\n'
  log.close()


@pytest.fixture
def interruptible():
  """Python's handler of Ctrl-C; a shell's background job is born without."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals(kind, interruptible):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with runs.stop_signals() as received:
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
  with pytest.raises(SystemExit, match="error: no such l"), runs.user_errors():
    raise ValueError("no such layer")
  monkeypatch.setenv("SIRA_JAX_TRACEBACK", "1")
  with pytest.raises(ValueError, match="no such layer"), runs.user_errors():
    raise ValueError("no such layer")
  with pytest.raises(TypeError), runs.user_errors():
    raise TypeError("ours")


def test_left_over_arguments_are_refused():
  runs.refuse_arguments(["train.py"])
  with pytest.raises(ValueError, match=r"\['workdir=x'\]"):
    runs.refuse_arguments(["train.py", "workdir=x"])
