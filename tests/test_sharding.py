"""The mesh, the table of rules, and what is born and placed by them."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from sira_jax import ambient, meshes, sharding
from sira_jax.adapters import methods, pruning, surgery
from sira_jax.adapters.variables import AdapterConstant, BaseParam, Trainable
from sira_jax.models import decoder
from sira_jax.training import step as training
from tests import tiny

# Every width is a multiple of 8.
CONFIG = dataclasses.replace(tiny.CONFIG, heads=8, kv_heads=8, head_dim=4)
PATH = r"layers\.\d\.(self_attn\.q|mlp\.down)_proj"


def adapted(method="lora", *, path=PATH, **settings):
  """A base that is placed, and adapters that are born."""
  model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(0))
  sharding.place(model)
  factory = methods.create(method, **settings)
  surgery.adapt(model, [surgery.Rule(path, factory)], rngs=nnx.Rngs(1))
  return model


def specs(state, mesh, **rules):
  """path -> PartitionSpec, of the first block and what is outside of them."""
  found = nnx.to_flat_state(sharding.of(state, mesh, **rules))
  names = {".".join(map(str, path)): leaf for path, leaf in found}
  return {
    name.removeprefix("layers.0."): leaf.get_value().spec
    for name, leaf in names.items()
    if not name.startswith("layers.1")
  }


@pytest.mark.parametrize(
  "sizes, shape",
  [
    ({}, (8, 1, 1)),
    (dict(fsdp=2, tensor=2), (2, 2, 2)),
    (dict(data=1, fsdp=8), (1, 8, 1)),
    (dict(data=2, tensor=-1), (2, 1, 4)),
  ],
)
def test_mesh(sizes, shape):
  mesh = meshes.mesh(**sizes)
  assert tuple(mesh.shape.items()) == tuple(
    zip(("data", "fsdp", "tensor"), shape, strict=True)
  )
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_mesh_of_some_devices():
  mesh = meshes.mesh(tensor=2, devices=jax.devices()[:4])
  assert mesh.devices.shape == (2, 1, 2)


@pytest.mark.parametrize(
  "sizes, asked",
  [
    (dict(data=3), "data=3 x fsdp=1 x tensor=1"),
    (dict(fsdp=3), "data=2 x fsdp=3 x tensor=1"),
    (dict(fsdp=16), "data=0 x fsdp=16 x tensor=1"),
    (dict(tensor=0), "data=-1 x fsdp=1 x tensor=0"),
    (dict(fsdp=-1), "data=-1 x fsdp=-1 x tensor=1"),
  ],
)
def test_a_mesh_that_does_not_fit(sizes, asked):
  with pytest.raises(ValueError, match=f"{asked} .* devices, 8.* may be -1"):
    meshes.mesh(**sizes)


@dataclasses.dataclass(frozen=True)
class Device:
  """What the mesh's construction asks of a device."""

  id: int
  slice_index: int = 0
  platform: str = "gpu"
  device_kind: str = "none"
  process_index: int = 0


@pytest.mark.parametrize("kind", ["slice_index", "process_index"])
def test_data_goes_over_slices(kind, monkeypatch):
  made = []
  monkeypatch.setattr(
    meshes, "Mesh", lambda places, *args, **kwargs: made.append(places)
  )
  # Not in their slices' order.
  devices = [Device(i, **{kind: i % 2}) for i in range(8)]
  meshes.mesh(tensor=2, slices=2, devices=devices)
  (places,) = made
  assert places.shape == (4, 1, 2)
  index = np.vectorize(lambda device: getattr(device, kind))(places)
  np.testing.assert_array_equal(index[:2], 0)
  np.testing.assert_array_equal(index[2:], 1)


def test_slices_that_are_not_there():
  with pytest.raises(
    ValueError, match=r"slices=2 .* slices, 1, or processes, 1"
  ):
    meshes.mesh(slices=2)
  devices = [Device(i, slice_index=i // 4) for i in range(8)]
  with pytest.raises(
    ValueError, match=r"slices=2 must divide data=1, .* slices, 2"
  ):
    meshes.mesh(tensor=8, slices=2, devices=devices)


def test_base_parameters():
  state = nnx.state(decoder.Decoder(CONFIG, rngs=nnx.Rngs(0)))
  columns, rows = P("fsdp", "tensor"), P("tensor", "fsdp")
  assert specs(state, meshes.mesh(fsdp=2, tensor=2)) == {
    "embed_tokens.embedding": rows,
    "input_layernorm.scale": P("fsdp"),
    "mlp.down_proj.kernel": rows,
    "mlp.gate_proj.kernel": columns,
    "mlp.up_proj.kernel": columns,
    "norm.scale": P("fsdp"),
    "post_attention_layernorm.scale": P("fsdp"),
    "self_attn.k_proj.kernel": columns,
    "self_attn.o_proj.kernel": rows,
    "self_attn.q_proj.kernel": columns,
    "self_attn.v_proj.kernel": columns,
  }


BOTH = ("tensor", "fsdp")
WANTED = {
  "sora": {
    "mlp.down_proj.adapter.A": P(BOTH, None, None),
    "mlp.down_proj.adapter.B": P(None, None, "fsdp"),
    "mlp.down_proj.adapter.g": P(None, None),
    "self_attn.q_proj.adapter.A": P("fsdp", None, None),
    "self_attn.q_proj.adapter.B": P(None, None, BOTH),
    "self_attn.q_proj.adapter.g": P(None, None),
  },
  "smoe_dropout": {
    "mlp.down_proj.adapter.A": P(BOTH, None, None),
    "mlp.down_proj.adapter.B": P(None, None, "fsdp"),
    "mlp.down_proj.adapter.router.kernel": P(BOTH, None),
    "self_attn.q_proj.adapter.A": P("fsdp", None, None),
    "self_attn.q_proj.adapter.B": P(None, None, BOTH),
    "self_attn.q_proj.adapter.router.kernel": P("fsdp", None),
  },
  "mov": {
    "mlp.down_proj.adapter.delta": P(None, "fsdp"),
    "mlp.down_proj.adapter.router.kernel": P(BOTH, None),
    "self_attn.q_proj.adapter.delta": P(None, BOTH),
    "self_attn.q_proj.adapter.router.kernel": P("fsdp", None),
  },
  "adamix": {
    "mlp.down_proj.adapter.A": P(BOTH, None, None),
    "mlp.down_proj.adapter.B": P(None, None, "fsdp"),
    "self_attn.q_proj.adapter.A": P("fsdp", None, None),
    "self_attn.q_proj.adapter.B": P(None, None, BOTH),
  },
}
SETTINGS = {
  "sora": dict(rank=3),
  "smoe_dropout": dict(experts=4, rank=2, k=4, first_k=1),
  "mov": dict(experts=4),
  "adamix": dict(experts=4, rank=2),
}


@pytest.mark.parametrize("method", WANTED)
def test_adapters_follow_their_layer(method):
  model = adapted(method, **SETTINGS[method])
  state = nnx.state(model, nnx.Any(Trainable, AdapterConstant))
  found = specs(state, meshes.mesh(fsdp=2, tensor=2))
  assert found == WANTED[method]


@pytest.mark.parametrize("over", ["data", "tensor"])
def test_experts_may_live_apart(over):
  """They go before f; AdaMix's one B, of no experts, is left whole."""
  model = adapted("adamix", **SETTINGS["adamix"])
  found = specs(
    nnx.state(model, Trainable),
    meshes.mesh(fsdp=2, tensor=2),
    rules={"experts": over},
  )
  d = BOTH if over == "data" else "fsdp"
  assert found["mlp.down_proj.adapter.A"] == P(d, over, None)
  assert found["self_attn.q_proj.adapter.B"] == P(None, None, BOTH)


def test_pruned_and_freed_parameters_keep_their_axes():
  model = adapted("sora", rank=3)
  for _, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      module.adapter.g[...] = module.adapter.g[...].at[0, 0].set(0.0)
  pruning.prune(model, fold=False)
  mesh = meshes.mesh(fsdp=2, tensor=2)
  assert specs(nnx.state(model, Trainable), mesh) == WANTED["sora"]
  freed = adapted("full", path=r"layers\.0\.mlp\.up_proj")
  found = specs(nnx.state(freed, BaseParam), mesh)
  assert found == {"mlp.up_proj.kernel": P("fsdp", "tensor")}


def test_a_model_without_axes_is_whole():
  model = nnx.List([nnx.Linear(8, 6, rngs=nnx.Rngs(0))])
  factory = methods.create("molora", experts=2, rank=3)
  surgery.adapt(model, [surgery.Rule("0", factory)], rngs=nnx.Rngs(0))
  mesh = meshes.mesh(fsdp=8)
  placed = sharding.of(nnx.state(model), mesh)
  assert len(jax.tree.leaves(placed)) == 6
  assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))


@pytest.mark.parametrize(
  "axes, shape, message",
  [
    (("d", "f"), (16, 12), r"w of shape \(16, 12\): its axis 'f' of 12 .*=8"),
    (("d",), (4, 4), r"w of shape \(4, 4\) .* one for each dimension"),
    (("d", "m"), (8, 8), r".*\('d', 'm'\): expected .* 'd', .*'rank'\]"),
  ],
)
def test_a_parameter_that_does_not_fit(axes, shape, message):
  state = nnx.State({"inner": {"w": nnx.Param(jnp.zeros(shape), axes=axes)}})
  with pytest.raises(ValueError, match=f"inner.{message}"):
    sharding.of(state, meshes.mesh(tensor=8))


@pytest.mark.parametrize(
  "rules, message",
  [
    ({"expert": "data"}, r"\['expert'\]; the table has .*'experts'"),
    ({"experts": "model"}, r"'experts' -> 'model' .*'data', 'fsdp', 'tensor'"),
  ],
)
def test_rules_that_cannot_be(rules, message):
  mesh = meshes.mesh()
  with pytest.raises(ValueError, match=message), sharding.use(mesh, rules):
    pass
  with pytest.raises(ValueError, match=message):
    sharding.of({}, mesh, rules=rules)


@pytest.mark.parametrize(
  "optimizer",
  [optax.adamw(1e-3), optax.adafactor(1e-3, min_dim_size_to_factor=4)],
  ids=["adamw", "adafactor"],
)
def test_nothing_is_born_whole(optimizer):
  """Of everything with a d or an f, each device has an eighth."""
  mesh = meshes.mesh(data=1, fsdp=8)
  sira = dict(experts=4, rank=2, k=2)
  with sharding.use(mesh):
    model = adapted("sira", **sira)
    state = training.init(model, optimizer, seed=0)
  plain = training.init(adapted("sira", **sira), optimizer, seed=0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    jax.tree.map(np.asarray, (state.trainable, state.optimizer)),
    jax.tree.map(np.asarray, (plain.trainable, plain.optimizer)),
  )
  sharded = 0
  for leaf in jax.tree.leaves(
    (nnx.state(model), state), is_leaf=lambda x: isinstance(x, nnx.Variable)
  ):
    array = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
    assert array.sharding.mesh == mesh
    assert len(array.addressable_shards) == 8
    axes = isinstance(leaf, nnx.Variable) and leaf.get_metadata().get("axes")
    if axes and len(axes) == array.ndim and array.size > 1:
      sharded += 1
      for shard in array.addressable_shards:
        assert shard.data.size == array.size // 8, axes
    else:
      # Adafactor's factors of an A or a B, which have 128 numbers or more.
      assert array.size <= 64
  assert sharded > 30


def test_adapters_of_a_kind_are_one_program(caplog):
  """However many layers they are for."""
  layers = [nnx.Linear(8, f, rngs=nnx.Rngs(0)) for f in (4, 8, 4, 8, 4)]
  model = nnx.List(layers)
  rules = [surgery.Rule(".*", methods.lora(rank=2))]
  with sharding.use(meshes.mesh()), jax.log_compiles():
    surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  found = [m for m in caplog.messages if m.startswith("Compiling jit(make)")]
  assert len(found) == 2
  starts = [np.asarray(layer.adapter.A[...]) for layer in layers]
  assert (starts[0] != starts[2]).all()


def test_adapters_that_the_mesh_does_not_divide():
  """Nothing is changed, not even the layers before."""
  metadata = {"axes": ("d", "f")}
  layers = [
    nnx.Linear(8, f, kernel_metadata=metadata, rngs=nnx.Rngs(0)) for f in (8, 6)
  ]
  rules = [surgery.Rule(".*", methods.lora(rank=2))]
  mesh, refused = meshes.mesh(data=1, fsdp=8), "does not divide"
  with sharding.use(mesh), pytest.raises(ValueError, match=refused):
    surgery.adapt(nnx.List(layers), rules, rngs=nnx.Rngs(0))
  assert not any(isinstance(layer, surgery.Adapted) for layer in layers)


def test_without_a_mesh_nothing_happens(monkeypatch):
  x = jnp.ones((2, 3))
  assert sharding.constrain(x, "no", "such", "words") is x
  batch = tiny.batch()
  placed = sharding.rows(batch)
  jax.tree.map(np.testing.assert_array_equal, placed, batch)
  assert placed["decoder_input_tokens"].devices() == {jax.devices()[0]}
  model = adapted("sira", experts=2, k=1, rank=2, execution="dispatch")

  def program():
    def hidden(model, batch):
      with ambient.DROPOUT_KEY(jax.random.key(0)):
        return model.hidden(batch["decoder_input_tokens"])

    return jax.jit(hidden).lower(model, tiny.batch()).as_text()

  found = program()
  with monkeypatch.context() as patch:
    patch.setattr(sharding, "constrain", lambda x, *axes, **first: x)
    assert program() == found
  # The comparison can fail: in a mesh there are constraints.
  with sharding.use(meshes.mesh()):
    assert "sharding_constraint" in program()


@pytest.mark.parametrize(
  "first, shard", [(None, (4, 2, 8)), ("experts", (1, 8, 8))]
)
def test_constrain(first, shard):
  """Experts and rows want `data`: rows have it, but where experts are first."""
  mesh = meshes.mesh(data=4, fsdp=2)
  with sharding.use(mesh, {"experts": "data"}):
    y = jax.jit(
      lambda x: sharding.constrain(x, "experts", "batch", None, first=first)
    )(jnp.ones((4, 16, 8)))
    with pytest.raises(ValueError, match="expected one for each dimension"):
      sharding.constrain(y, "expert", None, None)
  assert y.sharding.shard_shape(y.shape) == shard


def test_rows_that_do_not_divide_are_padded():
  """As those of a last batch to decode."""
  with sharding.use(meshes.mesh()):
    y = jax.jit(lambda x: sharding.constrain(x, "batch").sum())(jnp.arange(3))
  assert y == 3


def test_a_program_is_compiled_for_its_rules():
  traces = []

  @jax.jit
  def function(x):
    traces.append(1)
    return sharding.constrain(x, "batch")

  mesh = meshes.mesh()
  found = []
  for rules in (None, None, {"batch": None}, None):
    with sharding.use(mesh, rules):
      found.append(function(jnp.ones(8)).sharding.is_fully_replicated)
  assert found == [False, False, True, False]
  assert len(traces) == 2


def test_rows():
  with sharding.use(meshes.mesh(tensor=2)):
    placed = sharding.rows({"x": np.arange(24).reshape(8, 3)})["x"]
    np.testing.assert_array_equal(placed, np.arange(24).reshape(8, 3))
    assert placed.sharding.shard_shape(placed.shape) == (2, 3)
    with pytest.raises(ValueError, match="x has 6 rows, which the 4 places"):
      sharding.rows({"x": np.ones((6, 3))})


def test_place_takes_arrays_of_numpy():
  graph, state = nnx.split(decoder.Decoder(CONFIG, rngs=nnx.Rngs(0)))
  model = nnx.merge(graph, jax.tree.map(np.asarray, state))
  with sharding.use(meshes.mesh(data=1, fsdp=2, tensor=4)):
    sharding.place(model)
  kernel = model.layers[0].mlp.up_proj.kernel[...]
  assert kernel.sharding.shard_shape(kernel.shape) == (8, 6)
  for placed, one in zip(
    jax.tree.leaves(nnx.state(model)), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(placed, one)
