"""What goes wrong in a run: no numbers, no space, damaged files."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from benchmarks import faults
from sira_jax import metrics_log, nonfinite, runs, storage
from sira_jax.data import pipeline
from sira_jax.training import step as training
from tests import tiny, tiny_run

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 14
CHANGES = {"training.steps": STEPS, "training.checkpoint_every": 3}


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
  """All starts share what they compile."""
  with tiny_run.compilations(tmp_path_factory.mktemp("cache")):
    yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def config(base):
  return lambda **more: tiny_run.config("sira", base | CHANGES | more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config):
  """A run that nothing happened to."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.main(patch, config(), workdir)
  return workdir


def differences(one, other):
  return faults.differences(faults.Run(one, []), faults.Run(other, []))


@contextlib.contextmanager
def ends(code_or_error):
  """With an exit code, or with an error that has these words."""
  with pytest.raises(SystemExit) as raised:
    yield raised
  if isinstance(code_or_error, int):
    assert raised.value.code == code_or_error
  else:
    assert str(raised.value).startswith("error: ")
    assert "\n" not in str(raised.value)
    assert code_or_error in str(raised.value)


@pytest.fixture
def bad(monkeypatch):
  """Makes the batches of these steps ones whose loss is no number."""
  steps, original = set(), pipeline.batches

  def batches(mixture, *, start=0, **settings):
    found = original(mixture, start=start, **settings)
    for number, batch in enumerate(found, start + 1):
      if number in steps:
        batch["decoder_loss_weights"][:] = np.nan
      yield batch

  monkeypatch.setattr(pipeline, "batches", batches)
  return steps


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def kept(workdir):
  return {int(p.stem.split("_")[1]) for p in workdir.glob("nonfinite_*.npz")}


@pytest.mark.parametrize("where", ["loss", "gradient", "update"])
def test_a_step_without_numbers_changes_nothing(where):
  model = tiny.adapted("sira", experts=2, k=1)
  optimizer = optax.adam(0.1)
  if where == "update":  # the second one is beyond all numbers
    rate = lambda count: np.float32(0.1) + (count == 1) * np.float32(np.inf)  # noqa: E731
    optimizer = optax.adam(rate)
  step = training.make(model, optimizer)
  state, metrics = step(training.init(model, optimizer, seed=0), tiny.batch())
  assert metrics["skipped"] == 0.0
  numbers = lambda state: jax.tree.map(  # noqa: E731
    np.array, (state.trainable, state.constants, state.optimizer)
  )
  before, batch = numbers(state), tiny.batch()
  weights = np.array(batch["decoder_loss_weights"])
  if where == "loss":
    weights[0, 0] = np.nan
  if where == "gradient":  # its square is beyond float32, the loss is not
    weights *= 1e30 * (np.arange(weights.shape[1]) % 2 * 2 - 1)
  state, metrics = step(state, batch | {"decoder_loss_weights": weights})
  assert metrics["skipped"] == 1.0
  assert np.isfinite(metrics["loss"]) == (where != "loss")
  assert np.isfinite(metrics["gradient_norm"]) == (where == "update")
  assert int(state.step) == 2
  jax.tree.map(np.testing.assert_array_equal, numbers(state), before)


def test_stop(config, whole, tmp_path, monkeypatch, capfd, bad):
  """Step 5 has no numbers: the state after step 4 is kept."""
  bad.add(5)
  workdir = tmp_path / "run"
  for _ in range(2):  # the same command comes to the same
    with ends(nonfinite.EXIT):
      tiny_run.main(monkeypatch, config(), workdir)
    said = capfd.readouterr().err
    assert said.startswith("error: Step 5 has a loss of nan")
    assert "saved as step 4" in said and said.count("\n") == 1
    assert str(workdir / "nonfinite_5.npz") in said
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"3", "4"}
  found = np.load(workdir / "nonfinite_5.npz")
  for name in ("metrics.loss", "decoder_loss_weights"):
    assert np.isnan(found[name]).all()
  assert found["decoder_target_tokens"].any()
  assert faults.Run(workdir, []).arrays()["random./step"] == 4
  bad.clear()
  # The batch is put right: it goes on from what it had, and loses nothing.
  tiny_run.main(monkeypatch, config(), workdir)
  assert differences(whole, workdir) == []


def test_skip(config, tmp_path, monkeypatch, capfd, bad):
  """Steps 5 and 8 are left out, by a run of its own or one that had stopped."""
  bad.update({5, 8})
  alone, stopped = tmp_path / "alone", tmp_path / "stopped"
  skip = config(**{"training.nonfinite": "skip"})
  tiny_run.main(monkeypatch, skip, alone)
  said = capfd.readouterr().out
  assert "Step 5 has a loss of nan" in said
  assert "The updates of 2 steps were left out" in said
  with ends(nonfinite.EXIT):
    tiny_run.main(monkeypatch, config(), stopped)
  assert "--config.training.nonfinite=skip" in capfd.readouterr().err
  tiny_run.main(monkeypatch, skip, stopped)  # of the same workdir
  assert runs.load_config(stopped).training.nonfinite == "skip"
  assert differences(alone, stopped) == []
  assert kept(alone) == kept(stopped) == {5, 8}
  found = lines(alone)
  assert [x["step"] for x in found if x["skipped"]] == [5, 8]
  assert [x["step"] for x in found if x["loss"] is None] == [5, 8]
  # The schedule stood still: it has one value twice.
  rates = [x["learning_rate"] for x in found]
  assert rates[4] == rates[5] and rates[7] == rates[8]
  assert len(set(rates)) == STEPS - 2


def test_the_rate_is_the_one_of_the_update(config, tmp_path, monkeypatch, bad):
  """As the log has it, after a step was left out."""
  bad.add(1)
  workdir = tmp_path / "run"
  changes = {"training.nonfinite": "skip", "training.steps": 2}
  changes |= {"optimizer.warmup_steps": 1, "training.checkpoint_every": 1}
  tiny_run.main(monkeypatch, config(**changes), workdir)
  # Step 2 is the first update, which warming up begins with no rate at all.
  assert [x["learning_rate"] for x in lines(workdir)] == [0.0, 0.0]
  one = faults.Run(workdir, []).arrays()
  assert not any(
    array.any() for path, array in one.items() if path.endswith("adapter/B")
  )


def test_too_many_in_a_row(config, tmp_path, monkeypatch, capfd, bad):
  """Counted over a stop in between; of the batches the first few are kept."""
  bad.update(range(3, 20))
  workdir = tmp_path / "run"
  skip = config(**{"training.nonfinite": "skip"})
  keep = nonfinite.keep

  def interrupted(folder, step, *rest, **more):
    if step == 8:
      raise KeyboardInterrupt
    return keep(folder, step, *rest, **more)

  monkeypatch.setattr(nonfinite, "keep", interrupted)
  with pytest.raises(KeyboardInterrupt):
    tiny_run.main(monkeypatch, skip, workdir)
  monkeypatch.setattr(nonfinite, "keep", keep)
  with ends(nonfinite.EXIT):
    tiny_run.main(monkeypatch, skip, workdir)
  said = capfd.readouterr().err
  assert "Step 12 has a loss of nan" in said and "as 9 before it" in said
  assert kept(workdir) == {3, 4, 5, 12}
  assert faults.Run(workdir, []).arrays()["random./step"] == 11


@pytest.fixture
def unfinished(tmp_path, whole):
  """A copy of the whole run, without its last file."""
  copied = tmp_path / "run"
  shutil.copytree(whole, copied)
  (copied / "results.json").unlink()
  return copied


def test_a_damaged_checkpoint(unfinished, whole, config, monkeypatch, capfd):
  newest = unfinished / "checkpoints" / str(STEPS)
  file = max(
    (p for p in (newest / "adapter").rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  tiny_run.main(monkeypatch, config(), unfinished)
  said = capfd.readouterr().out
  assert f"DAMAGED: the checkpoint of step {STEPS}" in said
  assert f"Continuing at step 12 of {STEPS}" in said
  assert differences(whole, unfinished) == []
  assert (newest.parent / f"{STEPS}.damaged").exists()


def test_lost_metrics_are_made_again(
  unfinished, whole, config, monkeypatch, capfd
):
  file = unfinished / "metrics.jsonl"
  file.write_bytes(file.read_bytes()[:-30] + b"\xff")
  tiny_run.main(monkeypatch, config(), unfinished)
  assert "Continuing at step 12" in capfd.readouterr().out
  assert differences(whole, unfinished) == []


def test_metrics_lost_for_good_are_said(unfinished, config, monkeypatch, capfd):
  file = unfinished / "metrics.jsonl"
  text = file.read_text().splitlines()
  file.write_text("\n".join([*text[:3], text[3][:9], "7", *text[4:]]) + "\n")
  tiny_run.main(monkeypatch, config(), unfinished)
  said = capfd.readouterr().out
  assert "metrics are whole up to step 3 only" in said
  assert f"Continuing at step {STEPS}" in said


@pytest.mark.parametrize(
  "name, damage",
  [
    ("before.json", lambda text: text[: len(text) // 2]),
    ("before.json", lambda text: "[]"),
    ("results.md", lambda text: text[:5]),
    ("results.json", lambda text: text[:-3]),
    ("results.json", lambda text: '[{"task": "intents"}]'),
  ],
)
def test_a_damaged_file_is_made_again(
  tmp_path, whole, config, monkeypatch, capfd, name, damage
):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  if name == "before.json":
    (workdir / "results.json").unlink()
  file = workdir / name
  text = file.read_text()
  file.write_text(damage(text))
  tiny_run.main(monkeypatch, config(), workdir)
  assert f"DAMAGED: {file} cannot be read" in capfd.readouterr().out
  assert file.read_text() == text
  assert (workdir / f"{name}.damaged").read_text() == damage(text)
  assert differences(whole, workdir) == []


def test_a_damaged_study(base, tmp_path, monkeypatch, capfd):
  changes = {"sparsity.penalties": (0.0, 0.1), "sparsity.stage_steps": 2}
  config = tiny_run.config("sora", base | changes)
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir)
  table = (workdir / "sparsity.json").read_text()
  (workdir / "results.json").unlink()
  file = workdir / "stage_0" / "study.json"
  os.truncate(file, 20)
  capfd.readouterr()
  tiny_run.main(monkeypatch, config, workdir)
  assert f"DAMAGED: {file}" in capfd.readouterr().out
  assert (workdir / "sparsity.json").read_text() == table


def full(*_, **__):
  raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
  "where",
  ["metrics", "results.json", "predictions", "checkpoint"],
)
def test_no_space(config, whole, tmp_path, monkeypatch, where):
  """Ends with what to do; the same command goes on when there is space."""
  workdir, calls = tmp_path / "run", []
  write, append = storage.write, metrics_log.MetricsLog.append

  def failing_write(file, content):
    if file.name == where:
      full()
    write(file, content)

  def failing_append(log, values):
    calls.append(values)
    if len(calls) == 8:
      stream = log._lines._stream
      stream.write('{"step": 8, "lo')  # what there was space for
      stream.flush()
      full()
    append(log, values)

  with monkeypatch.context() as patch, ends("no space left for the run in"):
    if where == "metrics":
      patch.setattr(metrics_log.MetricsLog, "append", failing_append)
    elif where == "predictions":
      patch.setattr("sira_jax.predictions.save", full)
    elif where == "checkpoint":
      patch.setattr(ocp.CheckpointManager, "save", full)
    else:
      patch.setattr(storage, "write", failing_write)
    tiny_run.main(patch, config(), workdir)
  tiny_run.main(monkeypatch, config(), workdir)
  assert differences(whole, workdir) == []


# A disk of its own, which goes with the process.
SMALL_DISK = """
set -u
mount -t tmpfs -o size=$1 small "$2" || exit 99
shift
workdir=$1/run
shift
"$@" --workdir="$workdir" >"$OUT/first" 2>&1; echo $? >"$OUT/code"
mount -o remount,size=200m "${workdir%/run}" || exit 99
"$@" --workdir="$workdir" >"$OUT/second" 2>&1 || exit 98
cp -r "$workdir" "$OUT/run"
"""


def may_mount():
  command = ["unshare", "-rm", "mount", "-t", "tmpfs", "small", "/mnt"]
  with contextlib.suppress(OSError):
    return subprocess.run(command, capture_output=True).returncode == 0
  return False


@pytest.mark.skipif(not may_mount(), reason="nobody but root may mount")
def test_a_full_disk(tmp_path, whole):
  """A real one: it ends with one error, and goes on once there is space."""
  disk, config = tmp_path / "disk", tmp_path / "config.py"
  disk.mkdir()
  shutil.copy(whole / "config.json", tmp_path)
  config.write_text(
    "import pathlib\nfrom sira_jax import runs\n"
    "get_config = lambda: runs.load_config(pathlib.Path(__file__).parent)\n"
  )
  files = [p for p in whole.rglob("*") if "routing" not in p.name]
  space = sum(p.stat().st_blocks * 512 for p in files)
  command = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh"]
  # Enough for all but the last of what the whole run left.
  command += [f"{space * 7 // 10}", str(disk), sys.executable, "train.py"]
  done = subprocess.run(
    [*command, f"--config={config}"],
    cwd=ROOT,
    env=os.environ | {"OUT": str(tmp_path), "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  first = (tmp_path / "first").read_text()
  assert done.returncode == 0, f"{first}\n{done.stderr}"
  assert (tmp_path / "code").read_text() == "1\n"
  assert first.count("error: ") == 1
  assert "error: There is no space left for the run in" in first
  assert differences(whole, tmp_path / "run") == []
