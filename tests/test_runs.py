"""A run's directory and its log."""

import errno
import fcntl
import json
import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from sira_jax import metrics_log, runs, storage


def config(rate=0.5):
  return ml_collections.ConfigDict({"a": {"rate": rate}, "names": ("x", "y")})


def test_a_workdir_is_made_and_reopened(tmp_path):
  workdir = tmp_path / "deep" / "run"
  for _ in range(2):
    os.close(runs.open_workdir(workdir, config()))
  assert runs.load_config(workdir).a.rate == 0.5
  assert list(runs.load_config(workdir).names) == ["x", "y"]
  assert {p.name for p in workdir.iterdir()} == {".lock", "config.json"}


def test_another_config_is_refused(tmp_path):
  os.close(runs.open_workdir(tmp_path, config()))
  with pytest.raises(ValueError, match=r"config\.a\.rate: 0\.5 -> 0\.7\n"):
    runs.open_workdir(tmp_path, config(0.7))


def test_the_place_of_a_cache_may_change(tmp_path):
  """Of a run without the group, too: `check_data` goes by what is in it."""
  os.close(runs.open_workdir(tmp_path, config()))
  for folder in ("one", "two", None):
    moved = config()
    moved.cache = dict(folder=folder)
    os.close(runs.open_workdir(tmp_path, moved))
    assert runs.load_config(tmp_path).cache.folder == folder


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.txt").touch()
  with pytest.raises(ValueError, match="not empty and holds no run"):
    runs.open_workdir(tmp_path, config())
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_process_killed_while_it_made_the_workdir(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, "replace", _killed)
    patch.setattr(storage, "lock", _lock_of_the_dead)
    runs.open_workdir(tmp_path, config())
  assert len(list(tmp_path.iterdir())) == 2
  runs.open_workdir(tmp_path, config())
  assert runs.load_config(tmp_path).a.rate == 0.5


def _killed(*_):
  raise KeyboardInterrupt


def _lock_of_the_dead(workdir, *of, lock=storage.lock, **given):
  os.close(lock(workdir, *of, **given))


HOLDER = """
import pathlib, sys
import ml_collections
from sira_jax import runs

config = ml_collections.ConfigDict({"a": {"rate": 0.5}, "names": ("x", "y")})
runs.open_workdir(pathlib.Path(sys.argv[1]), config)
print("open", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_train_in_one_workdir(tmp_path):
  workdir = tmp_path / "run"
  with subprocess.Popen(
    [sys.executable, "-c", HOLDER, workdir],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as other:
    try:
      assert other.stdout.readline() == b"open\n"
      with pytest.raises(ValueError, match="another process is training in"):
        runs.open_workdir(workdir, config())
      runs.check_workdir(workdir, config())  # only training excludes
    finally:
      other.kill()
  runs.open_workdir(workdir, config())


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(errno.ENOLCK, "no locks")

  monkeypatch.setattr(fcntl, "flock", flock)
  runs.open_workdir(tmp_path, config())
  assert runs.load_config(tmp_path).a.rate == 0.5
  assert "nothing keeps a second process out" in caplog.text


def test_a_file_is_no_workdir(tmp_path):
  file = tmp_path / "file"
  file.touch()
  with pytest.raises(ValueError, match="cannot be used"):
    runs.open_workdir(file, config())


def test_no_run_to_load(tmp_path):
  with pytest.raises(ValueError, match="no run in"):
    runs.load_config(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff"])
def test_a_broken_config_is_named(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content)
  for read in (runs.load_config, lambda w: runs.open_workdir(w, config())):
    with pytest.raises(ValueError, match=r"config\.json cannot be read.*copy"):
      read(tmp_path)


def test_what_may_change_on_the_way(tmp_path):
  """No step that was taken depends on it, and the run has the new one."""
  changed = config()
  changed.training = {"nonfinite": "stop", "steps": 3}
  os.close(runs.open_workdir(tmp_path, changed))
  changed.training.nonfinite = "skip"
  os.close(runs.open_workdir(tmp_path, changed))
  assert runs.load_config(tmp_path).training.nonfinite == "skip"
  changed.training.steps = 4
  with pytest.raises(ValueError, match=r"config\.training\.steps: 3 -> 4\n"):
    runs.open_workdir(tmp_path, changed)


def test_data_are_those_that_a_run_began_with(tmp_path, capsys):
  runs.check_data(tmp_path, "one", keep=False)
  assert list(tmp_path.iterdir()) == []
  for _ in range(2):
    runs.check_data(tmp_path, "one", keep=True)
  for keep in (True, False):
    with pytest.raises(ValueError, match=r"other data: .* one, now it is two"):
      runs.check_data(tmp_path, "two", keep=keep)
  (tmp_path / "data.json").write_text('{"da')
  runs.check_data(tmp_path, "one", keep=True)
  assert "DAMAGED" in capsys.readouterr().out
  with pytest.raises(ValueError, match="other data"):
    runs.check_data(tmp_path, "two", keep=False)


def test_log_goes_on_where_the_run_does(tmp_path):
  file = tmp_path / "metrics.jsonl"
  log = metrics_log.MetricsLog(file, step=0)
  for step in (1, 2, 3):
    log.append({"step": step, "loss": step / 2})
  log.close()
  with file.open("a") as stream:
    stream.write('{"step": 4, "lo')  # killed here
  log = metrics_log.MetricsLog(file, step=2)
  log.append({"step": 3, "loss": 9.0})
  log.close()
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [(x["step"], x["loss"]) for x in lines] == [(1, 0.5), (2, 1), (3, 9)]


def test_a_damaged_log(tmp_path, capsys):
  """Only what is damaged is dropped, and it is said how much."""
  file = tmp_path / "metrics.jsonl"
  assert metrics_log.logged(file) == 0
  rows = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
  file.write_text("\n".join(rows))
  assert metrics_log.logged(file) == 4
  rows[2:3] = ["17", "null", '{"loss": 3}', "\ud800"]
  file.write_bytes("\n".join(rows).encode(errors="surrogatepass"))
  assert metrics_log.logged(file) == 2
  metrics_log.MetricsLog(file, step=4).close()
  assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 4}\n'
  assert "lacks the lines of 1 steps" in capsys.readouterr().out


def test_a_log_is_json(tmp_path):
  """Which has no nan; and it knows which steps were left out."""
  file = tmp_path / "log"
  log = metrics_log.MetricsLog(file, step=0)
  for step, skipped in ((1, 0.0), (2, 1.0), (3, 1.0)):
    loss = float("nan") if skipped else 1.0
    log.append({"step": step, "loss": loss, "skipped": skipped})
  assert log.skipped == [2, 3]
  log.close()
  assert '"loss": null' in file.read_text() and "NaN" not in file.read_text()
  log = metrics_log.MetricsLog(file, step=2)
  log.close()
  assert log.skipped == [2]


def test_each_line_is_in_the_file_at_once(tmp_path):
  log = metrics_log.MetricsLog(tmp_path / "log", step=0)
  log.append({"step": 1})
  assert (tmp_path / "log").read_text() == '{"step": 1}\n'
  log.close()
