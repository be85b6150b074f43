"""Schedules by hand, and settings that are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.training import optimizers


@pytest.mark.parametrize(
  "settings, expected",
  [
    # Up by 0.5 a step; then (1 + cos(pi t)) / 2 at t = 0, 1/4, 1/2, 3/4, 1.
    (
      dict(steps=6, warmup_steps=2),
      [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0],
    ),
    (dict(steps=2), [1, 0.5, 0]),
    (dict(steps=2, final_fraction=0.2), [1, 0.6, 0.2]),
  ],
  ids=["warm-up", "no warm-up", "final fraction"],
)
def test_schedule(settings, expected):
  _, schedule = optimizers.adamw(learning_rate=1.0, **settings)
  got = [float(schedule(step)) for step in range(len(expected))]
  np.testing.assert_allclose(got, expected, atol=1e-6)


def updates(gradient, parameter=2.0, **settings):
  optimizer, _ = optimizers.adamw(steps=10, learning_rate=0.1, **settings)
  parameter = jnp.array([parameter])
  found, _ = optimizer.update(
    jnp.array([gradient]), optimizer.init(parameter), parameter
  )
  return float(found[0])


def test_first_update():
  # Adam's first update is the gradient's sign; the decay is 0.5 * 2.
  np.testing.assert_allclose(updates(-3.0), 0.1, rtol=1e-5)
  np.testing.assert_allclose(
    updates(3.0, weight_decay=0.5), -0.1 * (1 + 0.5 * 2), rtol=1e-5
  )


def test_clipping_comes_before_adam():
  """Adam forgets a gradient's scale, so its mean tells."""
  for clip, expected in ((1.0, 0.1), (None, 0.4)):
    optimizer, _ = optimizers.adamw(steps=10, clip=clip)
    parameter = jnp.zeros(1)
    _, state = optimizer.update(
      jnp.array([4.0]), optimizer.init(parameter), parameter
    )
    mean = next(s.mu for links in state for s in _links(links) if _adam(s))
    np.testing.assert_allclose(mean, [expected], rtol=1e-6)


def _links(links):
  return links if isinstance(links, tuple) else ()


def _adam(state):
  return hasattr(state, "mu")


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(steps=0), "steps >= 1"),
    (dict(steps=5, warmup_steps=5), "warmup_steps < steps"),
    (dict(steps=5, warmup_steps=-1), "0 <= warmup_steps"),
    (dict(steps=5, learning_rate=0.0), "learning_rate must be above 0"),
    (dict(steps=5, clip=0.0), "clip must be above 0"),
  ],
)
def test_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    optimizers.adamw(**settings)
