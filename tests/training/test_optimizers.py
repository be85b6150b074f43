"""Schedules and updates by hand, gates, and settings that are refused."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax.adapters.variables import AdapterParam, GateParam
from sira_jax.training import optimizers, proximal


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
@pytest.mark.parametrize(
  "settings, expected",
  [
    # Up by 0.5 a step; then (1 + cos(pi t)) / 2 at t = 0, 1/4, 1/2, 3/4, 1.
    (
      dict(steps=6, warmup_steps=2, final_fraction=0.0),
      [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0],
    ),
    (dict(steps=2, final_fraction=0.0), [1, 0.5, 0]),
    (dict(steps=2, final_fraction=0.2), [1, 0.6, 0.2]),
    (dict(steps=4, warmup_steps=2, final_fraction=1.0), [0, 0.5, 1, 1, 1]),
  ],
  ids=["warm-up", "no warm-up", "final fraction", "constant"],
)
def test_schedule(kind, settings, expected):
  _, schedule = optimizers.create(kind, learning_rate=1.0, **settings)
  got = [float(schedule(step)) for step in range(len(expected))]
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_final_rates_unless_told():
  for function, expected in (
    (optimizers.adamw, 0.0),
    (optimizers.adafactor, 3e-4),
  ):
    _, schedule = function(steps=5)
    np.testing.assert_allclose(schedule(5), expected, rtol=1e-6)


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


def adam_mean(optimizer, gradients, params):
  """Adam's mean after one gradient: a tenth of what came through to it."""
  _, state = optimizer.update(gradients, optimizer.init(params), params)
  adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
  found = [s for s in jax.tree.leaves(state, is_leaf=adam) if adam(s)]
  (state,) = found
  return state.mu


def test_clipping_comes_before_adam():
  """Adam forgets a gradient's scale, so its mean tells."""
  for clip, expected in ((1.0, 0.1), (None, 0.4)):
    optimizer, _ = optimizers.adamw(steps=10, clip=clip)
    mean = adam_mean(optimizer, jnp.array([4.0]), jnp.zeros(1))
    np.testing.assert_allclose(mean, [expected], rtol=1e-6)


def parameters(gate=GateParam):
  """A of two shapes, one that Adafactor factors, and g."""
  rng = np.random.default_rng(0)
  values = {"A": (128, 130), "B": (3, 4), "g": (5,)}
  types = {"A": AdapterParam, "B": AdapterParam, "g": gate}
  return nnx.State(
    {
      name: types[name](jnp.float32(rng.normal(size=shape)))
      for name, shape in values.items()
    }
  )


def trained(optimizer, params, steps=4):
  """After some steps of random gradients."""
  rng = np.random.default_rng(1)

  @jax.jit
  def one(params, state, gradients):
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(steps):
    gradients = jax.tree.map(
      lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), params
    )
    params, state = one(params, state, gradients)
  return {name: np.asarray(params[name][...]) for name in params}


SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, 1, 5, 0.02)
RUN = dict(steps=5, learning_rate=0.1, warmup_steps=1, final_fraction=0.2)
PLAIN = {
  "adamw": (
    dict(weight_decay=0.3, b1=0.8, b2=0.9),
    optax.adamw(SCHEDULE, b1=0.8, b2=0.9, weight_decay=0.3),
  ),
  "adafactor": (
    dict(),
    optax.adafactor(SCHEDULE, multiply_by_parameter_scale=False),
  ),
  "adafactor with parameter scale": (
    dict(decay_rate=0.7, parameter_scale=True),
    optax.adafactor(SCHEDULE, decay_rate=0.7),
  ),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
  "gates", [None, proximal.Gates(1.0, mean_penalty=1.0, learning_rate=3.0)]
)
def test_without_gates_it_is_optax(name, gates):
  """Bit for bit, even where settings of gates are given."""
  settings, rule = PLAIN[name]
  params = parameters(gate=AdapterParam)
  ours, _ = optimizers.create(
    name.split()[0], **RUN, **settings, clip=2.0, gates=gates
  )
  expected = trained(optax.chain(optax.clip_by_global_norm(2.0), rule), params)
  found = trained(ours, params)
  for key in params:
    np.testing.assert_array_equal(found[key], expected[key])
    assert (found[key] != np.asarray(params[key][...])).all()


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
def test_gates_alone_change(kind):
  """The others are trained as if the gates had no settings, bit for bit."""
  plain, _ = optimizers.create(kind, **RUN, clip=None)
  gated, _ = optimizers.create(
    kind, **RUN, clip=None, gates=proximal.Gates(5.0, mean_penalty=1.0)
  )
  expected, found = (trained(o, parameters(), 6) for o in (plain, gated))
  for name in "AB":
    np.testing.assert_array_equal(found[name], expected[name])
  assert expected["g"].all()
  assert (found["g"] == 0).any()


def test_adamw_of_gates_by_hand():
  rate, multiple, penalty, b1, b2 = 0.1, 2.0, 0.4, 0.8, 0.9
  start = np.array([0.5, -0.3, 0.45])
  gradients = np.array([[1.0, -2.0, 0.1], [0.5, 1.0, 0.3], [-1.0, 0.2, 0.01]])
  optimizer, _ = optimizers.adamw(
    steps=4,
    learning_rate=rate,
    weight_decay=0.7,
    b1=b1,
    b2=b2,
    clip=None,
    gates=proximal.Gates(penalty, learning_rate=multiple),
  )
  params = nnx.State({"g": GateParam(jnp.float32(start))})
  state = optimizer.init(params)
  g, mean, square, zeros = start, np.zeros(3), np.zeros(3), 0
  for t, gradient in enumerate(gradients):
    mean = b1 * mean + (1 - b1) * gradient
    square = b2 * square + (1 - b2) * gradient**2
    unbiased = mean / (1 - b1 ** (t + 1))
    root = np.sqrt(square / (1 - b2 ** (t + 1)))
    step = multiple * rate * (1 + np.cos(np.pi * t / 4)) / 2
    g = g - step * unbiased / (root + 1e-8)
    g = np.sign(g) * np.maximum(np.abs(g) - step * penalty, 0)
    grads = nnx.State({"g": GateParam(jnp.float32(gradient))})
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    found = np.asarray(params["g"][...])
    np.testing.assert_allclose(found, g, atol=1e-6)
    np.testing.assert_array_equal(found == 0, g == 0)
    zeros += (g == 0).sum()
  assert zeros


def first_step(gradient, **settings):
  """Of A and g, both at 1."""
  params = nnx.State(
    {"A": AdapterParam(jnp.ones(1)), "g": GateParam(jnp.ones(1))}
  )
  gradients = jax.tree.map(lambda leaf: gradient * leaf, params)
  optimizer, _ = optimizers.adamw(steps=10, **settings)
  found, _ = optimizer.update(gradients, optimizer.init(params), params)
  return [float(found[name][0]) for name in ("A", "g")]


@pytest.mark.parametrize("gates", [None, proximal.Gates(0.0)])
def test_gates_do_not_decay(gates):
  found = first_step(0.0, learning_rate=0.1, weight_decay=0.5, gates=gates)
  np.testing.assert_allclose(found, [-0.05, 0], rtol=1e-6)


def test_learning_rate_of_gates():
  gates = proximal.Gates(0.0, learning_rate=3.0)
  found = first_step(1.0, learning_rate=0.1, gates=gates)
  np.testing.assert_allclose(found, [-0.1, -0.3], rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_only_the_paper_form_multiplies_by_the_learning_rate(rate):
  for form, expected in (("paper", 0.2 * 2 * rate), ("released", 0.2)):
    gates = proximal.Gates(0.2, form=form, learning_rate=2.0)
    found = first_step(0.0, learning_rate=rate, gates=gates)
    np.testing.assert_allclose(found, [0, -expected], rtol=1e-5)


def test_released_form_has_its_dead_zone():
  gates = proximal.Gates(0.6, form="released")
  assert first_step(0.0, gates=gates) == [0, -1]


def test_mean_penalty_comes_before_clipping():
  params = nnx.State(
    {"A": AdapterParam(jnp.ones(1)), "g": GateParam(jnp.ones(4))}
  )
  gradients = nnx.State(
    {"A": AdapterParam(jnp.full(1, 3.0)), "g": GateParam(jnp.zeros(4))}
  )
  # The penalty's gradient is 8 / 4 a gate: the norm is sqrt(9 + 4 * 4) = 5.
  gates = proximal.Gates(0.0, mean_penalty=8.0)
  optimizer, _ = optimizers.adamw(steps=10, clip=1.0, gates=gates)
  mean = adam_mean(optimizer, gradients, params)
  np.testing.assert_allclose(mean["A"][...], 0.1 * 3 / 5, rtol=1e-6)
  np.testing.assert_allclose(mean["g"][...], 0.1 * 2 / 5, rtol=1e-6)


def test_parameter_scale_is_not_of_gates():
  """A zero gate would hardly move again, against a threshold that does."""
  plain, scaled = (
    trained(
      optimizers.adafactor(**RUN, parameter_scale=scale)[0], parameters(), 3
    )
    for scale in (False, True)
  )
  np.testing.assert_array_equal(plain["g"], scaled["g"])
  assert (plain["B"] != scaled["B"]).all()


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
def test_create_is_the_function(kind):
  gates = proximal.Gates(5.0)
  found, expected = (
    trained(function(**RUN, gates=gates)[0], parameters(), 2)
    for function in (
      functools.partial(optimizers.create, kind),
      getattr(optimizers, kind),
    )
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert not found["g"].all()


def test_create_refuses():
  with pytest.raises(ValueError, match=r"'sgd'.*\['adafactor', 'adamw'\]"):
    optimizers.create("sgd", steps=5)
  with pytest.raises(
    ValueError, match="adafactor has no setting b1, b2; it has learning_rate"
  ):
    optimizers.create("adafactor", steps=5, b2=0.9, b1=0.9, clip=None)


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(steps=0), "steps >= 1"),
    (dict(steps=5, warmup_steps=5), "warmup_steps < steps"),
    (dict(steps=5, warmup_steps=-1), "0 <= warmup_steps"),
    (dict(steps=5, learning_rate=0.0), "learning_rate must be above 0"),
    (dict(steps=5, final_fraction=-0.1), "final_fraction must be in"),
    (dict(steps=5, final_fraction=1.1), "final_fraction must be in"),
    (dict(steps=5, clip=0.0), "clip must be above 0"),
  ],
)
def test_settings_are_refused(kind, settings, message):
  with pytest.raises(ValueError, match=message):
    optimizers.create(kind, **settings)
