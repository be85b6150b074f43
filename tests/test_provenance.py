"""What a run's starts.jsonl says."""

import json
import pathlib
import subprocess
import sys

import jax

from sira_jax import provenance
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[1]


def test_each_start_of_a_run(tmp_path, monkeypatch):
  """A line each, the first one first; results are not computed again."""
  config = tiny_run.config("lora", tiny_run.base(tmp_path))
  workdir = tmp_path / "run"
  monkeypatch.setattr(sys, "argv", ["train.py", "--config=a b.py"])
  tiny_run.main(monkeypatch, config, workdir)
  (workdir / "results.json").unlink()
  monkeypatch.setattr(sys, "argv", ["train.py"])
  tiny_run.main(monkeypatch, config, workdir)
  lines = (workdir / provenance.FILE).read_text().splitlines()
  one, two = map(json.loads, lines)
  assert one["command"] == "train.py '--config=a b.py'"
  assert two["command"] == "train.py"
  assert one["time"] <= two["time"] and one["time"].endswith("+00:00")
  assert one["versions"]["jax"] == jax.__version__
  assert one["devices"] == "8 x cpu" and one["processes"] == 1


def test_a_damaged_line_is_no_reason_to_stop(tmp_path):
  file = tmp_path / provenance.FILE
  file.write_bytes(b"\xff\xfe{\n")
  provenance.note(tmp_path)
  damaged, own = file.read_text().splitlines()
  assert "{" in damaged and json.loads(own)["processes"] == 1


def test_the_commit(tmp_path):
  """Of the checkout, changed or not; none outside of one."""
  assert provenance.commit(tmp_path) == {"commit": None, "changed": None}

  def git(*words):
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
      ["git", "-C", str(tmp_path), *name, *words],
      check=True,
      capture_output=True,
      text=True,
    )
    return done.stdout.strip()

  git("init", "-q")
  (tmp_path / "file").write_text("1")
  git("add", "file")
  git("commit", "-qm", "One")
  head = git("rev-parse", "HEAD")
  (tmp_path / "other").write_text("not tracked")
  assert provenance.commit(tmp_path) == {"commit": head, "changed": False}
  (tmp_path / "file").write_text("2")
  assert provenance.commit(tmp_path) == {"commit": head, "changed": True}


def test_without_git(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert provenance.commit(ROOT) == {"commit": None, "changed": None}
