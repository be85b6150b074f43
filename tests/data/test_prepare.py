# SPDX-License-Identifier: Apache-2.0
"""A prepared folder is whole or not there, and is written once."""

import os
import pathlib
import subprocess
import sys

import pytest

from sira_jax import storage
from sira_jax.data import prepare

ROOT = pathlib.Path(__file__).parents[2]
ROWS = {
  language: {
    "train": [{"text": f"é {language}"}] * 3,
    "validation": [],
    "test": [{"text": "b"}],
  }
  for language in ("en", "fr")
}


@pytest.fixture
def source():
  """One that counts how often it fetches."""
  fetched = []

  def fetch(folder):
    folder.mkdir(exist_ok=True)
    fetched.append(folder)
    return folder

  made = prepare.Source(
    what="two languages",
    licence="free",
    size="1 kB",
    fetch=fetch,
    convert=lambda folder: (ROWS, {"notes": ["one left out"]}),
  )
  return made, fetched


def write(source, out):
  return prepare.prepare("tiny", source[0], str(out), say=lambda text: None)


def test_it_is_written_once(source, tmp_path):
  out = tmp_path / "deep" / "tiny"
  said = write(source, out)
  assert "language        train  validation        test\n" in said
  assert "fr                  3           0           1\none left out" in said
  assert f'suites = dict(tiny=dict(folder="{out}"))' in said
  assert (out / "fr" / "train.jsonl").read_text() == '{"text": "é fr"}\n' * 3
  assert (out / "fr" / "validation.jsonl").read_text() == ""
  before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
  assert "is prepared already" in write(source, out)
  assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
  assert len(source[1]) == 1
  assert list(out.parent.iterdir()) == [out]


def test_a_damaged_one_is_said(source, tmp_path):
  out = tmp_path / "tiny"
  write(source, out)
  with pytest.raises(ValueError, match="has tiny in format 1, not other in"):
    prepare.prepare("other", source[0], str(out), say=print)
  file = out / "fr" / "train.jsonl"
  file.write_text(file.read_text().replace("é", "è"))
  with pytest.raises(ValueError, match=r"fr/train.jsonl is not as it was writ"):
    write(source, out)
  file.unlink()
  with pytest.raises(ValueError, match=r"fr/train.jsonl is not as it was writ"):
    write(source, out)
  (out / "prepared.json").write_text("{")
  with pytest.raises(ValueError, match="was not written by this command"):
    write(source, out)
  assert len(source[1]) == 1


def test_half_of_one_is_none(source, tmp_path, monkeypatch):
  """Wherever it ends in writing, there is no folder, and the next is whole."""
  out, put = tmp_path / "tiny", storage.write
  for number in range(7):  # 6 files and the manifest
    left = iter(range(number))

    def fail(file, text, left=left):
      if next(left, None) is None:
        file.write_text(text[: len(text) // 2])
        raise OSError(28, "No space left on device")
      put(file, text)

    monkeypatch.setattr(storage, "write", fail)
    with pytest.raises(OSError, match="No space"):
      write(source, out)
    assert not out.exists()
  monkeypatch.setattr(storage, "write", put)
  write(source, out)
  assert len(prepare.check(out, "tiny")["files"]) == 6


def test_two_at_once(source, tmp_path):
  draft = tmp_path / ".tiny.draft"
  draft.mkdir()
  lock = storage.lock(draft, "prepares", flag="--out")
  with pytest.raises(
    ValueError, match=r"another process prepares in .* another --out"
  ):
    write(source, tmp_path / "tiny")
  os.close(lock)
  write(source, tmp_path / "tiny")


def test_a_mistake_is_one_line(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "sira_jax.data.prepare", "debain"],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: Expected one of debian")
  assert "got debain. Built-in tasks" in line
