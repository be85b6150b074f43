# SPDX-License-Identifier: Apache-2.0
"""Runs in a bucket, of a server on this machine that answers as GCS does."""

import json
import socket

from etils.epath import gpath
from fsspec import asyn
from gcp_storage_emulator import server
import pytest

from sira_jax import adapted, checkpoints, metrics_log, runs, storage
from sira_jax.cached import layout
from tests import tiny_run

CHANGES = {"training.steps": 6, "training.checkpoint_every": 2}
# Of a run whose last checkpoint was scored: what may differ is not told apart.
SCORES = ("before.json", "results.json", "results.md", "predictions.jsonl")


@pytest.fixture(scope="module")
def bucket():
  """The address of an empty bucket."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  address = f"http://localhost:{port}"
  names = {
    "STORAGE_EMULATOR_HOST": address,
    "FSSPEC_GCS_TOKEN": "anon",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "TENSORSTORE_GCS_HTTP_URL": address,
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
  }
  with pytest.MonkeyPatch.context() as patch:
    for name, value in names.items():
      patch.setenv(name, value)
    # TensorFlow's own client knows the real place alone.
    patch.setattr(gpath, "_is_tf_installed", lambda: False)
    import gcsfs  # which reads the names above

    # The server has no moveTo, which is waited for half a minute.
    move = asyn.AsyncFileSystem._mv_file
    patch.setattr(gcsfs.core.GCSFileSystem, "_mv_file", move)
    with server.create_server(
      "localhost", port, in_memory=True, default_bucket="bucket"
    ):
      yield "gs://bucket"


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
  """All starts share what they compile."""
  with tiny_run.compilations(tmp_path_factory.mktemp("cache")):
    yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def local(base, tmp_path_factory):
  """A run on a disk that nothing happened to."""
  workdir = tmp_path_factory.mktemp("local") / "run"
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.main(patch, tiny_run.config("sira", base | CHANGES), workdir)
  return workdir


def train(patch, base, workdir, **more):
  tiny_run.main(patch, tiny_run.config("sira", base | CHANGES | more), workdir)


def interrupt(patch, base, workdir, *, step):
  """Trains until a step is to be logged; its process is gone then."""
  append = metrics_log.MetricsLog.append

  def dying(log, values):
    if values["step"] == step:
      raise KeyboardInterrupt
    append(log, values)

  with patch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(metrics_log.MetricsLog, "append", dying)
    # What a process that is gone would not do.
    patch.setattr(storage.Lines, "close", lambda lines: None)
    train(patch, base, workdir)


def losses(workdir):
  lines = storage.text(workdir / "metrics.jsonl").splitlines()
  return [(one["step"], one["loss"]) for one in map(json.loads, lines)]


def same(one, other):
  """Whether two runs have the same files, losses and scores."""
  assert storage.listing(one) == storage.listing(other).replace(".lock, ", "")
  assert losses(one) == losses(other) and len(losses(one)) == 6
  for name in SCORES:
    assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_an_interrupted_run_goes_on_as_on_a_disk(
  bucket, base, local, monkeypatch, capsys, tmp_path
):
  monkeypatch.chdir(tmp_path)
  workdir = storage.place(f"{bucket}/deep/run")
  interrupt(monkeypatch, base, workdir, step=4)
  # An object cannot grow: it has what there was at the last checkpoint.
  assert [step for step, _ in losses(workdir)] == [1, 2]
  with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
    assert saved.latest() == 2
  train(monkeypatch, base, workdir)
  assert "Continuing at step 2 of 6" in capsys.readouterr().out
  same(workdir, local)
  assert len(list((workdir / "tensorboard" / "train").iterdir())) == 2
  train(monkeypatch, base, workdir)
  assert "is finished; its results" in capsys.readouterr().out
  restored = adapted.restore(runs.load_config(workdir), workdir)
  assert restored.step == 6
  assert list(tmp_path.iterdir()) == []  # no folder of that name is on the disk


def test_what_is_damaged_in_a_bucket(bucket, base, local, monkeypatch, capsys):
  """A checkpoint whose writing never ended, one that lacks a file, scores."""
  workdir = storage.place(f"{bucket}/damaged")
  train(monkeypatch, base, workdir)
  saved = workdir / "checkpoints"
  for lost in ("commit_success.txt", "adapter/manifest.ocdbt"):
    for file in (saved / "6" / lost, workdir / "results.json"):
      file.unlink()
    (workdir / "before.json").write_text("[{")
    capsys.readouterr()
    train(monkeypatch, base, workdir)
    said = capsys.readouterr().out
    assert "Continuing at step 4 of 6" in said
    assert "before.json cannot be read" in said
    aside = workdir / "before.json.damaged"
    assert aside.read_text() == "[{"
    aside.unlink()
    same(workdir, local)
  assert "DAMAGED: the checkpoint of step 6" in said
  assert {path.name for path in saved.iterdir()} == {"4", "6", "6.damaged"}


def test_a_folder_of_something_else_is_refused(bucket, base, monkeypatch):
  workdir = storage.place(f"{bucket}/other")
  workdir.mkdir(parents=True)
  (workdir / "thesis.txt").write_text("mine")
  with pytest.raises(SystemExit, match="not empty and holds no run"):
    train(monkeypatch, base, workdir)


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there(base, monkeypatch):
  what = "gs://no-such-bucket cannot be read: FileNotFoundError"
  with pytest.raises(SystemExit, match=what):
    train(monkeypatch, base, "gs://no-such-bucket/run")
  with pytest.raises(ValueError, match="Is that its name"):
    runs.load_config(storage.place("gs://no-such-bucket/run"))


def test_a_cache_of_data_is_copied_once(bucket, monkeypatch, tmp_path, capfd):
  monkeypatch.setenv("SIRA_JAX_CACHE", str(tmp_path))
  folder = storage.place(f"{bucket}/tokens")
  files = {"a.npy": b"numbers", "b.array_record": b"records"}
  manifest = dict.fromkeys(layout.KEYS) | {
    "format": layout.FORMAT,
    "files": dict.fromkeys([*files, "lost"]),
  }
  for name, content in files.items():
    (folder / name).write_bytes(content)
  (folder / layout.MANIFEST).write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=r"tokens could not be had.*lost"):
    layout.on_disk(str(folder))
  (folder / "lost").write_bytes(b"found")
  capfd.readouterr()
  for copied in (1, 0):
    found = layout.on_disk(f"{folder}/")
    assert found == tmp_path / "gs/bucket/tokens"
    assert capfd.readouterr().err.count("copying") == copied
  names = {*files, "lost", layout.MANIFEST}
  assert {path.name for path in found.iterdir()} == names
  assert (found / "a.npy").read_bytes() == b"numbers"
  with pytest.raises(ValueError, match=r"no-cache could not be had"):
    layout.on_disk(f"{bucket}/no-cache")
  with pytest.raises(ValueError, match="to write a cache to"):
    layout.place(f"{bucket}/tokens")


def test_nothing_is_held_in_a_bucket(bucket, caplog):
  folder = storage.place(bucket)
  assert storage.lock(folder, "is training", flag="--workdir") is None
  assert "a bucket has no locks" in caplog.text
