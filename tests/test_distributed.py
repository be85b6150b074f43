"""Several processes, on several devices each, are one run of train.py."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import faults
from tests import tiny_base

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 12
SETTINGS = {
  "rules.attention.path": r"layers\.\d+\.self_attn\.q_proj",
  "rules.mlp.path": r"layers\.\d+\.mlp\.down_proj",
  "mixture.languages": ("en",),
  "mixture.zero_shot": (),
  "batches.batch_size": 8,
  "batches.length": 64,
  "batches.pack": False,
  "batches.too_long": "skip",
  "optimizer.learning_rate": 0.01,
  "optimizer.warmup_steps": 1,
  "training.steps": STEPS,
  "training.checkpoint_every": 3,
  "evaluation.examples": 1,
  "decoding.max_new_tokens": 4,
  "decoding.batch_size": 8,
  "mesh.data": 4,
  "mesh.fsdp": 2,
}
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
  """For train.py, on a tiny base, compiling for this module alone."""
  folder = tmp_path_factory.mktemp("distributed")
  base = folder / "tiny.gguf"
  settings = {"base.uri": base, "base.sha256": tiny_base.write(base)} | SETTINGS
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    patch.setenv("SIRA_JAX_CACHE", str(folder / "cache"))
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    yield ["--config=configs/quickstart.py", *flags]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, streaming):
  """The same of a cache, whose command sees one device of the mesh's eight."""
  folder = tmp_path_factory.mktemp("caches") / "cached"
  command = [sys.executable, "-m", "sira_jax.data.cache", f"--out={folder}"]
  done = subprocess.run(
    [*command, *streaming], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0 and "Wrote" in done.stdout, done.stderr
  return [*streaming, f"--config.cache.folder={folder}"]


@dataclasses.dataclass
class Cluster:
  """The processes of one start of a run."""

  processes: list[subprocess.Popen]
  logs: list[pathlib.Path]

  def wait(self, seconds=300):
    return [process.wait(seconds) for process in self.processes]

  def texts(self):
    return [log.read_text() for log in self.logs]


IMPATIENT = """
import runpy, sys
from sira_jax import distributed

distributed.PATIENCE = 5
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(run, *, processes, devices, more=(), script=()):
  """Starts train.py in so many processes, on so many devices each.

  `script` are words before its name, for the interpreter.
  """
  flag = f"--xla_force_host_platform_device_count={devices}"
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  found = Cluster([], [])
  for number in range(processes):
    command = [run._command[0], *script, *run._command[1:], *more]
    if processes > 1:
      command += [f"--coordinator=localhost:{port}", f"--process={number}"]
      command += [f"--processes={processes}"]
    log = run.workdir.with_name(f"{run.workdir.name}.{number}.log")
    with log.open("w") as stream:
      found.processes.append(
        subprocess.Popen(
          command,
          cwd=ROOT,
          stdout=stream,
          stderr=subprocess.STDOUT,
          env=os.environ | {"XLA_FLAGS": flag},
        )
      )
    found.logs.append(log)
  return found


def until(run, cluster, step):
  """Waits until the run has logged this step and saved one, or has ended."""
  while run.step() < step or not run.checkpoints(whole=True):
    assert all(p.poll() is None for p in cluster.processes), cluster.texts()
    time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, arguments):
  """A run of two processes that nothing happened to."""
  run = faults.Run(tmp_path_factory.mktemp("whole") / "run", arguments)
  cluster = start(run, processes=2, devices=4)
  assert cluster.wait() == [0, 0], cluster.texts()
  run.texts = cluster.texts()
  return run


def test_one_of_them_speaks_and_writes(whole):
  assert f"step {STEPS}/{STEPS}  loss" in whole.texts[0]
  assert "8 of 8 cpu device(s): data 4, fsdp 2, tensor 1" in whole.texts[0]
  assert "step" not in whole.texts[1] and "error" not in whole.texts[1]
  lines = (whole.workdir / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(
    range(1, STEPS + 1)
  )
  assert (whole.workdir / "results.md").exists()


def test_a_killed_process_ends_the_other_and_both_go_on(
  tmp_path, arguments, whole
):
  run = faults.Run(tmp_path / "run", arguments)
  cluster = start(run, processes=2, devices=4)
  until(run, cluster, 4)
  cluster.processes[1].send_signal(signal.SIGKILL)
  codes = cluster.wait(120)
  assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None)
  assert 0 < int(run.checkpoints(whole=True)[-1].name) < STEPS
  cluster = start(run, processes=2, devices=4)
  assert cluster.wait() == [0, 0], cluster.texts()
  assert "Continuing at step" in cluster.texts()[0]
  assert faults.differences(whole, run) == []


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_ends_the_other_and_both_go_on(
  tmp_path, arguments, whole, frozen
):
  run = faults.Run(tmp_path / "run", arguments)
  cluster = start(run, processes=2, devices=4, script=("-c", IMPATIENT))
  until(run, cluster, 4)
  cluster.processes[frozen].send_signal(signal.SIGSTOP)
  try:
    code = cluster.processes[1 - frozen].wait(120)
  finally:
    cluster.processes[frozen].kill()
    cluster.processes[frozen].wait()
  assert code not in (0, 75)
  assert "heartbeat" in cluster.texts()[1 - frozen].lower()
  cluster = start(run, processes=2, devices=4)
  assert cluster.wait() == [0, 0], cluster.texts()
  assert "Continuing at step" in cluster.texts()[0]
  assert faults.differences(whole, run) == []


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, arguments):
  """A run of two processes, of which one was told to stop."""
  run = faults.Run(tmp_path_factory.mktemp("stopped") / "run", arguments)
  cluster = start(run, processes=2, devices=4)
  until(run, cluster, 4)
  cluster.processes[0].send_signal(signal.SIGTERM)
  assert cluster.wait() == [75, 75], cluster.texts()
  return run


@pytest.mark.parametrize(
  "devices, mesh",
  [(8, dict(data=2, fsdp=4)), (1, dict(data=1, fsdp=1))],
  ids=["eight devices", "one device"],
)
def test_another_number_of_processes_goes_on(
  tmp_path, arguments, whole, stopped, devices, mesh
):
  run = faults.Run(tmp_path / "run", arguments)
  shutil.copytree(stopped.workdir, run.workdir)
  number = int(run.checkpoints(whole=True)[-1].name)
  assert run.step() == number < STEPS  # all that was done was saved
  more = [f"--config.mesh.{name}={size}" for name, size in mesh.items()]
  cluster = start(run, processes=1, devices=devices, more=more)
  assert cluster.wait() == [0], cluster.texts()
  assert f"Continuing at step {number}" in cluster.texts()[0]
  expected, found = losses(whole), losses(run)
  assert np.ptp(expected) > 0.1
  # Up to flipped near-ties of the routers.
  np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_stream_is_the_same_on_any_number(tmp_path, streaming):
  """Packed; the other runs here are of a cache, which takes no TensorFlow."""
  more = ["--config.batches.pack=True", "--config.training.steps=4"]
  found = []
  for processes in (1, 2):
    run = faults.Run(tmp_path / str(processes), streaming)
    cluster = start(run, processes=processes, devices=8 // processes, more=more)
    assert cluster.wait() == [0] * processes, cluster.texts()
    lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
    found.append([json.loads(line) for line in lines])
  one, two = found
  assert [x["examples"] for x in one] == [x["examples"] for x in two]
  assert sum(x["examples"] for x in one) > 4 * 8  # of packed rows
  np.testing.assert_allclose(
    [x["loss"] for x in one], [x["loss"] for x in two], rtol=1e-3
  )


def losses(run):
  lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
  return np.array([json.loads(line)["loss"] for line in lines])


@pytest.mark.parametrize(
  "given, message",
  [
    (["--coordinator=localhost:1"], "there is no --processes, --process"),
    (
      ["--coordinator=localhost:1", "--processes=2", "--process=2"],
      "--process must be from 0 to 1",
    ),
    (["--distributed"], "did not find each other"),
    (["--config.mesh.data=3", "--config.mesh.fsdp=1"], "config.mesh: The mesh"),
    (
      [
        "--config.mesh.data=1",
        "--config.mesh.fsdp=1",
        "--config.training.microbatches=3",
      ],
      "must be a multiple of 3",
    ),
  ],
)
def test_mistakes(tmp_path, arguments, given, message):
  workdir = tmp_path / "run"
  done = subprocess.run(
    [sys.executable, "train.py", *arguments, *given, f"--workdir={workdir}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error:") or (
    message in done.stderr
  )
  assert message in done.stderr and "Traceback" not in done.stderr
  assert not workdir.exists()
