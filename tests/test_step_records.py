# SPDX-License-Identifier: Apache-2.0
"""What steps measured is fetched one step late, and nothing of it is lost."""

import contextlib
import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax import metrics_log, progress, step_records
from sira_jax.training import step as training
from tests import tiny


@pytest.fixture
def opened(tmp_path):
  """Records of a run's steps, by what is done where one was left out."""
  with contextlib.ExitStack() as stack:

    def one(action):
      log = metrics_log.MetricsLog(tmp_path / "metrics.jsonl", step=0)
      stack.enter_context(contextlib.closing(log))
      return step_records.StepRecords(
        tmp_path,
        log=log,
        line=progress.Progress(total=20),
        rates=np.arange(20) / 2,
        action=action,
      )

    yield one


def sent(number, *, skipped=0.0):
  found = {"loss": 1.0, "gradient_norm": 2.0, "tokens": 3, "skipped": skipped}
  batch = {"decoder_input_tokens": 0, "decoder_target_tokens": np.ones((2, 4))}
  metrics = jax.tree.map(jnp.asarray, found)
  return step_records.Sent(number, batch, metrics, 0.25, time.monotonic())


def lines(folder):
  text = (folder / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def steps(folder):
  return [line["step"] for line in lines(folder)]


def test_a_step_is_recorded_once_the_next_is_sent(opened, tmp_path):
  records = opened("stop")
  records.add(sent(1))
  assert steps(tmp_path) == []
  records.add(sent(2))
  assert steps(tmp_path) == [1]
  for _ in range(2):
    records.settle()
    assert steps(tmp_path) == [1, 2]
  first, second = lines(tmp_path)
  assert first["examples"] == 2 and first["waiting"] == 0.25
  assert first["positions"] == 8
  assert (first["learning_rate"], second["learning_rate"]) == (0.0, 0.5)


def test_seconds_are_from_end_to_end(opened, tmp_path, monkeypatch):
  """Of steps that were sent off before the one before them had ended."""

  class Clock:
    now = 0.0

    def monotonic(self):
      return self.now

  clock = Clock()
  monkeypatch.setattr(step_records, "time", clock)
  records = opened("stop")
  records.add(dataclasses.replace(sent(1), begun=0.0))
  clock.now = 10.0  # the first ends; the second was sent off at 1
  records.add(dataclasses.replace(sent(2), begun=1.0))
  clock.now = 14.0
  records.settle()
  # A pause until 20.
  records.add(dataclasses.replace(sent(3), begun=20.0))
  clock.now = 23.0
  records.settle()
  assert [x["seconds"] for x in lines(tmp_path)] == [10.0, 4.0, 3.0]


def test_nothing_is_recorded_after_the_end(opened, tmp_path):
  """The step after one that was left out is no step of the run."""
  records = opened("stop")
  assert float(records.left_out) == 0
  records.add(sent(1))
  records.add(sent(2, skipped=1.0))
  assert records.stop is None and float(records.left_out) == 1
  records.add(sent(3, skipped=1.0))
  records.settle()
  assert records.stop.good == 1
  assert steps(tmp_path) == [1, 2]


def test_a_run_that_goes_on_looks_at_the_next_at_once(opened, tmp_path):
  """So the tenth in a row is the last one that was sent."""
  records = opened("skip")
  assert records.left_out is None
  records.add(sent(1, skipped=1.0))
  records.add(sent(2, skipped=1.0))
  assert steps(tmp_path) == [1, 2]
  for number in range(3, 10):
    records.add(sent(number, skipped=1.0))
    assert records.stop is None
  records.settle()
  records.add(sent(10, skipped=1.0))
  records.settle()
  assert records.stop.good == 9
  assert steps(tmp_path) == list(range(1, 11))


def test_a_held_step_changes_nothing():
  model, optimizer = tiny.adapted("sira", experts=2, k=1), optax.adam(0.1)
  step = training.make(model, optimizer)
  state = training.init(model, optimizer, seed=0)
  state, metrics = step(state, tiny.batch(), jnp.zeros(()))
  numbers = lambda state: jax.tree.map(  # noqa: E731
    np.array, (state.trainable, state.optimizer)
  )
  before = numbers(state)
  assert metrics["skipped"] == 0
  held = jnp.ones(())
  for _ in range(2):  # the second by the first
    state, metrics = step(state, tiny.batch(), held)
    held = metrics["skipped"]
    assert held == 1 and np.isfinite(metrics["loss"])
  jax.tree.map(np.testing.assert_array_equal, numbers(state), before)
  assert int(state.step) == 3
  state, metrics = step(state, tiny.batch(), jnp.zeros(()))
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), numbers(state), before
  )
  assert any(jax.tree.leaves(changed))
