"""Every method x every property, on a tiny decoder."""

import functools
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax import ambient, checkpoints
from sira_jax.adapters import execution, methods, surgery
from sira_jax.adapters.adapter import Adapter
from sira_jax.adapters.variables import Trainable
from sira_jax.training import step as training
from tests import tiny

# Dropout and capacity bind, so that a run meets them.
SIRA = dict(experts=4, rank=2, k=2, expert_dropout=0.25, capacity_factor=1.0)
SETTINGS = {"lora": dict(rank=2), "sira": SIRA}
# For d -> f: rank (d + f), and experts times that with a router of d x experts.
PARAMETERS = {
  "lora": sum(2 * (d + f) for d, f in tiny.SIZES),
  "sira": sum(4 * 2 * (d + f) + d * 4 for d, f in tiny.SIZES),
}
STEPS = 20


def test_the_table_has_every_method():
  assert set(SETTINGS) == set(PARAMETERS) == set(methods.METHODS)


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


@pytest.fixture(scope="module", params=methods.METHODS)
def run(request):
  """A method's model, before and after 20 steps, with what went on."""
  model = tiny.adapted(request.param, **SETTINGS[request.param])
  model.eval()
  start = np.asarray(logits(model, tiny.batch()))
  frozen = by_path(nnx.state(model, nnx.Param))
  optimizer = optax.chain(recorded(), optax.adam(3e-2))
  state = training.init(model, optimizer, seed=0)
  traces, gradients = [], []
  with pytest.MonkeyPatch.context() as patch:
    loss = training.batch_loss
    patch.setattr(
      training, "batch_loss", lambda *a: traces.append(1) or loss(*a)
    )
    step = training.make(model, optimizer)
    for number in range(STEPS):
      state, metrics = step(state, tiny.batch(number))
      gradients.append(by_path(state.optimizer[0]))
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
  for path, array in run.frozen.items():
    np.testing.assert_array_equal(after[path], array, path)


def test_gradients_are_of_adapters_alone(run):
  for gradients in run.gradients:
    for path, gradient in gradients.items():
      assert ".adapter." in path
      assert np.isfinite(gradient).all(), path
  names = {path.rsplit(".adapter.")[-1] for path in run.gradients[0]}
  router = {"router.kernel"} if run.method == "sira" else set()
  assert names == {"A", "B"} | router


def test_gradients_are_not_zero(run):
  """But that of A is at step 0, since B is zero."""
  first, second = run.gradients[:2]
  for path, gradient in first.items():
    assert gradient.any() != path.endswith(".A"), path
  for path, gradient in second.items():
    assert gradient.any(), path


def test_compiles_once(run):
  assert run.traces == 1


def test_reports_routing_where_there_is_some(run):
  routed = {"balance_loss", "dropped_fraction"} & set(run.metrics)
  assert len(routed) == (2 if run.method == "sira" else 0)
  if routed:
    assert 0.9 < run.metrics["balance_loss"] < 2.0
    assert 0 < run.metrics["dropped_fraction"] < 0.5


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
  fresh = tiny.adapted(run.method, **SETTINGS[run.method])
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.restore_adapter(fresh, base="b") == STEPS
  expected = by_path(run.state.trainable)
  for path, array in by_path(nnx.state(fresh, Trainable)).items():
    np.testing.assert_array_equal(array, expected[path], path)


def test_counts_its_parameters(run):
  leaves = jax.tree.leaves(run.state.trainable)
  assert sum(leaf.size for leaf in leaves) == PARAMETERS[run.method]
  factory = methods.create(run.method, **SETTINGS[run.method])
  counted = sum(factory.parameters(d, f) for d, f in tiny.SIZES)
  assert counted == PARAMETERS[run.method]


@pytest.mark.parametrize("method", methods.METHODS)
def test_bfloat16(method):
  layer = nnx.Linear(8, 6, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  model = nnx.List([layer])
  factory = methods.create(method, **SETTINGS[method])
  surgery.adapt(model, [surgery.Rule("0", factory)], rngs=nnx.Rngs(0))
  tiny.randomize(model)
  model.eval()
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)))
  rounded, wide = (
    nnx.jit(lambda layer, x: layer.adapter(x))(layer, x.astype(dtype))
    for dtype in (jnp.bfloat16, jnp.float32)
  )
  assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  assert rounded.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
  assert np.abs(rounded - wide).max() < 0.03 * np.abs(wide).max()
  for leaf in jax.tree.leaves(nnx.state(layer, Trainable)):
    assert leaf.dtype == jnp.float32


def term(factory, a, b, kernel=None):
  """(value, gradients in x, A, B and the router) of one layer's adapter."""
  rng = np.random.default_rng(1)
  x, slope = (rng.normal(size=(3, 12, n)).astype(np.float32) for n in (8, 6))
  adapter = Adapter(8, 6, factory=factory, key=jax.random.key(0), seed=3)
  adapter.A[...], adapter.B[...] = a, b
  if kernel is not None:
    adapter.router.kernel[...] = kernel
  graph, state = nnx.split(adapter)

  @jax.jit
  def value_and_gradient(state, x):
    def loss(state, x):
      with ambient.DROPOUT_KEY(jax.random.key(5)):
        y = nnx.merge(graph, state)(x)
      return (y * slope).sum(), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)
    return y, gradients

  y, (gradients, dx) = value_and_gradient(state, x)
  return {"y": y, "x": dx} | by_path(gradients)


def arrays(experts):
  rng = np.random.default_rng(2)
  shapes = (8, experts, 2), (experts, 2, 6), (8, experts)
  return (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


def test_executions_agree():
  """With capacity and dropout that bind; see also test_execution.py."""
  a, b, kernel = arrays(4)
  one, other = (
    term(methods.sira(**SIRA, execution=name), a, b, kernel)
    for name in execution.EXECUTIONS
  )
  assert one["router.kernel"].any()
  for name, array in one.items():
    close = 1e-5 * np.abs(array).max()
    np.testing.assert_allclose(other[name], array, atol=close, err_msg=name)


def test_sira_of_one_expert_is_lora():
  a, b, _ = arrays(1)
  free = dict(capacity_factor=None, expert_dropout=0.0)
  routed = term(methods.sira(experts=1, k=1, rank=2, alpha=3, **free), a, b)
  plain = term(methods.lora(rank=2, alpha=3), a, b)
  np.testing.assert_array_equal(routed["y"], plain["y"])
  for name, array in plain.items():
    np.testing.assert_allclose(routed[name], array, rtol=1e-6, atol=1e-6)


@nnx.jit
def loss(model, batch):
  return training.batch_loss(model, batch)


def packed(batch):
  """Rows of up to 12, 12, 9 and 7 tokens: the last two share a row of 16."""
  rows = [(0,), (1,), (2, 3)]
  out = {name: np.zeros((3, 16), v.dtype) for name, v in batch.items()}
  ids, positions = np.zeros((2, 3, 16), np.int32)
  for row, members in enumerate(rows):
    start = 0
    for number, member in enumerate(members, 1):
      size = int((batch["decoder_target_tokens"][member] != 0).sum())
      place = slice(start, start + size)
      for name, values in batch.items():
        out[name][row, place] = values[member, :size]
      ids[row, place], positions[row, place] = number, np.arange(size)
      start += size
  return out | {"decoder_segment_ids": ids, "decoder_positions": positions}


@functools.cache
def routed_decoder():
  model = tiny.adapted("sira", **(SIRA | {"expert_dropout": 0.0}))
  tiny.randomize(model)
  return model


def test_packed_equals_unpacked():
  """Loss, balance and dropped tokens of the whole model."""
  batch = tiny.batch()
  # Two examples of 9 and 7 tokens fill a row.
  expected, metrics = loss(routed_decoder(), batch)
  assert metrics["dropped_fraction"] > 0
  got, in_rows = loss(routed_decoder(), packed(batch))
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  for name, value in metrics.items():
    np.testing.assert_allclose(in_rows[name], value, rtol=1e-5, err_msg=name)


def test_padding_changes_nothing():
  batch = tiny.batch()
  expected = loss(routed_decoder(), batch)
  padding = batch["decoder_target_tokens"] == 0
  assert padding.any()
  batch["decoder_input_tokens"] = np.where(
    padding, 7, batch["decoder_input_tokens"]
  )
  assert jax.tree.all(
    jax.tree.map(np.array_equal, loss(routed_decoder(), batch), expected)
  )


@pytest.mark.parametrize(
  "method, settings, message",
  [
    ("adalora", {}, r"Unknown method 'adalora'; there are \['lora', 'sira'\]"),
    ("lora", {"rnk": 2}, "lora has no setting rnk; it has rank, alpha"),
    ("lora", {"experts": 2}, "lora has no setting experts"),
    ("lora", {"rank": 0}, "lora: rank must be at least 1, got 0"),
    ("sira", {"rank": 0}, "sira: rank must be at least 1, got 0"),
    ("sira", {"experts": 0}, "experts must be at least 1"),
    ("sira", {"k": 0}, "k must be at least 1"),
    ("sira", {"experts": 2, "k": 3}, "k = 3 exceeds the number of experts, 2"),
    ("sira", {"capacity": 0, "capacity_factor": None}, "capacity must be"),
    ("sira", {"capacity": 1, "capacity_factor": 1.0}, "not both"),
    ("sira", {"capacity_factor": -1.0}, "capacity_factor must be"),
    ("sira", {"expert_dropout": 1}, r"expert_dropout must be in \[0, 1\)"),
    ("sira", {"execution": "loop"}, "unknown execution 'loop'"),
  ],
)
def test_settings_are_refused(method, settings, message):
  with pytest.raises(ValueError, match=message):
    methods.create(method, **settings)


@pytest.mark.parametrize(
  "factory, scale",
  [
    (methods.lora(rank=4), 1.0),
    (methods.lora(rank=4, alpha=16), 4.0),
    (methods.sira(rank=4, experts=8, alpha=2), 4.0),
    (methods.sira(rank=4, experts=8, alpha=2, compensate=False), 0.5),
  ],
)
def test_scale(factory, scale):
  assert factory.scale == scale
