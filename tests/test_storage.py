# SPDX-License-Identifier: Apache-2.0
"""Files on a disk; tests/test_buckets.py has those in a bucket."""

import errno
import json
import os
import pathlib
import resource
import stat

import pytest

from sira_jax import storage


def _killed(*_):
  raise KeyboardInterrupt


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  file = tmp_path / "file"
  storage.write(file, "old")
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, "replace", _killed)
    storage.write(file, "new")
  assert file.read_text() == "old"
  storage.write(file, "new")
  assert file.read_text() == "new"


def test_where_there_is_no_space_nothing_is_left(tmp_path):
  """Files may not grow beyond 1 kB, as if the disk were full."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  storage.write(tmp_path / "file", b"old")
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
  try:
    with pytest.raises(OSError, match="File too large"):
      storage.write(tmp_path / "file", "x" * 2000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert (tmp_path / "file").read_bytes() == b"old"
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_damaged_is_moved_aside(tmp_path, capsys):
  file = tmp_path / "a.json"
  assert storage.load(file, json.loads) is None
  assert capsys.readouterr().out == ""
  file.write_text("[1, 2]")
  assert storage.load(file, json.loads) == [1, 2]
  for content in (b"[1, 2", b"\xff"):
    file.write_bytes(content)
    assert storage.load(file, json.loads) is None
    assert f"DAMAGED: {file} cannot be read" in capsys.readouterr().out
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
    "a.json.damaged": b"[1, 2",
    "a.json.damaged2": b"\xff",
  }


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  did, sync, replace = [], os.fsync, pathlib.Path.replace

  def synced(descriptor):
    state = os.fstat(descriptor)
    folder = stat.S_ISDIR(state.st_mode)
    did.append("folder" if folder else f"{state.st_size} bytes")
    sync(descriptor)

  def replaced(*paths):
    did.append("name")
    return replace(*paths)

  monkeypatch.setattr(os, "fsync", synced)
  monkeypatch.setattr(pathlib.Path, "replace", replaced)
  storage.write(tmp_path / "file", "text")
  assert did == ["4 bytes", "name", "folder"]


def test_listing(tmp_path):
  (tmp_path / "b").mkdir()
  for name in ("c", "a", ".hidden"):
    (tmp_path / name).touch()
  assert storage.listing(tmp_path) == "a, b/, c"


@pytest.mark.parametrize(
  "error, words",
  [
    (OSError(errno.ENOSPC, "No space"), "no space left for the run in"),
    (OSError(errno.EDQUOT, "Quota"), "no space left for the run in"),
    (FileNotFoundError(errno.ENOENT, "No file", "rows.json"), "put it back"),
    (PermissionError(errno.EACCES, "Denied", "rows.json"), "allow it"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
  ],
)
def test_what_the_system_refuses_is_one_error(
  tmp_path, monkeypatch, error, words
):
  monkeypatch.delenv("SIRA_JAX_TRACEBACK", raising=False)
  with pytest.raises(SystemExit) as raised, storage.errors(tmp_path):
    raise error
  message = str(raised.value)
  assert message.startswith("error: ") and "\n" not in message
  assert words in message and "the same command goes on" in message
  monkeypatch.setenv("SIRA_JAX_TRACEBACK", "1")
  with pytest.raises(OSError), storage.errors(tmp_path):
    raise error


def test_places():
  assert storage.place("runs/a") == pathlib.Path("runs/a")
  there = storage.place("gs://bucket/runs/a")
  assert str(there / "x.json") == "gs://bucket/runs/a/x.json"
  assert storage.in_bucket(there) and not storage.in_bucket(pathlib.Path("gs"))


@pytest.mark.parametrize(
  "name, words",
  [
    ("s3://bucket/run", "can be kept nowhere else"),
    ("gs://", "names no bucket"),
    ("gs:///run", "names no bucket"),
  ],
)
def test_what_is_no_place(name, words):
  with pytest.raises(ValueError, match=words):
    storage.place(name)


def test_what_has_to_be_on_a_disk():
  assert storage.on_disk("a/b", flag="--out") == pathlib.Path("a/b")
  with pytest.raises(ValueError, match="on a disk: give one as --out"):
    storage.on_disk("gs://bucket/run/export/native", flag="--out")
