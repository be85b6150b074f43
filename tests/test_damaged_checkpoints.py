"""A checkpoint that is damaged, or cannot be written."""

import dataclasses
import json
import os
import resource
import shutil

from flax import nnx
import jax
import numpy as np
import pytest

from sira_jax import checkpoints
from sira_jax.adapters.variables import Trainable
from tests.test_checkpoints import (
  META,
  arrays,
  assert_equal,
  build,
  fresh,
  restore,
  save,
)

# Of TensorStore's reads beside the one that failed.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def numbers(state, seed):
  """A state whose arrays do not compress."""
  draw = np.random.default_rng(seed)
  fill = lambda leaf: leaf + draw.normal(size=leaf.shape).astype(leaf.dtype)  # noqa: E731
  return dataclasses.replace(
    state,
    trainable=jax.tree.map(fill, state.trainable),
    optimizer=jax.tree.map(fill, state.optimizer),
  )


@pytest.fixture(scope="module")
def large():
  return fresh(d=256, rank=16)


@pytest.fixture(scope="module")
def two(tmp_path_factory, large):
  """A folder of the checkpoints of steps 3 and 5, and their states."""
  folder = tmp_path_factory.mktemp("two")
  states = {step: numbers(large, step) for step in (3, 5)}
  for step, state in states.items():
    save(folder, state, step=step)
  return folder, states


def of(item, *, largest=True):
  """The file of an item that holds its arrays, or its entry point."""

  def find(step):
    if not largest:
      return step / item / "manifest.ocdbt"
    files = [p for p in (step / item).rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)

  return find


def flip(file, at=2):
  content = bytearray(file.read_bytes())
  content[len(content) // at] ^= 4
  file.write_bytes(content)


def halve(file):
  os.truncate(file, file.stat().st_size // 2)


def renamed(file):
  """Other JSON, as good as what there was."""
  text = file.read_text()
  file.write_text(text.replace('"base"', '"bare"').replace("5", "6"))


DAMAGES = {
  "flipped adapter": (of("adapter"), flip),
  "flipped optimizer": (of("optimizer"), flip),
  "halved adapter": (of("adapter"), halve),
  "halved optimizer": (of("optimizer"), halve),
  "flipped key": (of("random", largest=False), flip),
  "no adapter file": (of("adapter"), os.remove),
  "no optimizer": (lambda step: step / "optimizer", shutil.rmtree),
  "no key": (of("random", largest=False), os.remove),
  "other position": (lambda step: step / "data" / "metadata", renamed),
  "no position": (lambda step: step / "data", shutil.rmtree),
  "other meta": (lambda step: step / "meta" / "metadata", renamed),
  "flipped meta": (lambda step: step / "meta" / "metadata", flip),
  "halved meta": (lambda step: step / "meta" / "metadata", halve),
  "no meta": (lambda step: step / "meta", shutil.rmtree),
  "empty": (lambda step: step, lambda s: (shutil.rmtree(s), s.mkdir())),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_used(two, large, tmp_path, capfd, damage):
  whole, states = two
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  find, do = DAMAGES[damage]
  do(find(folder / "5"))
  with checkpoints.Checkpoints(folder) as saved:
    assert_equal(arrays(saved.restore(large, **META)), arrays(states[3]))
    out, err = capfd.readouterr()
    assert f"DAMAGED: the checkpoint of step 5 in {folder}: its" in out or (
      "does not have its checksum" in out
    )
    assert "step 3 is used instead" in out and "5.damaged" in out
    assert err == ""
    assert {p.name for p in folder.iterdir()} == {"3", "5.damaged"}
    saved.save(states[5], step=5, meta=META)  # taken again
  assert_equal(arrays(restore(folder, large)), arrays(states[5]))
  assert {p.name for p in folder.iterdir()} == {"3", "5", "5.damaged"}
  do(find(folder / "5"))
  restore(folder, large)
  names = {p.name for p in folder.iterdir()}
  assert names == {"3", "5.damaged", "5.damaged2"}


def test_who_only_reads_moves_nothing(two, tmp_path, capfd):
  whole, states = two
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  flip(of("adapter")(folder / "5"))
  model = build(d=256, rank=16)
  with checkpoints.Checkpoints(folder, writable=False) as saved:
    assert saved.restore_adapter(model, base=META["base"]) == 3
  assert "DAMAGED: the checkpoint of step 5" in capfd.readouterr().out
  assert {p.name for p in folder.iterdir()} == {"3", "5"}
  jax.tree.map(
    np.testing.assert_array_equal,
    nnx.state(model, Trainable),
    states[3].trainable,
  )


def test_none_is_whole(two, large, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two[0], folder)
  flip(of("optimizer")(folder / "3"))
  shutil.rmtree(folder / "5" / "meta")
  with pytest.raises(ValueError, match=r"(?s)is whole.*step 5:.*step 3:.*copy"):
    restore(folder, large)
  assert {p.name for p in folder.iterdir()} == {"3", "5"}
  # The adapter of step 3 is whole.
  with checkpoints.Checkpoints(folder) as saved:
    model = build(d=256, rank=16)
    assert saved.restore_adapter(model, base=META["base"]) == 3


def test_a_wrong_start_damages_nothing(two, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two[0], folder)
  like = fresh(d=256, rank=8)
  with pytest.raises(ValueError, match=r"adapter\.layers\.0.* is float32\["):
    restore(folder, like)
  with pytest.raises(ValueError, match="another base"):
    restore(folder, like, base="new")
  assert {p.name for p in folder.iterdir()} == {"3", "5"}


def test_memory_that_runs_out_is_no_damage(two, large, tmp_path, monkeypatch):
  folder = tmp_path / "run"
  shutil.copytree(two[0], folder)

  def restored(*_, **__):
    raise MemoryError

  with checkpoints.Checkpoints(folder) as saved:
    monkeypatch.setattr(saved._manager, "restore", restored)
    with pytest.raises(MemoryError):
      saved.restore(large, **META)
  assert {p.name for p in folder.iterdir()} == {"3", "5"}


def test_checkpoints_without_checksums_are_refused(two, large, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two[0], folder)
  for step in "35":
    (folder / step / "meta" / "metadata").write_text(json.dumps(META))
  with pytest.raises(ValueError, match="earlier version of sira_jax"):
    restore(folder, large)
  assert {p.name for p in folder.iterdir()} == {"3", "5"}


def test_goes_back_to_what_was_logged(two, large, tmp_path, capfd):
  whole, states = two
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  for logged, step in ((5, 5), (9, 5), (4, 3), (3, 3), (2, 5)):
    got = restore(folder, large, logged=logged)
    assert_equal(arrays(got), arrays(states[step]))
    said = capfd.readouterr().out
    assert ("whole up to step" in said) == (logged == 2)
  with checkpoints.Checkpoints(folder) as saved:
    saved.save(states[3], step=4, meta=META)
    saved.save(states[3], step=5, meta=META)
  assert {p.name for p in folder.iterdir()} == {"4", "5"}


@pytest.mark.parametrize("end", ["the next save", "the end"])
def test_a_save_that_fails_is_heard_of(two, large, tmp_path, end):
  """Files may not grow beyond 20 kB, as if the disk were full."""
  whole, states = two
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  saved = checkpoints.Checkpoints(folder)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
  try:
    saved.save(states[5], step=7, meta=META)
    with pytest.raises(OSError, match="File too large"):
      if end == "the next save":
        saved.save(states[5], step=8, meta=META)
      else:
        saved.__exit__()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert_equal(arrays(restore(folder, large)), arrays(states[5]))
  # What was begun of the failed save may be there until the next start.
  names = {p.name for p in folder.iterdir() if not p.name.endswith("-tmp")}
  assert names == {"3", "5"}
