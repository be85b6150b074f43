"""What methods have to do with one another, and what batches do not change."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import adamix, execution, methods, rescaling, surgery
from sira_jax.adapters.adapter import Adapter
from sira_jax.adapters.variables import Seed
from sira_jax.training import step as training
from tests import tiny
from tests.adapters.test_methods import SIRA, by_path, logits


def term(factory, a, b, kernel=None):
  """(value, gradients in x, A, B and the router) of one layer's adapter."""
  rng = np.random.default_rng(1)
  x, slope = (rng.normal(size=(3, 12, n)).astype(np.float32) for n in (8, 6))
  adapter = Adapter(8, 6, factory=factory, key=jax.random.key(0), seed=3)
  adapter.A[...], adapter.B[...] = a, b
  if kernel is not None:
    adapter.router.kernel[...] = kernel
  graph, seeds, state = nnx.split(adapter, Seed, ...)

  @jax.jit
  def value_and_gradient(state, x):
    def loss(state, x):
      with ambient.DROPOUT_KEY(jax.random.key(5)):
        y = nnx.merge(graph, seeds, state)(x, None)
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
  one, *others = (
    term(methods.sira(**SIRA, execution=name), a, b, kernel)
    for name in execution.EXECUTIONS
  )
  assert one["router.kernel"].any() and len(others) == 3
  for other in others:
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


def test_sira_of_all_experts_is_molora():
  a, b, kernel = arrays(3)
  free = dict(expert_dropout=0.0, balance_coefficient=0.0, compensate=False)
  routed = term(
    methods.sira(experts=3, k=3, rank=2, alpha=5, **free), a, b, kernel
  )
  dense = term(methods.molora(experts=3, rank=2, alpha=5), a, b, kernel)
  assert dense["router.kernel"].any()
  for name, array in dense.items():
    np.testing.assert_array_equal(routed[name], array, name)


def test_sira_with_open_gates_is_sira():
  a, b, kernel = arrays(4)
  plain = term(methods.sira(**SIRA), a, b, kernel)
  gated = term(methods.sira(**SIRA, gate=1.0), a, b, kernel)
  assert gated.pop("g").any()
  for name, array in plain.items():
    np.testing.assert_allclose(gated[name], array, rtol=1e-5, atol=1e-6)


def test_mov_of_one_expert_is_ia3():
  """Merged into kernel and bias, too."""
  layer = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
  layer.bias[...] = jnp.arange(6.0)
  x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
  model = nnx.List([layer])
  frozen = layer(x)
  rule = surgery.Rule("0", methods.mov(experts=1))
  surgery.adapt(model, [rule], rngs=nnx.Rngs(0))
  assert isinstance(layer.adapter, rescaling.Rescaling)
  assert layer.adapter.router is None
  vector = np.linspace(-1, 1, 6, dtype=np.float32)
  layer.adapter.delta[...] = jnp.asarray(vector)[None]
  np.testing.assert_allclose(layer(x), frozen * (1 + vector), rtol=1e-5)
  surgery.merge(model)
  np.testing.assert_allclose(
    layer(x), frozen * (1 + vector), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("shared_b", [True, False])
def test_adamix_draws_one_expert_for_all_tokens(shared_b):
  """Training takes x A_i B_j of some i and j, evaluation their averages."""
  factory = methods.adamix(experts=3, rank=2, alpha=4, shared_b=shared_b)
  adapter = factory.make(8, 6, key=jax.random.key(0), seed=3)
  assert isinstance(adapter, adamix.AdaMix)
  # They start as copies of one another.
  assert (adapter.A[...] == adapter.A[...][:, :1]).all()
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(8, 3, 2)), rng.normal(size=(3, 2, 6))
  b = b[:1] if shared_b else b
  adapter.A[...], adapter.B[...] = jnp.float32(a), jnp.float32(b)
  x = rng.normal(size=(4, 5, 8)).astype(np.float32)
  terms = {
    (i, j): 2 * x @ a[:, i] @ b[j] for i in range(3) for j in range(len(b))
  }
  drawn = set()
  run = nnx.jit(lambda adapter, key: with_key(adapter, x, key))
  for seed in range(40):
    y = np.asarray(run(adapter, jax.random.key(seed)))
    close = [k for k, v in terms.items() if np.abs(v - y).max() < 1e-4]
    assert len(close) == 1
    drawn |= set(close)
  assert drawn == set(terms)
  adapter.eval()
  expected = 2 * x @ a.mean(1) @ b.mean(0)
  np.testing.assert_allclose(adapter(x, None), expected, atol=1e-5)
  adapter.train()
  with pytest.raises(ValueError, match="DROPOUT_KEY"):
    adapter(x, None)


def with_key(adapter, x, key):
  with ambient.DROPOUT_KEY(key):
    return adapter(x, None)


def test_adamix_adds_the_consistency_of_two_passes():
  """The loss less its coefficient's part is that of one pass."""
  batch = tiny.batch()

  def losses(consistency):
    model = tiny.adapted("adamix", experts=3, rank=2, consistency=consistency)
    tiny.randomize(model)
    rng = np.random.default_rng(4)
    for _, module in nnx.iter_modules(model):
      if isinstance(module, adamix.AdaMix):
        noise = rng.normal(size=module.A.shape)
        module.A[...] = jnp.asarray(noise, jnp.float32)
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, key):
      with ambient.DROPOUT_KEY(key):
        return training.batch_loss(nnx.merge(graph, state, copy=True), batch)

    return run(state, jax.random.key(2))

  alone, metrics = losses(0.0)
  assert "consistency" not in metrics
  both, metrics = losses(3.0)
  assert metrics["consistency"] > 1e-3
  expected = alone + 3 * metrics["consistency"]
  np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_adamix_rules_must_agree_on_consistency():
  rules = [
    surgery.Rule(r".*k_proj", methods.adamix(consistency=1.0)),
    surgery.Rule(r".*v_proj", methods.adamix(consistency=2.0)),
  ]
  model = tiny.base()
  surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"weigh it \[1.0, 2.0\]"):
    training.batch_loss(model, tiny.batch())


ALL = r"layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def test_layers_of_one_input_may_share_a_router():
  settings = dict(experts=4, rank=2, k=2, expert_dropout=0.25)
  own = tiny.adapted("sira", path=ALL, **settings)
  model = tiny.adapted("sira", path=ALL, shared_router=True, **settings)
  routers = {
    name: block.self_attn.q_proj.adapter.router
    for name, block in enumerate(model.layers)
  }
  for name, block in enumerate(model.layers):
    attention, mlp = block.self_attn, block.mlp
    assert attention.k_proj.adapter.router is routers[name]
    assert attention.v_proj.adapter.router is routers[name]
    assert attention.o_proj.adapter.router is not routers[name]
    assert mlp.up_proj.adapter.router is mlp.gate_proj.adapter.router
    assert mlp.down_proj.adapter.router is not mlp.up_proj.adapter.router
  # Of each block k, v and one of gate and up have none of their own.
  saved = 2 * 3 * 16 * 4
  size = lambda model: sum(s.parameters for s in surgery.sites(model))  # noqa: E731
  assert size(model) == size(own) - saved
  leaves = jax.tree.leaves(nnx.state(model, training.Trainable))
  assert sum(leaf.size for leaf in leaves) == size(model)
  tiny.randomize(model)
  assert np.isfinite(loss_with_key(model, tiny.batch())).all()
  model.eval()
  before = np.asarray(logits(model, tiny.batch()))
  assert (before != np.asarray(logits(tiny.base(), tiny.batch()))).any()


def test_sharing_needs_a_model_that_says_what_reads_the_same():
  model = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0))])
  rule = surgery.Rule("0", methods.sira(shared_router=True))
  with pytest.raises(ValueError, match="SAME_INPUT"):
    surgery.adapt(model, [rule], rngs=nnx.Rngs(0))
  assert type(model[0]) is nnx.Linear


@nnx.jit
def loss_with_key(model, batch):
  with ambient.DROPOUT_KEY(jax.random.key(0)):
    return training.batch_loss(model, batch)[0]


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
    ("adalora", {}, r"Unknown method 'adalora'; there are \['adamix', "),
    ("lora", {"rnk": 2}, "lora has no setting rnk; it has rank, alpha, rank_"),
    ("full", {"rank": 2}, "full has no setting rank; it has none"),
    ("sora", {"gate": 0.0}, "A gate needs a mean or a deviation"),
    ("sora", {"gate_std": -1.0}, "A gate needs a mean or a deviation"),
    ("molora", {"activation": "tanh"}, "unknown activation 'tanh'; there are"),
    ("adamix", {"experts": 0}, "adamix: experts must be at least 1"),
    ("adamix", {"consistency": -1.0}, "consistency must not be negative"),
    ("mov", {"experts": 0}, "mov: experts must be at least 1"),
    ("lora_smoe", {"experts": 0}, "lora_smoe: experts must be at least 1"),
    ("smoe_dropout", {"first_k": 17}, "first_k must be from 1 to k = 16"),
    ("sira", {"level": "word"}, "Unknown level 'word'; there are token, ex"),
    ("sira", {"priority": "last"}, "Unknown priority 'last'; there are cho"),
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
    (methods.sira(rank=4, experts=8, alpha=2, renormalise=True), 0.5),
    (methods.lora(rank=4, alpha=16, rank_stabilised=True), 8.0),
    (methods.sora(rank=4, alpha=16), 4.0),
    (methods.molora(rank=4), 4.0),
    (methods.adamix(rank=4), 8.0),
    (methods.lora_smoe(rank=8), 2.0),
    (methods.bottleneck(rank=8), 1.0),
  ],
)
def test_scale(factory, scale):
  assert factory.scale == scale
