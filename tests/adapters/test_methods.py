"""Every method x every property, on a tiny decoder."""

import types

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from sira_jax import ambient, checkpoints
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.methods import METHODS
from sira_jax.adapters.variables import AdapterConstant, Trainable
from sira_jax.training import optimizers, proximal
from sira_jax.training import step as training
from tests import tiny

# Dropout and capacity bind, so that a run meets them.
SIRA = dict(experts=4, rank=2, k=2, expert_dropout=0.25, capacity_factor=1.0)
SETTINGS = {
  "lora": dict(rank=2),
  "sora": dict(rank=3, gate=0.5),
  "molora": dict(experts=3, rank=2),
  "sira": SIRA,
  "smoe_dropout": dict(experts=4, rank=2, first_k=1, k=4),
  "adamix": dict(experts=3, rank=2),
  "lora_smoe": dict(experts=3, rank=2),
  "bottleneck": dict(rank=2),
  "mov": dict(experts=3),
  "full": {},
}
PATHS = {name: tiny.SITES for name in SETTINGS} | {"full": ".*"}


def summed(formula):
  return sum(formula(d, f) for d, f in tiny.SIZES)


# What docs/methods.md says, for a layer d -> f.
PARAMETERS = {
  "lora": summed(lambda d, f: 2 * (d + f)),
  "sora": summed(lambda d, f: 3 * (d + f) + 3),
  "molora": summed(lambda d, f: 3 * 2 * (d + f) + 3 * d),
  "sira": summed(lambda d, f: 4 * 2 * (d + f) + 4 * d),
  "smoe_dropout": summed(lambda d, f: 4 * 2 * (d + f)),
  "adamix": summed(lambda d, f: 2 * (3 * d + f)),
  "lora_smoe": summed(lambda d, f: 3 * 2 * (d + f) + 3 * d),
  "bottleneck": summed(lambda d, f: 2 * (d + f)),
  "mov": summed(lambda d, f: 3 * f + 3 * d),
  # Embedding, two blocks (q, k, v, o; gate, up, down; two norms), last norm.
  "full": 64 * 16 + 2 * (16 * (16 + 8 + 8 + 16) + 3 * 16 * 24 + 2 * 16) + 16,
}
NAMES = {
  "lora": {"A", "B"},
  "sora": {"A", "B", "g"},
  "molora": {"A", "B", "router.kernel"},
  "sira": {"A", "B", "router.kernel"},
  "smoe_dropout": {"A", "B"},
  "adamix": {"A", "B"},
  "lora_smoe": {"A", "B", "router.kernel"},
  "bottleneck": {"A", "B"},
  "mov": {"delta", "router.kernel"},
}
# Without a gradient at step 0, since they meet the adapter's zero; but SiRA's
# router has one by the balance loss.
ZERO = {("sira", "A")} | {
  (method, name)
  for method in METHODS
  for name in ("A", "g", "router.kernel")
  if method != "sira"
}
ROUTED = {"molora", "sira", "smoe_dropout", "lora_smoe", "mov"}
STEPS = 20


def test_the_table_has_every_method():
  assert set(SETTINGS) == set(PARAMETERS) == set(METHODS)


@nnx.jit
def logits(model, batch):
  features = {name: batch[name] for name in model.FEATURES if name in batch}
  return model(**features)


@nnx.jit
def logits_under(model, batch, key):
  with ambient.DROPOUT_KEY(key):
    return logits(model, batch)


def recorded():
  """Keeps the last gradient as its state."""
  return optax.GradientTransformation(
    lambda trainable: jax.tree.map(jnp.zeros_like, trainable),
    lambda grads, state, trainable: (grads, grads),
  )


def by_path(state):
  return {
    ".".join(map(str, path)): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(state)
  }


def adapted(method):
  return tiny.adapted(method, path=PATHS[method], **SETTINGS[method])


@pytest.fixture(scope="module", params=METHODS)
def run(request):
  """A method's model, before and after 20 steps, with what went on."""
  model = adapted(request.param)
  model.eval()
  start = np.asarray(logits(model, tiny.batch()))
  frozen = by_path(nnx.state(model, nnx.Param))
  gates = proximal.Gates(penalty=0.3) if request.param == "sora" else None
  adam, _ = optimizers.adamw(steps=STEPS, learning_rate=3e-2, gates=gates)
  optimizer = optax.chain(recorded(), adam)
  state = training.init(model, optimizer, seed=0)
  traces, gradients, progress = [], [], []
  with pytest.MonkeyPatch.context() as patch:
    batch_loss = training.batch_loss

    def traced(*given, **settings):
      traces.append(1)
      loss, metrics = batch_loss(*given, **settings)
      return loss, metrics | {"progress": ambient.PROGRESS.get()}

    patch.setattr(training, "batch_loss", traced)
    step = training.make(model, optimizer, steps=STEPS)
    for number in range(STEPS):
      state, metrics = step(state, tiny.batch(number))
      gradients.append(by_path(state.optimizer[0]))
      progress.append(float(metrics.pop("progress")))
  nnx.update(model, jax.tree.map(jnp.copy, state.trainable))
  model.eval()
  return types.SimpleNamespace(
    method=request.param,
    model=model,
    start=start,
    frozen=frozen,
    optimizer=optimizer,
    state=state,
    traces=len(traces),
    gradients=gradients,
    progress=progress,
    metrics=metrics,
  )


def test_changes_nothing_at_step_0(run):
  expected = np.asarray(logits(tiny.base(), tiny.batch()))
  np.testing.assert_array_equal(run.start, expected)


def test_learns_something(run):
  got = np.asarray(logits(run.model, tiny.batch()))
  assert np.abs(got - run.start).max() > 1e-2


def test_leaves_the_base_as_it_was(run):
  after = by_path(nnx.state(run.model, nnx.Param))
  assert after.keys() == run.frozen.keys()
  assert bool(after) == (run.method != "full")
  for path, array in run.frozen.items():
    np.testing.assert_array_equal(after[path], array, path)


def test_gradients_are_of_what_is_trained(run):
  for gradients in run.gradients:
    for path, gradient in gradients.items():
      assert (".adapter." in path) == (run.method != "full")
      assert np.isfinite(gradient).all(), path
  if run.method != "full":
    names = {path.rsplit(".adapter.")[-1] for path in run.gradients[0]}
    assert names == NAMES[run.method]


def test_gradients_are_not_zero(run):
  first, second = run.gradients[:2]
  for path, gradient in first.items():
    name = path.rsplit(".adapter.")[-1]
    assert gradient.any() != ((run.method, name) in ZERO), path
  for path, gradient in second.items():
    assert gradient.any(), path


def test_compiles_once(run):
  assert run.traces == 1


def test_says_how_far_the_run_is(run):
  np.testing.assert_allclose(run.progress, np.arange(STEPS) / STEPS, rtol=1e-6)


def test_reports_routing_where_there_is_some(run):
  routed = {"balance_loss", "dropped_fraction"} & set(run.metrics)
  assert len(routed) == (2 if run.method in ROUTED else 0)
  assert ("consistency" in run.metrics) == (run.method == "adamix")
  if routed:
    assert 0.9 < run.metrics["balance_loss"] < 2.0
    dropped = run.metrics["dropped_fraction"]
    assert 0 < dropped < 0.5 if run.method == "sira" else dropped == 0


def test_evaluation_is_deterministic(run):
  without = np.asarray(logits(run.model, tiny.batch()))
  one, other = (
    np.asarray(logits_under(run.model, tiny.batch(), jax.random.key(seed)))
    for seed in range(2)
  )
  np.testing.assert_array_equal(one, other)
  np.testing.assert_allclose(one, without, atol=1e-6)


def test_saved_is_restored(run, tmp_path):
  with checkpoints.Checkpoints(tmp_path) as saved:
    saved.save(run.state, step=STEPS, meta={"base": "b", "data": "d"})
  fresh = tiny.adapted(
    run.method, path=PATHS[run.method], seed=9, **SETTINGS[run.method]
  )
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.restore_adapter(fresh, base="b") == STEPS
  saved_types = nnx.Any(Trainable, AdapterConstant)
  expected = by_path(nnx.state(run.model, saved_types))
  restored = by_path(nnx.state(fresh, saved_types))
  assert restored.keys() == expected.keys()
  assert len(expected) > len(by_path(run.state.trainable)) or (
    run.method != "smoe_dropout"
  )
  for path, array in restored.items():
    np.testing.assert_array_equal(array, expected[path], path)


def test_counts_its_parameters(run):
  leaves = jax.tree.leaves(run.state.trainable)
  assert sum(leaf.size for leaf in leaves) == PARAMETERS[run.method]
  counted = sum(site.parameters for site in surgery.sites(run.model))
  assert counted == PARAMETERS[run.method]


def test_merges_or_says_why_not(run):
  model = nnx.clone(run.model)
  if run.method in ROUTED | {"bottleneck"}:
    with pytest.raises(ValueError, match=f"{run.method} .* no single weight"):
      surgery.merge(model)
    return
  before = np.asarray(logits(model, tiny.batch()))
  surgery.merge(model)
  assert not surgery.sites(model)
  assert not jax.tree.leaves(nnx.state(model, Trainable))
  after = np.asarray(logits(model, tiny.batch()))
  np.testing.assert_allclose(after, before, atol=2e-6 * np.abs(before).max())


def test_eight_devices_equal_one(run):
  """Rows over 8 devices: the parameters after three steps, to 1e-5."""
  assert jax.device_count() == 8, "see tests/conftest.py"
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows, everywhere = (NamedSharding(mesh, P(*name)) for name in (["data"], []))
  batch = {k: np.concatenate([v, v]) for k, v in tiny.batch().items()}
  found = []
  for placed in (False, True):
    model = adapted(run.method)
    # No Adam: it turns rounding of near-zero gradients into whole steps.
    optimizer = optax.sgd(0.05)
    state = training.init(model, optimizer, seed=0)
    step = training.make(model, optimizer, steps=4)
    if placed:
      state = jax.device_put(state, everywhere)
      batch = jax.device_put(batch, rows)
      frozen = nnx.state(model, nnx.Param)
      nnx.update(model, jax.device_put(frozen, everywhere))
      step = training.make(model, optimizer, steps=4)
    for _ in range(3):
      state, _ = step(state, batch)
    found.append(by_path(state.trainable))
  for path, one in found[0].items():
    scale = np.abs(one).max()
    np.testing.assert_allclose(found[1][path], one, atol=1e-5 * scale)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16(method):
  if method == "full":
    pytest.skip("full trains weights in the dtype that the base has")
  layer = nnx.Linear(8, 6, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  model = nnx.List([layer])
  factory = methods.create(method, **SETTINGS[method])
  surgery.adapt(model, [surgery.Rule("0", factory)], rngs=nnx.Rngs(0))
  tiny.randomize(model)
  model.eval()
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)))
  y = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 6)))
  rounded, wide = (
    nnx.jit(lambda layer, x, y: layer.adapter(x, y))(
      layer, x.astype(dtype), y.astype(dtype)
    )
    for dtype in (jnp.bfloat16, jnp.float32)
  )
  assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  assert rounded.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
  assert np.abs(wide).max() > 0
  assert np.abs(rounded - wide).max() < 0.03 * np.abs(wide).max()
  for leaf in jax.tree.leaves(nnx.state(layer, Trainable)):
    assert leaf.dtype == jnp.float32
