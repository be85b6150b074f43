"""What a plan says is what XLA says, and what is there."""

import dataclasses
import importlib.util
import json

from flax import nnx
import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import tpu_plans
from sira_jax import collectives, meshes, plan
from sira_jax.adapters import methods
from sira_jax.training import step as training
from tests import tiny

OPTIMIZER = optax.adam(1e-3)


def shapes(method="sira", **settings):
  """The tiny decoder with adapters, without a number in it."""
  return nnx.eval_shape(lambda: tiny.adapted(method, **settings))


def planned(model=None, *, mesh=None, rows=4, **settings):
  mesh = mesh or meshes.mesh(devices=jax.devices()[:1])
  model = model or shapes(experts=4, k=2)
  batch = plan.batch(rows, tiny.LENGTH)
  return plan.plan(model, OPTIMIZER, batch=batch, mesh=mesh, **settings)


def test_its_bytes_are_those_of_the_arrays():
  """Of the state and the model that would be there, on their one device."""
  model = tiny.adapted("sira", experts=4, k=2)
  state = training.init(model, OPTIMIZER, seed=0)
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
  found = planned()
  assert found.training == size(state)
  assert found.weights == size(nnx.state(model, nnx.Param))
  assert found.batch == size(tiny.batch())
  assert found.trained * 4 == size(state.trainable)
  assert found.frozen * 4 == found.weights
  # A CPU's layouts have no padding, so that XLA's arguments are these.
  assert found.padding == 0
  # The state takes the place of the state that came; what is left are the
  # metrics and XLA's table of pointers to all results.
  pointers = 8 * (len(jax.tree.leaves(state)) + 20)
  assert 0 < found.output <= 20 * 4 + pointers < found.training / 10
  assert found.temporaries > 0
  assert found.collectives == ()


def test_a_mesh_divides_weights_and_rows():
  """The model may have numbers too."""
  model = tiny.adapted("sira", experts=4, k=2)
  state = training.init(model, OPTIMIZER, seed=0)
  mesh = meshes.mesh(data=1, fsdp=4, devices=jax.devices()[:4])
  found = planned(model, mesh=mesh)
  # Every array of the base has one d of 16, which goes over the four devices.
  assert found.weights * 4 == found.frozen * 4
  assert found.batch == 3 * tiny.LENGTH * 4
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  assert whole / 4 < found.training < whole
  assert dict(found.mesh) == {"data": 1, "fsdp": 4, "tensor": 1}
  assert "all-gather" in {one.kind for one in found.collectives}


class Matmul(nnx.Module):
  """A model whose FLOPs are known: one frozen product, one trained."""

  FEATURES = ("decoder_input_tokens",)

  def __init__(self, d, rngs):
    self.frozen = nnx.Linear(d, d, use_bias=False, rngs=rngs)
    self.trained = training.Trainable(jnp.zeros((d, d)))

  def hidden(self, decoder_input_tokens):
    x = jax.nn.one_hot(decoder_input_tokens, self.frozen.in_features)
    return self.frozen(x) @ self.trained[...]

  def logits(self, hidden):
    return hidden


def test_flops_of_known_products():
  d, rows, length = 256, 8, 32
  model = nnx.eval_shape(lambda: Matmul(d, nnx.Rngs(0)))
  mesh = meshes.mesh(devices=jax.devices()[:1])
  batch = plan.batch(rows, length)
  found = plan.plan(model, OPTIMIZER, batch=batch, mesh=mesh)
  # Forward x W0 and its product with W; backward the gradient of W alone.
  product = 2 * rows * length * d * d
  assert 3 * product <= found.flops < 3.2 * product


PLAN = plan.Plan(
  device="TPU v5 lite",
  mesh={"data": 2, "fsdp": 8, "tensor": 1},
  frozen=8_030_261_248,
  trained=27_262_976,
  weights=1_000_000_000,
  training=200_000_000,
  batch=30_000,
  padding=4_000,
  temporaries=5_000_000_000,
  output=600,
  program=70,
  flops=3.21e14,
  collectives=(collectives.Collective("all-gather", 64, 2**31),),
  seconds=61.7,
  limit=6_200_034_670,
)


def test_fits():
  assert PLAN.total == 6_200_034_670
  assert PLAN.fits
  assert "5.77 GiB of 5.77 GiB: fits" in PLAN.describe()
  less = dataclasses.replace(PLAN, limit=PLAN.total - 1)
  assert less.fits is False
  assert "5.77 GiB of 5.77 GiB: does not fit" in less.describe()
  unknown = dataclasses.replace(PLAN, limit=None)
  assert unknown.fits is None
  assert "unknown" in unknown.describe()


def test_what_it_says():
  text = PLAN.describe()
  for said in (
    "16 x TPU v5 lite: data 2, fsdp 8, tensor 1",
    "953.7 MiB  8,030,261,248 parameters, frozen",
    "190.7 MiB  27,262,976 parameters",
    "321 TFLOP",
    "2.00 GiB  64 all-gather",
    "in 62 s",
  ):
    assert said in text


@pytest.mark.parametrize(
  ("device", "given", "expected"),
  [
    ("TPU v5 lite", None, 15.75),
    ("TPU v6 lite", 20, 20),
    ("cpu", 1.5, 1.5),
    ("cpu", None, None),
  ],
)
def test_the_limit(device, given, expected, monkeypatch):
  monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
  monkeypatch.setattr(plan, "_kind", lambda mesh: device)
  limit = planned(limit=given).limit
  assert limit == (expected and expected * 2**30)


def refuse(self, *args, **kwargs):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: as a test wants it")


@pytest.mark.parametrize(
  ("message", "said"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
      " for HLO temporaries (320.00G) exceeds available HBM (15.75G). \n",
      "the total memory required for HLO temporaries (320.00G) exceeds"
      " available HBM (15.75G)",
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory"
      " in memory space hbm. Used 27.53G of 15.75G hbm. Exceeded hbm capacity"
      " by 11.78G.\n\nTotal hbm usage >= 27.78G:\n",
      "Used 27.53G of 15.75G hbm",
    ),
  ],
)
def test_a_refusal_of_the_compiler(message, said, monkeypatch):
  def say(self, *args, **kwargs):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(jax.stages.Lowered, "compile", say)
  found = planned(limit=100)
  assert found.fits is False
  assert found.refusal == said
  assert f"does not fit: {said}" in found.describe()
  assert found.weights > 0


def test_other_errors_of_the_compiler_are_raised(monkeypatch):
  def fail(self, *args, **kwargs):
    raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

  monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    planned()


def test_errors():
  with pytest.raises(ValueError, match="limit must be above 0"):
    planned(limit=0)
  with pytest.raises(ValueError, match="no Trainable"):
    planned(nnx.eval_shape(tiny.base))
  mesh = meshes.mesh(fsdp=8)
  with pytest.raises(ValueError, match="decoder_input_tokens"):
    planned(mesh=mesh, rows=6)


TEXT = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%piece.1 (p: bf16[1,8]) -> bf16[4,8] {
  %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7
}

%piece.2 (p: bf16[1,8]) -> bf16[4,8] {
  %all-gather.2 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7
}

%body (carry: (s32[], f32[2])) -> (s32[], f32[2]) {
  %all-reduce.1 = f32[2]{0} all-reduce(%x), channel_id=1, to_apply=%add
}

%condition (carry: (s32[], f32[2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%turn, %limit), direction=LT
}

%branch (p: f32[2]) -> f32[2] {
  %inner = (s32[], f32[2]) while(%t), condition=%condition, body=%body
}

%body.2 (carry: (s32[], f32[2])) -> (s32[], f32[2]) {
  %chosen = f32[2] conditional(%i, %x, %y), branch_computations={%branch, %add}
}

%other (carry: (s32[], f32[2])) -> pred[] {
  ROOT %less.2 = pred[] fusion(%carry), kind=kLoop, calls=%add
}

ENTRY %main_spmd (a: f32[2]) -> (f32[2], pred[8,8]) {
  %start = ((f32[2]{0}, u8[3]{0}), (f32[8]{0}, u8[12]{0}), u32[]) \
all-gather-start(%a, %b), channel_id=2
  %done = (f32[8]{0}, u8[12]{0}) all-gather-done(%start)
  %both = (f32[2]{0}, pred[8,8]{1,0}) all-reduce(%a, %c), channel_id=3
  %begun = f32[2]{0} all-reduce-start(%a), channel_id=4, to_apply=%add
  %fused.1 = bf16[4,8] fusion(%q), kind=kCustom, calls=%piece.1
  %fused.2 = bf16[4,8] fusion(%q), kind=kCustom, calls=%piece.2
  %loop = (s32[], f32[2]) while(%t), condition=%other, body=%body.2, \
backend_config={"known_trip_count":{"n":"3"}}
  %shift = s4[10]{0} collective-permute(%s), channel_id=5
}
"""


def test_collectives():
  assert {found.kind: found for found in collectives.collectives(TEXT)} == {
    # 8 x 4 + 12 bytes started once, and 4 x 8 x 2 in two pieces of one.
    "all-gather": collectives.Collective("all-gather", 2, 44 + 64),
    # 8 + 64 of a tuple, 8 started, and 8 in 3 x 5 turns of a loop in a loop.
    "all-reduce": collectives.Collective("all-reduce", 17, 72 + 8 + 15 * 8),
    "collective-permute": collectives.Collective("collective-permute", 1, 5),
  }


def test_collectives_of_a_program():
  """What this XLA writes is read: a loop of known turns, on eight devices."""
  mesh = meshes.mesh(data=8)
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def program(x):
    def turn(carry, _):
      carry = jax.lax.with_sharding_constraint(carry * 2, spec)
      return jax.lax.with_sharding_constraint(jnp.sin(carry), whole), None

    return jax.lax.scan(turn, x, length=6)[0]

  x = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=whole)
  text = jax.jit(program).lower(x).compile().as_text()
  (found,) = collectives.collectives(text)
  assert found == collectives.Collective("all-gather", 6, 6 * 64 * 4)


def test_without_a_compiler_for_tpus(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"sira_jax\[tpu\]"):
    plan.devices("v5e:2x2")


needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="compiles for a TPU, and libtpu is not installed",
)


@needs_libtpu
@pytest.mark.parametrize("topology", ["v9:2x2", "v5e:3x5", "nonsense"])
def test_no_such_topology(topology):
  with pytest.raises(ValueError, match=f"No topology '{topology}'"):
    plan.devices(topology)


@needs_libtpu
@pytest.mark.parametrize("execution", ["rank_space", "dispatch"])
def test_a_step_for_a_tpu(execution):
  chips = plan.devices("v5e:2x2")
  mesh = meshes.mesh(data=1, fsdp=4, devices=chips)
  found = planned(shapes(experts=4, k=2, execution=execution), mesh=mesh)
  assert (len(chips), found.device) == (4, "TPU v5 lite")
  assert found.fits and found.limit == int(15.75 * 2**30)
  assert found.program > 0 and found.flops > 0
  assert "all-gather" in {one.kind for one in found.collectives}


@needs_libtpu
def test_a_tpu_that_is_too_small():
  mesh = meshes.mesh(devices=plan.devices("v5e:2x2")[:1])
  # Each of its two matrices, and each moment of the second, has 16 GiB.
  model = nnx.eval_shape(lambda: Matmul(2**16, nnx.Rngs(0)))
  found = planned(model, mesh=mesh)
  assert found.fits is False
  assert "15.75G" in found.refusal


@needs_libtpu
def test_a_chip_is_a_device():
  assert len(plan.devices("v4:2x2x1")) == 4


def made(shape, layers, method):
  return dataclasses.replace(PLAN, trained=layers, seconds=12.3)


def test_the_table_is_kept_as_it_comes(tmp_path):
  file, asked = tmp_path / "runs" / "plans.json", []

  def compile(*key):
    if key in asked:
      raise AssertionError(f"{key} is compiled twice")
    asked.append(key)
    if key[1] == 3:
      raise KeyboardInterrupt
    return made(*key)

  keys = [("8b", n, "lora") for n in (1, 2, 3)]
  with pytest.raises(KeyboardInterrupt):
    tpu_plans.fill(keys, file, compile)
  assert [row["layers"] for row in json.loads(file.read_text())] == [1, 2]
  rows = tpu_plans.fill(keys[:2], file, compile)
  assert asked == keys
  lines = tpu_plans.table(rows).splitlines()
  assert len(lines) == 4 and {line.count("|") for line in lines} == {14}
  assert lines[3].startswith(
    "| 8b | 2 | lora | TPU v5 lite, data 2, fsdp 8 | 2 |"
  )
  assert lines[3].endswith("| 12 s |")


@pytest.mark.parametrize("method", tpu_plans.METHODS)
def test_the_steps_of_the_table(method, monkeypatch):
  """Each method's, as far as to the compiler, of a small decoder."""
  monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
  monkeypatch.setattr(plan, "devices", lambda topology: jax.devices()[:4])
  config = dataclasses.replace(tiny.CONFIG, layers=1)
  mesh = dict(data=1, fsdp=4, tensor=1)
  shape = tpu_plans.Shape(config, "v5e:2x2", mesh, rows=4, length=8)
  found = tpu_plans.compiled(shape, method)
  name, settings = tpu_plans.METHODS[method]
  factory = methods.create(name, **settings)
  sizes = [(16, 16), (16, 8), (16, 8), (16, 16)]
  assert found.trained == sum(factory.parameters(*size) for size in sizes)
  # bfloat16, and all divided by the four.
  assert found.weights * 4 == found.frozen * 2
