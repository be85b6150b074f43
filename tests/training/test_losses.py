"""The loss at the targets alone against the loss of every logit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import meshes, sharding
from sira_jax.training import losses

D, VOCABULARY = 8, 32
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(D, VOCABULARY)), jnp.float32)


def logits(hidden):
  return hidden @ TABLE.astype(hidden.dtype)


@functools.partial(jax.jit, static_argnames=("loss", "chunk"))
def sums_and_slope(hidden, targets, weights, loss, chunk=None):
  options = {} if chunk is None else {"chunk": chunk}

  def total(hidden):
    total, right = loss(
      logits, hidden, targets=targets, weights=weights, **options
    )
    # The scale shows that the slope of what follows is used.
    return 3 * total, (total, right)

  slope, sums = jax.grad(total, has_aux=True)(hidden)
  return (*sums, slope)


def ragged(length):
  """Rows with targets in the middle, at both ends, one and none."""
  at = np.arange(length)
  rows = [(at > 2) & (at < 7), at != 4, at == length - 1, at < 0]
  return np.float32(rows)


WEIGHTS = {
  "none": lambda length: np.zeros((4, length), np.float32),
  "all": lambda length: np.ones((4, length), np.float32),
  "ragged": ragged,
  "fractional": lambda length: ragged(length) * 0.3,
}


@pytest.mark.parametrize("length, chunk", [(8, 4), (11, 4), (3, 16), (11, 1)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_equals_the_loss_of_every_logit(weights, length, chunk):
  weights = WEIGHTS[weights](length)
  hidden = np.float32(np.random.default_rng(1).normal(size=(4, length, D)))
  targets = np.asarray(logits(hidden)).argmax(-1)
  targets[:, ::2] = 5  # every other guess is right
  got = sums_and_slope(
    hidden, targets, weights, losses.cross_entropy_at_targets, chunk
  )
  expected = sums_and_slope(hidden, targets, weights, losses.cross_entropy)
  for ours, theirs in zip(got, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  assert not np.asarray(got[2])[weights == 0].any()


def test_by_hand():
  # Scores 0, 0, log 2 at both places: p = 1/4, 1/4, 1/2. Targets are 2, the
  # largest, and 0: -log p = log 2 and log 4; weights 1 and 2.
  scores = jnp.log(jnp.array([[[1.0, 1.0, 2.0]] * 2]))
  for loss in (losses.cross_entropy, losses.cross_entropy_at_targets):
    total, right = loss(
      lambda hidden: hidden,
      scores,
      targets=jnp.array([[2, 0]]),
      weights=jnp.array([[1.0, 2.0]]),
    )
    np.testing.assert_allclose(total, 5 * np.log(2), rtol=1e-6)
    assert right == 1


def test_bfloat16():
  hidden = jnp.asarray(RNG.normal(size=(4, 11, D)), jnp.bfloat16)
  targets, weights = np.zeros((4, 11), int), ragged(11)
  total, right, slope = sums_and_slope(
    hidden, targets, weights, losses.cross_entropy_at_targets
  )
  assert total.dtype == right.dtype == jnp.float32
  assert slope.dtype == jnp.bfloat16
  expected = sums_and_slope(hidden, targets, weights, losses.cross_entropy)
  np.testing.assert_allclose(total, expected[0], rtol=1e-5)


def compiled(loss, *, vocabulary=8192, d=16, batch=4, length=128):
  def total(hidden, table, targets, weights):
    return loss(lambda x: x @ table, hidden, targets=targets, weights=weights)[
      0
    ]

  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  return (
    jax.jit(jax.grad(total))
    .lower(
      shape((batch, length, d)),
      shape((d, vocabulary)),
      jax.ShapeDtypeStruct((batch, length), jnp.int32),
      shape((batch, length)),
    )
    .compile()
  )


def test_steps_without_a_target_are_skipped():
  taken = []

  def counted(hidden):
    jax.debug.callback(lambda: taken.append(1))
    return logits(hidden)

  # At most 20 targets in a row of 64, wherever they are: 2 steps of 16 of 4.
  weights = np.zeros((2, 64), np.float32)
  weights[0, ::6], weights[1, 40:60] = 1, 1
  hidden = jnp.asarray(RNG.normal(size=(2, 64, D)), jnp.float32)
  jax.jit(
    jax.grad(
      lambda hidden: losses.cross_entropy_at_targets(
        counted, hidden, targets=np.zeros((2, 64), int), weights=weights
      )[0]
    )
  )(hidden)
  jax.effects_barrier()
  assert len(taken) == 2


def test_what_it_saves():
  """An eighth of the positions of a row at a time: 16 of 128."""
  full = compiled(losses.cross_entropy)
  ours = compiled(losses.cross_entropy_at_targets)
  memory = [c.memory_analysis().temp_size_in_bytes for c in (full, ours)]
  all_logits = 4 * 128 * 8192 * 4
  assert memory[0] >= all_logits
  assert memory[1] < memory[0] / 4
  # XLA counts a loop's body once: these are the operations of one step.
  flops = [c.cost_analysis()["flops"] for c in (full, ours)]
  assert flops[1] < flops[0] / 4


def passes(length, dtype=jnp.float32):
  """The hidden states of two passes over the same rows."""
  draw = np.random.default_rng(2).normal(size=(2, 4, length, D))
  return tuple(jnp.asarray(draw, dtype))


@functools.partial(jax.jit, static_argnames=("loss", "chunk"))
def sum_and_slopes(a, b, weights, loss, chunk=None):
  options = {} if chunk is None else {"chunk": chunk}

  def total(a, b):
    value = loss(logits, a, b, weights=weights, **options)
    return 3 * value, value

  slopes, value = jax.grad(total, argnums=(0, 1), has_aux=True)(a, b)
  return value, *slopes


def disagreement(a, b, weights, table=TABLE):
  """1/2 [KL(p_b || p_a) + KL(p_a || p_b)] in numpy's float64, and what slopes
  it has where the first argument of either KL is a constant: those of
  cross-entropy with it as the target, p - target."""
  table = np.float64(table)
  p, q = (np.exp(np.float64(hidden) @ table) for hidden in (a, b))
  p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
  value = (q * np.log(q / p) + p * np.log(p / q)).sum(axis=-1) / 2
  slope = 3 * weights[..., None] * (p - q) / 2 @ table.T
  return (value * weights).sum(), slope, -slope


@pytest.mark.parametrize("length, chunk", [(8, 4), (11, 4), (3, 16), (11, 1)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_consistency(weights, length, chunk):
  weights = WEIGHTS[weights](length)
  a, b = passes(length)
  expected = disagreement(a, b, weights)
  for loss, size in (
    (losses.consistency_at_targets, chunk),
    (losses.consistency, None),
  ):
    got = sum_and_slopes(a, b, weights, loss, size)
    for ours, theirs in zip(got, expected, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for slope in got[1:]:
      assert not np.asarray(slope)[weights == 0].any()


def test_consistency_detaches_what_the_other_says():
  def formula(a, b, stop):
    log_p, log_q = (jax.nn.log_softmax(logits(x)) for x in (a, b))
    to_a = jnp.exp(stop(log_q)) * (stop(log_q) - log_p)
    to_b = jnp.exp(stop(log_p)) * (stop(log_p) - log_q)
    return 3 * (to_a + to_b).sum() / 2

  a, b = passes(5)
  slopes = {
    stop: jax.grad(formula, argnums=(0, 1))(a, b, stop)
    for stop in (jax.lax.stop_gradient, lambda x: x)
  }
  stopped, whole = slopes.values()
  for loss in (losses.consistency_at_targets, losses.consistency):
    got = sum_and_slopes(a, b, np.ones((4, 5), np.float32), loss)[1:]
    for ours, theirs, other in zip(got, stopped, whole, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
      assert np.abs(ours - other).max() > 0.1


def test_passes_that_agree_have_no_disagreement():
  a, _ = passes(11)
  for loss in (losses.consistency_at_targets, losses.consistency):
    value, *slopes = sum_and_slopes(a, a, ragged(11), loss)
    assert value == 0
    np.testing.assert_allclose(slopes, 0, atol=1e-6)
    # So it is without a target, whatever is said there.
    nothing = np.zeros((4, 11), np.float32)
    for values in sum_and_slopes(a, 100 * a, nothing, loss):
      assert not np.asarray(values).any()


def test_consistency_in_bfloat16():
  a, b = passes(11, jnp.bfloat16)
  expected = disagreement(a, b, ragged(11), table=np.eye(D))[0]
  for loss in (losses.consistency_at_targets, losses.consistency):
    value, slope = jax.value_and_grad(
      lambda a, loss=loss: loss(lambda x: x, a, b, weights=ragged(11))
    )(a)
    assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    # Only what comes in is rounded to bfloat16.
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_what_consistency_saves():
  def twice(loss):
    def sums(logits, hidden, *, targets, weights):
      return loss(logits, hidden, 2 * hidden, weights=weights), targets

    return sums

  full = compiled(twice(losses.consistency))
  ours = compiled(twice(losses.consistency_at_targets))
  memory = [c.memory_analysis().temp_size_in_bytes for c in (full, ours)]
  assert memory[1] < memory[0] / 4


@pytest.mark.parametrize(
  "platform, places, length, expected",
  [
    ("cpu", 1, 512, 16),
    ("cpu", 1, 8, 8),
    # 2**26 logits: of 4 rows and 32 words, 2**19 positions.
    ("tpu", 1, 2048, 2048),
    ("tpu", 1, 2**20, 2**19),
    # Of each device's own rows.
    ("gpu", 4, 2**22, 2**21),
  ],
)
def test_positions_at_a_time(monkeypatch, platform, places, length, expected):
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  monkeypatch.setattr(sharding, "places", lambda: places)
  hidden = jax.ShapeDtypeStruct((4, length, D), jnp.float32)
  assert losses._chunk(logits, hidden) == expected


@pytest.mark.parametrize(
  "most, length, expected",
  [(65, 100, 64), (65, 60, 60), (7, 100, 7), (103, 100, 100)],
)
def test_whole_tiles_of_positions(monkeypatch, most, length, expected):
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  monkeypatch.setattr(losses, "_LOGITS", 4 * 32 * most)
  hidden = jax.ShapeDtypeStruct((4, length, D), jnp.float32)
  assert losses._chunk(logits, hidden) == expected


def test_the_platform_is_that_of_the_mesh():
  assert sharding.platform() == "cpu"
  with sharding.use(meshes.mesh()):
    assert sharding.platform() == "cpu"
