"""Every execution against the loop over tokens, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import execution, groups, routers
from tests.adapters import loop

BATCH, LENGTH, D, F, EXPERTS, RANK, SCALE = 3, 12, 6, 5, 4, 2, 1.5
NAMES, COEFFICIENT = ("x", "A", "B", "kernel"), 0.7

FULL = np.ones((BATCH, LENGTH), int)
PADDED = np.array([[1] * 12, [1] * 7 + [0] * 5, [1] + [0] * 11])
PACKED = np.array(
  [[1] * 5 + [2] * 7, [1] * 3 + [2] * 4 + [3] * 2 + [0] * 3, [1] * 12]
)

CASES = {
  "unlimited": dict(k=2),
  "binding": dict(k=2, capacity_factor=0.75),
  "tight": dict(k=3, capacity_factor=0.25),
  "not binding": dict(k=2, capacity_factor=4.0),
  "first choice alone": dict(k=1, capacity_factor=1.0),
  "every expert": dict(k=EXPERTS),
  "dropout": dict(k=2, capacity_factor=1.0, expert_dropout=0.5),
}


def problem(seed, experts=EXPERTS):
  rng = np.random.default_rng(seed)
  shapes = dict(
    x=(BATCH, LENGTH, D),
    A=(D, experts, RANK),
    B=(experts, RANK, F),
    kernel=(D, experts),
    dy=(BATCH, LENGTH, F),
  )
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


# Many programs run once: compiling is what takes time, and so takes half.
@functools.partial(
  jax.jit,
  static_argnames=("settings", "packed"),
  compiler_options={"xla_backend_optimization_level": 0},
)
def gradients(arrays, ids, keep, settings, packed):
  """(gradients, (y, routing)) by execution; one program for all such ids."""

  def forward(x, A, B, kernel, run):
    with ambient.SEGMENTS(ambient.Segments(ids, packed)):
      routing = routers.route(
        jnp.einsum("btd,de->bte", x, kernel),
        settings,
        groups=groups.of_batch(*ids.shape),
        keep=keep,
      )
    y = run(x, A, B, routing=routing, scale=SCALE)
    loss = (y * arrays["dy"]).sum()
    return loss + COEFFICIENT * routing.stats.balance_loss, (y, routing)

  gradient = jax.grad(forward, argnums=(0, 1, 2, 3), has_aux=True)
  return {
    name: gradient(*(arrays[name] for name in NAMES), run)
    for name, run in execution.EXECUTIONS.items()
  }


def compare(arrays, ids, packed, settings, keep=None):
  """Asserts values and gradients within 1e-5 of the loop's largest."""
  exact = {name: arrays[name].astype(np.float64) for name in arrays}
  dropout = dict(keep=keep, rate=settings.expert_dropout, scale=SCALE)
  want, balance, saved = loop.mixture(
    *(exact[name] for name in NAMES),
    ids=ids,
    k=settings.k,
    factor=settings.capacity_factor,
    **dropout,
  )
  wanted = loop.gradients(
    *(exact[name] for name in NAMES),
    saved,
    exact["dy"],
    coefficient=COEFFICIENT,
    **dropout,
  )
  found = gradients(arrays, ids, keep, settings, packed)
  for run, (got, (y, routing)) in found.items():
    pairs = [("y", y, want), ("balance", routing.stats.balance_loss, balance)]
    pairs += [(n, g, wanted[n]) for n, g in zip(NAMES, got, strict=True)]
    for name, ours, theirs in pairs:
      error = np.abs(np.asarray(ours) - theirs).max()
      assert error <= 1e-5 * np.abs(theirs).max(), (run, name, error)
    assert float(routing.stats.dropped.sum()) == saved["dropped"]
  return routing, saved


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
  "ids, packed",
  [(FULL, False), (PADDED, False), (PACKED, True), (PADDED, True)],
  ids=["full", "padded", "packed", "padded as packed"],
)
def test_equals_loop(case, ids, packed):
  settings = routers.TopK(**CASES[case])
  keep = None
  if settings.expert_dropout:
    shape = (BATCH, LENGTH, EXPERTS)
    keep = np.random.default_rng(5).random(shape) >= settings.expert_dropout
  _, saved = compare(problem(1), ids, packed, settings, keep)
  if case in ("binding", "tight"):
    assert saved["dropped"] > 0


def test_one_expert():
  settings = routers.TopK(k=1, capacity_factor=0.5)
  _, saved = compare(problem(2, experts=1), FULL, False, settings)
  assert saved["dropped"] == BATCH * LENGTH // 2


@pytest.mark.parametrize("factor", [None, 1.0])
def test_ties_go_to_the_lower_expert(factor):
  arrays = problem(3)
  arrays["kernel"][:] = arrays["kernel"][:, :1]
  settings = routers.TopK(k=2, capacity_factor=factor)
  routing, _ = compare(arrays, FULL, False, settings)
  assert not np.asarray(routing.weights)[..., 2:].any()


@pytest.mark.parametrize("run", execution.EXECUTIONS.values())
def test_packed_equals_unpacked(run):
  """Two examples in one row do what they do in rows of their own."""
  arrays = problem(4)
  settings = routers.TopK(k=2, capacity_factor=0.75)

  @functools.partial(jax.jit, static_argnames="packed")
  def outputs(x, ids, packed):
    with ambient.SEGMENTS(ambient.Segments(ids, packed)):
      routing = routers.route(
        x @ arrays["kernel"],
        settings,
        groups=groups.of_batch(*ids.shape),
      )
    y = run(x, arrays["A"], arrays["B"], routing=routing, scale=SCALE)
    return y, routing.stats.balance_loss

  x = arrays["x"][:1]
  packed, balance = outputs(x, np.array([[1] * 5 + [2] * 7]), True)
  rows = np.zeros((2, 7, D), np.float32)
  rows[0, :5], rows[1] = x[0, :5], x[0, 5:]
  ids = np.array([[1] * 5 + [0] * 2, [1] * 7])
  unpacked, expected = outputs(rows, ids, False)
  np.testing.assert_allclose(packed[0, :5], unpacked[0, :5], atol=1e-5)
  np.testing.assert_allclose(packed[0, 5:], unpacked[1], atol=1e-5)
  np.testing.assert_allclose(balance, expected, rtol=1e-5)
