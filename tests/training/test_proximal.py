"""The proximal step against closed forms, alone and inside optax's wrappers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax.adapters.variables import AdapterParam, GateParam
from sira_jax.training import optimizers, proximal

GRID = [-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3]


@pytest.mark.parametrize(
  "function, expected",
  [
    # |x| - 1 beyond 1.
    (proximal.soft_threshold, [-2, -1, -0.5, 0, 0, 0, 0, 0, 0.5, 1, 2]),
    # 1.5 shrinks to 0.5, which is below 1 and goes too; 2 shrinks to 1.
    (proximal.released_threshold, [-2, -1, 0, 0, 0, 0, 0, 0, 0, 1, 2]),
  ],
)
def test_thresholds(function, expected):
  got = function(jnp.array(GRID, jnp.float32), 1.0)
  np.testing.assert_array_equal(got, expected)
  # Everything scales: T of c x with threshold c t is c T.
  got = function(0.25 * jnp.array(GRID, jnp.float32), 0.25)
  np.testing.assert_array_equal(got, 0.25 * np.array(expected))


def test_thresholds_differ_below_twice_the_threshold():
  x = np.linspace(-3, 3, 4001, dtype=np.float32)
  soft = proximal.soft_threshold(x, 0.7)
  released = proximal.released_threshold(x, 0.7)
  between = (np.abs(x) > 0.7) & (np.abs(x) < 1.4)
  np.testing.assert_array_equal(soft != released, between)
  assert not released[between].any()


def test_released_threshold_is_shrinking_and_then_zeroing():
  """The three statements of the released code, one after another."""
  x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
  p, t = x.copy(), np.float32(0.4)
  p[p > t] -= t
  p[p < -t] += t
  p[np.abs(p) < t] = 0
  np.testing.assert_array_equal(proximal.released_threshold(x, t), p)


def step(optimizer, updates, params, count=1):
  state = optimizer.init(params)
  for _ in range(count):
    found, state = optimizer.update(updates, state, params)
  return found


def test_l1():
  p, u = jnp.array([1.0, 0.3, -0.2, 0.0]), jnp.array([0.1, -0.1, 0.4, 0.2])
  found = step(proximal.l1(0.25), u, p)
  # p + u = 1.1, 0.2, 0.2, 0.2
  np.testing.assert_allclose(found[0], 1.1 - 0.25 - 1.0, rtol=1e-6)
  np.testing.assert_array_equal(found[1:], -p[1:])
  # 1.1 - 0.6 is below 0.6.
  found = step(proximal.l1(0.6, form="released"), u, p)
  np.testing.assert_array_equal(found, -p)


@pytest.mark.parametrize("threshold", [0.0, -0.5, lambda step: -0.5])
@pytest.mark.parametrize("form", list(proximal.FORMS))
def test_no_threshold_leaves_the_update(threshold, form):
  rng = np.random.default_rng(0)
  p, u = jnp.float32(rng.normal(size=(2, 50)))
  found = step(proximal.l1(threshold, form=form), u, p)
  np.testing.assert_array_equal(found, u)


def test_threshold_of_the_step():
  optimizer = proximal.l1(lambda step: 0.125 * step)
  p, u = jnp.ones(1), jnp.zeros(1)
  got = [step(optimizer, u, p, count)[0] for count in (1, 2, 3)]
  np.testing.assert_array_equal(got, [0, -0.125, -0.25])


# A quadratic whose penalised minimum is known: with loss |g - TARGET|^2 / 2
# and penalty, it is soft_threshold(TARGET, penalty).
TARGET = np.array([1.0, -0.7, 0.15, 0.0, -0.1])
PENALTY = 0.2
WANTED = np.array([0.8, -0.5, 0, 0, 0])
RATE = optax.cosine_decay_schedule(0.5, 60, alpha=0.5)
PROXIMAL = proximal.l1(lambda step: PENALTY * RATE(step))


def variables(dtype=jnp.float32):
  ones = jnp.ones(5, dtype)
  return nnx.State({"A": AdapterParam(ones), "g": GateParam(ones)})


def quadratic(params):
  return sum(
    0.5 * jnp.sum((leaf - TARGET) ** 2) for leaf in jax.tree.leaves(params)
  )


def train(optimizer, params, steps):
  """(A, g) after some steps."""
  state = optimizer.init(params)

  @jax.jit
  def one(params, state):
    grads = jax.grad(quadratic)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    params, state = one(params, state)
  return np.float32(params["A"][...]), np.float32(params["g"][...])


def is_gate(tree):
  return jax.tree.map(
    lambda variable: isinstance(variable, GateParam),
    tree,
    is_leaf=lambda node: isinstance(node, nnx.Variable),
  )


def labels(tree):
  return jax.tree.map(lambda gate: "gate" if gate else "rest", is_gate(tree))


MASKED = optax.chain(optax.sgd(RATE), optax.masked(PROXIMAL, is_gate))
WRAPPED = {
  "masked": MASKED,
  "partition": optax.partition(
    {"gate": optax.chain(optax.sgd(RATE), PROXIMAL), "rest": optax.sgd(RATE)},
    labels,
  ),
  "multi steps": optax.MultiSteps(MASKED, 2),
  "apply if finite": optax.apply_if_finite(MASKED, 3),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_penalised_minimum(name, dtype):
  steps = 120 if name == "multi steps" else 60
  a, g = train(WRAPPED[name], variables(dtype), steps)
  tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
  np.testing.assert_allclose(a, TARGET, atol=tolerance)
  np.testing.assert_allclose(g, WANTED, atol=tolerance)
  np.testing.assert_array_equal(g == 0, WANTED == 0)


def test_bfloat16_updates_of_float32_gates_reach_zero():
  p = jnp.float32([0.1001, 0.2003])
  found = step(proximal.l1(0.5), jnp.zeros(2, jnp.bfloat16), p)
  np.testing.assert_array_equal(optax.apply_updates(p, found), [0, 0])


def test_the_proximal_step_is_the_last():
  """Of Adam: zeros behind it, none before it or with a link behind."""
  # Adam moves by about the learning rate: twice that outweighs any gradient.
  penalty = optax.masked(proximal.l1(2 * 0.05), is_gate)
  chains = {
    "last": [optax.adam(0.05), penalty],
    "first": [penalty, optax.adam(0.05)],
    "not last": [optax.adam(0.05), penalty, optax.scale(0.5)],
  }
  zeros = {
    name: int((train(optax.chain(*links), variables(), 30)[1] == 0).sum())
    for name, links in chains.items()
  }
  assert zeros == {"last": 5, "first": 0, "not last": 0}


def test_a_gradient_that_is_not_finite_stays():
  found = step(proximal.l1(0.1), jnp.array([jnp.nan, 1.0]), jnp.ones(2))
  np.testing.assert_array_equal(np.isnan(found), [True, False])


def test_mean_l1():
  """Of all gates of the model together, and of nothing else."""
  rng = np.random.default_rng(0)
  params = nnx.State(
    {
      "A": AdapterParam(jnp.float32(rng.normal(size=(2, 3)))),
      "g": GateParam(jnp.float32([0.5, -2.0, 1e-30])),
      "h": GateParam(jnp.float32(rng.normal(size=(5, 1)))),
    }
  )

  def penalty(params):
    gates = [jnp.ravel(params[name][...]) for name in ("g", "h")]
    return 3.0 * jnp.abs(jnp.concatenate(gates)).mean()

  gradients = jax.tree.map(jnp.ones_like, params)
  found = step(optax.masked(proximal.mean_l1(3.0), is_gate), gradients, params)
  expected = jax.tree.map(lambda g: 1 + g, jax.grad(penalty)(params))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  # 3 / 8, with the gate's sign.
  np.testing.assert_array_equal(found["g"][...], [1.375, 0.625, 1.375])


def test_mean_l1_leaves_a_zero():
  found = step(proximal.mean_l1(3.0), jnp.ones(2), jnp.array([0.0, 1.0]))
  np.testing.assert_array_equal(found, [1, 2.5])


@pytest.mark.parametrize(
  "optimizer", [proximal.l1(0.1), proximal.mean_l1(0.1)], ids=["l1", "mean"]
)
def test_parameters_are_needed(optimizer):
  with pytest.raises(ValueError, match="needs the parameters"):
    optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(penalty=-1.0), "penalty must be 0 or more, got -1.0"),
    (dict(penalty=float("nan")), "penalty must be 0 or more, got nan"),
    (dict(penalty=float("inf")), "penalty must be 0 or more, got inf"),
    (dict(penalty=1.0, mean_penalty=-1.0), "mean_penalty must be 0 or more"),
    (dict(penalty=1.0, learning_rate=0.0), "must be above 0, got 0.0"),
    (dict(penalty=1.0, form="hard"), r"'hard'.*\['paper', 'released'\]"),
  ],
)
def test_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    proximal.Gates(**settings)


def test_forms_are_refused():
  with pytest.raises(ValueError, match=r"'hard'.*\['paper', 'released'\]"):
    proximal.l1(0.1, form="hard")


# The proof: the rank of a product is found, from above.

SIZE, RANK, TRUE_RANK, ROWS, SEEDS, NOISE = 16, 10, 4, 256, 5, 0.01
STEPS = 1500


def regression(seed):
  """x, y = x W + noise with W of rank 4, and A, B, g of rank 10."""
  keys = jax.random.split(jax.random.key(seed), 5)
  left = jax.random.normal(keys[0], (SIZE, TRUE_RANK)) / SIZE**0.5
  right = jax.random.normal(keys[1], (TRUE_RANK, SIZE)) / TRUE_RANK**0.5
  x = jax.random.normal(keys[2], (ROWS, SIZE))
  y = x @ left @ right + NOISE * jax.random.normal(keys[3], (ROWS, SIZE))
  a = jax.random.normal(keys[4], (SIZE, RANK)) / SIZE**0.5
  return (x, y), nnx.State(
    {
      "A": AdapterParam(a),
      "B": AdapterParam(jnp.zeros((RANK, SIZE))),
      "g": GateParam(jnp.ones(RANK)),
    }
  )


def error(params, data):
  x, y = data
  a, b, g = (params[name][...] for name in "ABg")
  return jnp.mean(((x @ a * g) @ b - y) ** 2)


def fit(penalty, params, data):
  """Trains on from `params` with a learning rate warmed up anew."""
  optimizer, _ = optimizers.adamw(
    steps=STEPS,
    learning_rate=2e-2,
    warmup_steps=STEPS // 10,
    # Without a decay of A and B, they grow and the gates are small for free.
    weight_decay=0.2,
    gates=proximal.Gates(penalty=penalty),
  )

  def one(carry, _):
    params, state = carry
    grads = jax.grad(error)(params, data)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  carry = params, optimizer.init(params)
  (params, _), _ = jax.lax.scan(one, carry, length=STEPS)
  return params, error(params, data)


def test_the_true_rank_is_found():
  data, params = jax.vmap(regression)(jnp.arange(SEEDS))
  ranks, errors = [], []
  for penalty in (0.0, 0.5, 0.55, 0.6):
    run = jax.jit(jax.vmap(lambda p, d, penalty=penalty: fit(penalty, p, d)))
    params, loss = run(params, data)
    ranks.append((np.asarray(params["g"][...]) != 0).sum(axis=1))
    errors.append(np.asarray(loss))
  ranks, errors = np.stack(ranks), np.stack(errors)
  assert (ranks[0] == RANK).all(), ranks
  found = ranks == TRUE_RANK
  assert found.any(axis=0).all(), ranks
  # The noise is all that four ranks leave; three would leave a hundred times.
  assert (errors[found] < 1.5 * NOISE**2).all(), errors
