"""Every execution against the loop over tokens, values and gradients."""

import contextlib
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient, meshes, sharding
from sira_jax.adapters import draws, execution, routers
from tests.adapters import loop

BATCH, LENGTH, D, F, EXPERTS, RANK, SCALE = 3, 12, 6, 5, 4, 2, 1.5
NAMES, SEED = ("x", "A", "B", "g", "kernel"), 7

FULL = np.ones((BATCH, LENGTH), int)
PADDED = np.array([[1] * 12, [1] * 7 + [0] * 5, [1] + [0] * 11])
PACKED = np.array(
  [[1] * 5 + [2] * 7, [1] * 3 + [2] * 4 + [3] * 2 + [0] * 3, [1] * 12]
)
LAYOUTS = {
  "full": (FULL, False),
  "padded": (PADDED, False),
  "packed": (PACKED, True),
  "padded as packed": (PADDED, True),
}

# Settings of the router; "activation" and "gated" are the experts'.
CASES = {
  "unlimited": dict(k=2, activation="relu"),
  "every expert": dict(k=EXPERTS, activation="gelu", gated=True),
  "binding": dict(k=2, capacity_factor=0.75),
  "tight": dict(k=3, capacity_factor=0.25, gated=True),
  "not binding": dict(k=2, capacity_factor=4.0),
  "first choice alone": dict(k=1, capacity_factor=1.0),
  "absolute": dict(k=2, capacity=2, activation="gelu"),
  "dropout": dict(k=2, capacity_factor=1.0, expert_dropout=0.5),
  "position": dict(
    k=2, capacity=2, priority="position", activation="relu", gated=True
  ),
  "probability": dict(k=2, capacity_factor=0.75, priority="probability"),
  "renormalised": dict(
    k=2, capacity=2, renormalise=True, priority="probability", z_coefficient=0.1
  ),
  "renormalised dropout": dict(k=2, renormalise=True, expert_dropout=0.7),
  "balance of what is served": dict(
    k=2, capacity_factor=0.5, balance_served=True, priority="position"
  ),
  "examples": dict(
    k=2,
    level="example",
    renormalise=True,
    expert_dropout=0.5,
    z_coefficient=0.1,
  ),
}
BINDING = ("binding", "tight", "absolute", "position", "probability")


def problem(seed, experts=EXPERTS, gated=False):
  rng = np.random.default_rng(seed)
  shapes = dict(
    x=(BATCH, LENGTH, D),
    A=(D, experts, RANK),
    B=(experts, RANK, F),
    kernel=(D, experts),
    dy=(BATCH, LENGTH, F),
    g=(experts, RANK),
  )
  arrays = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  return arrays if gated else arrays | {"g": None}


def routed(x, kernel, settings):
  router = nnx.eval_shape(
    lambda key: routers.Router(*kernel.shape, settings, key=key, seed=SEED),
    jax.random.key(0),
  )
  router.kernel.set_value(kernel)
  router.seed.set_value(jnp.uint32(SEED))
  return router(x)


# Many programs run once: compiling is what takes time, and so takes half.
@functools.partial(
  jax.jit,
  static_argnames=("settings", "packed", "activation"),
  compiler_options={"xla_backend_optimization_level": 0},
)
def gradients(arrays, ids, key, settings, packed, activation):
  """(gradients, (y, routing)) by execution; one program for all such ids."""

  def forward(x, A, B, g, kernel, run):
    with (
      ambient.SEGMENTS(ambient.Segments(ids, packed)),
      ambient.DROPOUT_KEY(key),
    ):
      routing = routed(x, kernel, settings)
    experts = execution.Experts(A, B, g=g, activation=activation, scale=SCALE)
    y = run(
      x, experts, weights=routing.weights, slots=routing.slots, k=routing.k
    )
    return (y * arrays["dy"]).sum() + routing.stats.penalty, (y, routing)

  gradient = jax.grad(forward, argnums=(0, 1, 2, 3, 4), has_aux=True)
  return {
    name: gradient(*(arrays[name] for name in NAMES), run)
    for name, run in execution.EXECUTIONS.items()
    if name != "auto"  # which is one of the others
  }


@functools.cache
def mask(rate, key):
  with ambient.DROPOUT_KEY(jax.random.key(key)):
    return np.asarray(draws.keep((BATCH, LENGTH, EXPERTS), rate, SEED))


def dropout(settings, ids, key):
  """The mask that a router of these settings draws; None without dropout."""
  if not settings.expert_dropout:
    return None
  keep = mask(settings.expert_dropout, key).copy()
  if settings.level == "example":
    for row, tokens in loop.examples(ids):
      keep[row, tokens] = keep[row, tokens[0]]
  return keep


def compare(arrays, layout, settings, *, activation="identity", key=0):
  """Asserts values and gradients within 1e-5 of the loop's largest."""
  ids, packed = layout
  exact = {
    name: None if array is None else array.astype(np.float64)
    for name, array in arrays.items()
  }
  y, routing, wanted = loop.mixture(
    exact,
    settings,
    ids=ids,
    keep=dropout(settings, ids, key),
    activation=activation,
    scale=SCALE,
  )
  found = gradients(
    arrays, ids, jax.random.key(key), settings, packed, activation
  )
  for run, (got, (ours, theirs)) in found.items():
    pairs = {
      name: (g, wanted[name]) for name, g in zip(NAMES, got, strict=True)
    }
    pairs |= dict(
      y=(ours, y),
      weights=(theirs.weights, routing["weights"]),
      balance=(theirs.stats.balance_loss, routing["balance"]),
      penalty=(theirs.stats.penalty, routing["penalty"]),
    )
    if arrays["g"] is None:
      assert pairs.pop("g")[0] is None
    for name, (one, other) in pairs.items():
      error = np.abs(np.asarray(one) - other).max()
      assert error <= 1e-5 * np.abs(other).max(), (run, name, error)
    assert float(theirs.stats.dropped.sum()) == routing["dropped"]
  return routing


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_loop(case, layout):
  settings = dict(balance_coefficient=0.7) | CASES[case]
  gated = settings.pop("gated", False)
  activation = settings.pop("activation", "identity")
  settings = routers.TopK(**settings)
  routing = compare(
    problem(1, gated=gated), LAYOUTS[layout], settings, activation=activation
  )
  if case in BINDING:
    assert routing["dropped"] > 0
  if case == "renormalised dropout":
    # Such a token has no sum to be divided by.
    assert (~routing["chosen"].any(axis=-1) & (routing["share"] > 0)).any()


def test_the_priorities_differ():
  """Else a test of one would pass with another."""
  arrays = problem(1)
  logits = arrays["x"].astype(np.float64) @ arrays["kernel"]
  limits = dict(k=2, capacity_factor=0.75)
  found = [
    loop.route(logits, routers.TopK(**limits, priority=priority), ids=PACKED)[
      "weights"
    ]
    for priority in ("choice", "position", "probability")
  ]
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert (found[one] != found[other]).any()


def test_one_expert():
  settings = routers.TopK(k=1, capacity_factor=0.5)
  routing = compare(problem(2, experts=1), LAYOUTS["full"], settings)
  assert routing["dropped"] == BATCH * LENGTH // 2


@pytest.mark.parametrize("factor", [None, 1.0])
def test_ties_go_to_the_lower_expert(factor):
  arrays = problem(3)
  arrays["kernel"][:] = arrays["kernel"][:, :1]
  settings = routers.TopK(k=2, capacity_factor=factor)
  routing = compare(arrays, LAYOUTS["full"], settings)
  assert not routing["weights"][..., 2:].any()


@functools.partial(
  jax.jit,
  static_argnames=("settings", "packed"),
  compiler_options={"xla_backend_optimization_level": 0},
)
def outputs(arrays, x, ids, settings, packed):
  """y of each execution and the balance loss."""
  experts = execution.Experts(
    arrays["A"], arrays["B"], g=None, activation="identity", scale=SCALE
  )
  with ambient.SEGMENTS(ambient.Segments(ids, packed)):
    routing = routed(x, arrays["kernel"], settings)
  y = [
    run(x, experts, weights=routing.weights, slots=routing.slots, k=routing.k)
    for run in execution.EXECUTIONS.values()
  ]
  return jnp.stack(y), routing.stats.balance_loss


@pytest.mark.parametrize(
  "settings",
  [
    dict(capacity_factor=0.75),
    dict(capacity=3, priority="probability"),
    dict(level="example"),
  ],
  ids=["factor", "probability", "example"],
)
def test_packed_equals_unpacked(settings):
  """Two examples in one row do what they do in rows of their own."""
  arrays, settings = problem(4), routers.TopK(k=2, **settings)
  x = arrays["x"][:1]
  ids = np.array([[1] * 5 + [2] * 7])
  packed, balance = outputs(arrays, x, ids, settings, True)
  rows = np.zeros((2, 7, D), np.float32)
  rows[0, :5], rows[1] = x[0, :5], x[0, 5:]
  ids = np.array([[1] * 5 + [0] * 2, [1] * 7])
  unpacked, expected = outputs(arrays, rows, ids, settings, False)
  np.testing.assert_allclose(packed[:, 0, :5], unpacked[:, 0, :5], atol=1e-5)
  np.testing.assert_allclose(packed[:, 0, 5:], unpacked[:, 1], atol=1e-5)
  np.testing.assert_allclose(balance, expected, rtol=1e-5)


def chosen(monkeypatch, *, slots, k, crossovers, mesh=False, routed=True):
  """What `auto` runs 2 rows of 32 tokens by, with 8 experts of rank 4."""
  ran = []
  for name in ("rank_space", "gather"):
    monkeypatch.setattr(
      execution, name, lambda *args, n=name, **given: ran.append(n)
    )
  monkeypatch.setattr(execution, "CROSSOVERS", crossovers)
  experts = execution.Experts(
    np.ones((D, 8, 4)), np.ones((8, 4, F)), None, "identity", SCALE
  )
  weights = np.ones((2, 32, 8)) if routed else None
  with sharding.use(meshes.mesh()) if mesh else contextlib.nullcontext():
    execution.auto(
      np.ones((2, 32, D)), experts, weights=weights, slots=slots, k=k
    )
  return ran


@pytest.mark.parametrize(
  "given, expected",
  [
    # 64 tokens of total rank 32 are 2048; 8 buffers of 2 * 4 places are 64.
    (dict(slots=4, k=1, crossovers={"cpu": (32, 99)}), "gather"),
    (dict(slots=4, k=1, crossovers={"cpu": (33, 0)}), "rank_space"),
    # No limit: 16 small buffers of 8 places for 64 choices, 128 in all.
    (dict(slots=32, k=1, crossovers={"cpu": (99, 16)}), "gather"),
    (dict(slots=32, k=1, crossovers={"cpu": (0, 17)}), "rank_space"),
    (dict(slots=4, k=1, crossovers={}), "rank_space"),
    (dict(slots=4, k=1, crossovers={"cpu": (1, 1)}, mesh=True), "rank_space"),
    (
      dict(slots=4, k=1, crossovers={"cpu": (1, 1)}, routed=False),
      "rank_space",
    ),
  ],
)
def test_auto_takes_the_faster(monkeypatch, given, expected):
  assert chosen(monkeypatch, **given) == [expected]
