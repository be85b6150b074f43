"""Blocks in a loop do what they do one after another."""

import contextlib
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax import ambient, meshes, sharding
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import RoutingRecord, Trainable
from sira_jax.models import decoder, stacking, t5
from sira_jax.training import step as training
from tests import tiny, tiny_t5

CONFIG = dataclasses.replace(
  tiny.CONFIG, layers=4, heads=8, kv_heads=8, head_dim=4
)
SIRA = methods.sira(
  experts=4, rank=2, k=2, expert_dropout=0.25, capacity_factor=1.0
)
EVERY = r"layers\.\d+\.(self_attn\.q|mlp\.down)_proj"


def adapted(path=EVERY, factory=SIRA, **settings):
  model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(0), **settings)
  surgery.adapt(model, [surgery.Rule(path, factory)], rngs=nnx.Rngs(1))
  small(model)
  model.train()
  return model


def small(model):
  """As if trained a little."""
  tiny.randomize(model)
  for _, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      module.adapter.B[...] = 0.1 * module.adapter.B[...]


def gradients(model):
  """(gradients, (loss, records)), and the lengths of the loops."""
  graph, trainable, rest = nnx.split(model, Trainable, ...)
  batch = tiny.batch()
  features = {name: batch[name] for name in model.FEATURES if name in batch}

  def loss(trainable):
    merged = nnx.merge(graph, trainable, rest, copy=True)
    with ambient.DROPOUT_KEY(jax.random.key(0)):
      hidden, records = nnx.capture(
        lambda model: model.hidden(**features), RoutingRecord
      )(merged)
    stats = training.routing_stats(records)
    value = jnp.sin(hidden).mean() + sum(one.penalty for one in stats)
    return value, (value, records)

  gradient = jax.grad(loss, has_aux=True)
  lengths = [
    equation.params["length"]
    for equation in jax.make_jaxpr(gradient)(trainable).jaxpr.eqns
    if equation.primitive.name == "scan"
  ]
  options = {"xla_backend_optimization_level": 0}
  return jax.jit(gradient, compiler_options=options)(trainable), lengths


def assert_near(one, other, tolerance=1e-5):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    scale = max(np.abs(a).max(), 1e-6)
    np.testing.assert_allclose(b, a, atol=tolerance * scale)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
  "factory",
  [SIRA, methods.adamix(experts=3, rank=2), methods.lora(rank=2)],
  ids=lambda factory: factory.method,
)
def test_equals_the_blocks_in_turn(factory, remat):
  """Values, gradients and each layer's records, dropout included."""
  one, lengths = gradients(adapted(factory=factory, remat=remat))
  other, loops = gradients(adapted(factory=factory, remat=remat, scan=True))
  assert_near(one, other)
  assert not lengths and loops == [4, 4]
  records = nnx.to_flat_state(other[1][1])
  assert len(records) == (8 if factory is SIRA else 0)
  if records:
    loads = [np.asarray(r.get_value()[0].load) for _, r in records]
    assert (loads[0] != loads[2]).any()


@pytest.mark.parametrize(
  "path, expected",
  [
    # Forward, and backward in the opposite order.
    (r"layers\.[12]\.mlp\.down_proj", [2, 2]),
    (r"layers\.[1-3]\.mlp\.down_proj", [3, 3]),
    # Below the lowest adapter nothing is differentiated.
    (r"layers\.[23]\.mlp\.down_proj", [2, 2, 2]),
    (r"layers\.[02]\.mlp\.down_proj", []),
  ],
)
def test_blocks_of_a_kind_are_one_loop(path, expected):
  one, _ = gradients(adapted(path))
  other, loops = gradients(adapted(path, scan=True))
  assert_near(one, other)
  assert loops == expected


def test_blocks_of_a_kind_are_traced_once():
  """Wherever they stand; where nothing is traced, each is called."""
  blocks = [
    nnx.Linear(4, 4, use_bias=bias, rngs=nnx.Rngs(number))
    for number, bias in enumerate([True, False, True, False])
  ]
  blocks.append(nnx.Linear(4, 4, rngs=nnx.Rngs(4), dtype=jnp.float32))
  calls, x = [], jnp.arange(8.0).reshape(2, 4)

  def function(block, x):
    calls.append(block)
    return jnp.sin(block(x))

  def run(x):
    return stacking.run(function, blocks, x, loop=False)

  expected = run(x)
  assert calls == blocks
  np.testing.assert_allclose(jax.jit(run)(x), expected, rtol=1e-6)
  assert len(calls) == 5 + 3
  assert calls[-1] is blocks[-1]  # as it has no like


def test_settings_set_blocks_apart():
  """Variables alike, and yet other experts: two loops of two."""
  found = []
  for scan in (False, True):
    model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(0), scan=scan)
    rules = [
      surgery.Rule(
        rf"layers\.[{numbers}]\.mlp\.down_proj",
        dataclasses.replace(SIRA, router=dataclasses.replace(SIRA.router, k=k)),
      )
      for numbers, k in (("01", 1), ("23", 2))
    ]
    surgery.adapt(model, rules, rngs=nnx.Rngs(1))
    tiny.randomize(model)
    found.append(gradients(model))
  (one, _), (other, loops) = found
  assert_near(one, other)
  assert loops == [2, 2, 2, 2]


def test_second_pass_reads_its_own_segments():
  """A loop of one pass is not taken again for another."""
  model = adapted(scan=True, remat=True)
  tokens = tiny.batch()["decoder_input_tokens"]
  model.eval()

  @nnx.jit
  def both(model, one, other):
    return [
      model.hidden(tokens, decoder_segment_ids=ids) for ids in (one, other)
    ]

  whole = jnp.ones(tokens.shape, jnp.int32)
  halves = whole.at[:, 6:].set(2)
  first, second = both(model, whole, halves)
  again, _ = both(model, halves, whole)
  np.testing.assert_array_equal(again, second)
  assert np.abs(first - second).max() > 1e-3


def test_records_add_to_those_before():
  """As blocks in turn do, when one capture holds two passes."""
  tokens = tiny.batch()["decoder_input_tokens"]
  found = []
  for scan in (False, True):
    model = adapted(scan=scan)
    model.eval()
    twice = nnx.capture(
      lambda model: (model.hidden(tokens), model.hidden(tokens[:, ::-1])),
      RoutingRecord,
    )
    graph, state = nnx.split(model)
    found.append(
      jax.jit(lambda s, g=graph, t=twice: t(nnx.merge(g, s, copy=True))[1])(
        state
      )
    )
  assert_near(*found)
  assert {len(r.get_value()) for _, r in nnx.to_flat_state(found[1])} == {2}


def test_eight_devices_equal_one():
  batch = {k: np.concatenate([v, v]) for k, v in tiny.batch().items()}
  found = []
  for mesh in (None, meshes.mesh(data=1, fsdp=4, tensor=2)):
    with sharding.use(mesh) if mesh else contextlib.nullcontext():
      model, optimizer = adapted(scan=mesh is not None), optax.sgd(0.05)
      sharding.place(model)
      state = training.init(model, optimizer, seed=0)
      step = training.make(model, optimizer, steps=4)
      state, metrics = step(state, sharding.rows(batch))
    found.append(jax.tree.map(np.asarray, (state.trainable, metrics)))
  assert_near(*found)


def test_stacked_variables_live_where_each_does():
  layer = nnx.Linear(
    16, 32, kernel_metadata={"axes": ("d", "f")}, rngs=nnx.Rngs(0)
  )
  with sharding.use(meshes.mesh(data=1, fsdp=4, tensor=2)):
    kernel = jax.tree.map(lambda k: jnp.stack([k, k, k]), layer.kernel)
    placed = jax.jit(stacking._placed)(kernel).get_value()
  assert placed.sharding.shard_shape(placed.shape) == (3, 4, 16)


@pytest.mark.parametrize("by_layer, loops", [(False, [2, 2]), (True, [3, 3])])
def test_an_encoder_decoder(by_layer, loops):
  """The first block's bias serves those that have none of their own."""
  config = dataclasses.replace(
    tiny_t5.CONFIG,
    encoder_layers=3,
    decoder_layers=3,
    bias_by_layer=by_layer,
  )
  batch = tiny_t5.batch()
  found = []
  for scan in (False, True):
    model = t5.T5(config, rngs=nnx.Rngs(0), scan=scan)
    tiny_t5.adapt(model, "sira", experts=4, rank=2, k=2)
    small(model)
    graph, trainable, rest = nnx.split(model, Trainable, ...)

    def loss(trainable, graph=graph, rest=rest):
      merged = nnx.merge(graph, trainable, rest, copy=True)
      with ambient.DROPOUT_KEY(jax.random.key(0)):
        return training.batch_loss(merged, batch)

    gradient = jax.grad(loss, has_aux=True)
    found.append(jax.jit(gradient)(trainable))
    equations = jax.make_jaxpr(gradient)(trainable).jaxpr.eqns
    names = [
      e.params["length"] for e in equations if e.primitive.name == "scan"
    ]
    # Others are the loss's; the encoder's loop and the decoder's, both ways.
    assert [n for n in names if n in loops] == (2 * loops if scan else [])
  assert_near(*found)
