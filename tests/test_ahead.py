# SPDX-License-Identifier: Apache-2.0
"""The next batch, read while the devices work."""

import itertools
import time

import jax
import numpy as np
import pytest

from sira_jax import ahead, sharding


def batches(*, seconds=0.0):
  for number in itertools.count():
    time.sleep(seconds)
    yield {"tokens": np.full((4, 3), number)}


class Busy:
  """A result that is ready, or is not."""

  def __init__(self, ready):
    self.is_ready = lambda: ready


def test_batches_come_in_turn():
  found = ahead.Ahead(batches())
  for number in range(3):
    assert (found.batch["tokens"] == number).all()
    np.testing.assert_array_equal(found.rows["tokens"], found.batch["tokens"])
    assert isinstance(found.rows["tokens"], jax.Array)
    found.read({})


def test_they_are_on_the_mesh():
  mesh, rules = sharding.layout(data=4, devices=jax.devices()[:4])
  with sharding.use(mesh, rules):
    found = ahead.Ahead(batches())
    found.read({})
  assert len(found.rows["tokens"].sharding.device_set) == 4


@pytest.mark.parametrize(
  "ready, waited", [((True, True), True), ((True, False), False)]
)
def test_waiting_counts_where_the_step_was_over(ready, waited):
  found = ahead.Ahead(batches(seconds=0.02))
  busy = dict(enumerate(map(Busy, ready)))
  seconds = found.read(busy)
  assert seconds >= 0.02 if waited else seconds == 0.0
