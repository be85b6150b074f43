"""Runs on meshes of eight devices equal a run on one, and what they exchange.

All collectives are read from the programs that XLA compiled for the CPU.
"""

import collections
import contextlib
import dataclasses
import functools
import re
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax import ambient, meshes, sharding
from sira_jax.adapters import adapter as adapter_lib
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import Trainable
from sira_jax.models import attention, decoder
from sira_jax.training import optimizers, proximal
from sira_jax.training import step as training
from tests import tiny

# Every width is a multiple of 8.
CONFIG = dataclasses.replace(tiny.CONFIG, heads=8, kv_heads=8, head_dim=4)
MESHES = {
  "data": dict(data=8),
  "fsdp": dict(data=1, fsdp=8),
  "mixed": dict(data=2, fsdp=2, tensor=2),
  "tensor": dict(data=1, tensor=8),
}
STEPS, ROWS, LENGTH = 20, 8, tiny.LENGTH
# In each block one layer of which tensor parallelism divides f, one of its d.
DIVIDED_F, DIVIDED_D = r".*q_proj", r".*down_proj"
SIRA = methods.sira(
  experts=4, rank=2, k=2, expert_dropout=0.25, capacity_factor=1.0
)
RULES = {
  "unrouted": [
    surgery.Rule(DIVIDED_F, methods.lora(rank=2)),
    surgery.Rule(DIVIDED_D, methods.sora(rank=3)),
  ],
  "sira": [surgery.Rule(f"{DIVIDED_F}|{DIVIDED_D}", SIRA)],
}


def mesh_of(name):
  return meshes.mesh(**MESHES[name])


def batch(seed=0, length=LENGTH):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, tiny.VOCABULARY, (ROWS, length)).astype(np.int32)
  sizes = np.array([length, length, length - 3, length - 5] * 2)[:, None]
  at = np.arange(length)
  return {
    "decoder_input_tokens": np.roll(tokens, 1, axis=1) * (at > 0),
    "decoder_target_tokens": np.where(at < sizes, tokens, 0),
    "decoder_loss_weights": np.float32((at >= sizes // 2) & (at < sizes)),
  }


def adapted(rules):
  """As if trained a little: B is not zero, and routers prefer some experts."""
  model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(0))
  sharding.place(model)
  surgery.adapt(model, rules, rngs=nnx.Rngs(1))
  tiny.randomize(model)
  for _, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      module.adapter.B[...] = 0.1 * module.adapter.B[...]
      if module.adapter.router is not None:
        kernel = module.adapter.router.kernel
        kernel[...] = 50 * kernel[...]
  # What was randomized.
  sharding.place(model)
  return model


def placed(mesh, rules=None):
  if mesh is None:
    return contextlib.nullcontext()
  return sharding.use(mesh, rules)


def compiled_step(model, state, optimizer, length=LENGTH):
  """The program of `training.make`, and its second argument."""
  _, frozen = training.frozen(model)
  made = training.program(model, optimizer, steps=STEPS)
  rows = sharding.rows(batch(length=length))
  return made.step.lower(state, frozen, rows, None).compile(), frozen


def optimizer_of(kind):
  """SGD, with SoRA's proximal step.

  Adam divides a gradient by its own size: where it is all rounding, so would
  be the step.
  """
  if kind == "sira":
    return optax.sgd(0.05)
  gates = proximal.Gates(penalty=0.3)
  link = proximal.l1(gates.threshold(optax.constant_schedule(0.05)))
  return optax.chain(optax.sgd(0.05), optax.masked(link, optimizers._gates))


@functools.cache
def run(kind, name=None):
  """20 steps of one kind of adapters, on a mesh or on one device."""
  mesh = name and mesh_of(name)
  with placed(mesh):
    model, optimizer = adapted(RULES[kind]), optimizer_of(kind)
    state = training.init(model, optimizer, seed=0)
    step, frozen = compiled_step(model, state, optimizer)
    states, losses = [], []
    for number in range(STEPS):
      before = state
      rows = sharding.rows(batch(number))
      state, metrics = step(before, frozen, rows, None)
      states.append(jax.tree.map(np.asarray, state.trainable))
      losses.append(float(metrics["loss"]))
  return types.SimpleNamespace(
    model=model,
    state=state,
    states=states,
    losses=np.array(losses),
    text=step.as_text(),
  )


def differences(one, other):
  """The largest difference of each array, relative to its largest number."""
  return [
    np.abs(a - b).max() / np.abs(a).max()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  ]


@pytest.mark.parametrize("name", MESHES)
def test_lora_and_sora_equal_one_device(name):
  one, many = run("unrouted"), run("unrouted", name)
  gates = [leaf for leaf in jax.tree.leaves(one.states[-1]) if leaf.size == 3]
  assert len(gates) == 2 and (np.array(gates) != 1).all()
  assert np.ptp(one.losses) > 0.1
  assert max(differences(one.states[-1], many.states[-1])) < 1e-5


@pytest.mark.parametrize("name", MESHES)
def test_sira_equals_one_device(name, record_property):
  """Up to flipped routes, which are counted."""
  one, many = run("sira"), run("sira", name)
  assert max(differences(one.states[0], many.states[0])) < 1e-5
  assert np.abs(one.losses - many.losses).max() < 1e-3
  flipped, total = flips(one, many)
  record_property("flipped", f"{flipped} of {total}")
  assert flipped <= 0.01 * total


def flips(one, many):
  """Of the choices of experts on a batch: how many differ; and all."""
  with pytest.MonkeyPatch.context() as patch:
    route, seen = adapter_lib.route, []
    patch.setattr(
      adapter_lib,
      "route",
      lambda *args: seen.append(route(*args)) or seen[-1],
    )
    graph, _, rest = nnx.split(adapted(RULES["sira"]), Trainable, ...)

    def chosen(trainable):  # untraced, so that each layer routes by itself
      seen.clear()
      with ambient.DROPOUT_KEY(jax.random.key(0)):
        nnx.merge(graph, trainable, rest).hidden(
          batch()["decoder_input_tokens"]
        )
      return [routing.weights > 0 for routing in seen]

    a, b = (np.stack(chosen(run.states[-1])) for run in (one, many))
  assert a.shape == (4, ROWS, LENGTH, 4)
  return int((a & ~b).sum()), int(a.sum())


@pytest.mark.parametrize("name", MESHES)
def test_state_stays_where_it_was_born(name):
  state = run("sira", name).state
  placement = sharding.of(state, mesh_of(name))
  jax.tree.map(
    lambda leaf, where: (
      leaf.sharding.is_equivalent_to(where, leaf.ndim)
      or pytest.fail(f"{leaf.shape}: {leaf.sharding} is not {where}")
    ),
    state,
    placement,
  )


KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def collectives(text):
  """Counter of (kind, number of elements a device has of the result)."""
  found = collections.Counter()
  for line in text.splitlines():
    match = re.search(rf"= (.*?) ({KINDS})(-start)?\(", line)
    if match:
      result = re.sub(r"/\*.*?\*/", "", match[1])
      for shape in re.findall(r"\w+\[([\d,]*)\]", result):
        sizes = [int(size) for size in shape.split(",") if size]
        found[match[2], int(np.prod(sizes))] += 1
  return found


def test_collectives_are_found():
  text = """
  %a = (f32[2,3]{1,0}, /*index=1*/f32[]) all-reduce(%x, %y), channel_id=1
  %b = f32[8]{0} all-gather-start(%a), dimensions={0}
  %c = f32[8]{0} add(%all-gather.1, %b)
  """
  assert collectives(text) == {
    ("all-reduce", 6): 1,
    ("all-reduce", 1): 1,
    ("all-gather", 8): 1,
  }


def test_rows_apart_exchange_the_gradients_alone():
  """Each array's gradient once, and numbers; whatever the length.

  Those of A and of the router are one product, and travel together.
  """
  own = run("sira", "data")
  found = collectives(own.text)
  leaves, _ = jax.tree_util.tree_flatten_with_path(own.states[0])
  sizes = collections.Counter()
  for path, leaf in leaves:
    site = jax.tree_util.keystr(path).split("['adapter']")[0]
    sizes[site, "'B'" in jax.tree_util.keystr(path)] += leaf.size
  sizes = collections.Counter(sizes.values())
  assert len(sizes) > 3
  numbers = found.pop(("all-reduce", 1))
  assert found == {("all-reduce", size): n for size, n in sizes.items()}
  assert numbers < 60
  with placed(mesh_of("data")):
    step, _ = compiled_step(
      own.model, own.state, optimizer_of("sira"), length=2 * LENGTH
    )
  longer = collectives(step.as_text())
  del longer["all-reduce", 1]
  assert longer == found


def through_blocks(rules):
  """Collectives of the blocks' forward pass and their backward pass to x."""
  with placed(mesh_of("tensor")):
    model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(0))
    sharding.place(model)
    if rules:
      surgery.adapt(model, rules, rngs=nnx.Rngs(1))
    graph, trainable, rest = nnx.split(model, Trainable, ...)

    def loss(trainable, x, rest):
      model = nnx.merge(graph, trainable, rest)
      x = sharding.constrain(x, "batch", "length", None)
      layout = model._layout(jnp.arange(LENGTH)[None], attention.Sight())
      with ambient.DROPOUT_KEY(jax.random.key(0)):
        for block in model.layers:
          x, _ = block(x, layout)
      return jnp.sin(x).sum()

    x = jnp.ones((ROWS, LENGTH, CONFIG.d_model))
    program = jax.jit(jax.grad(loss, (0, 1))).lower(trainable, x, rest)
    return collectives(program.compile().as_text())


def test_tensor_parallel_adapters_add_sums_over_ranks_alone():
  """The base sums [batch length d] alone, as often as it does without them.

  A site adds one sum: where f is divided of dy B^T, [batch length experts *
  rank]; where d is, of x A with the router's logits, which are experts more.
  Each is a 1 / d part of a sum of the base's, times these.
  """
  tokens, ranks = ROWS * LENGTH, SIRA.experts * SIRA.rank
  plain = through_blocks([])
  assert set(plain) == {("all-reduce", tokens * CONFIG.d_model)}
  assert plain.total() <= 7 * CONFIG.layers
  adapted = through_blocks(RULES["sira"])
  assert adapted == plain + collections.Counter(
    {
      ("all-reduce", tokens * ranks): CONFIG.layers,
      ("all-reduce", tokens * (ranks + SIRA.experts)): CONFIG.layers,
    }
  )


def dispatched(sizes, rules):
  """Gradients of a layer that dispatches, its program, and its adapter."""
  with placed(sizes and meshes.mesh(**sizes), rules):
    layer = nnx.Linear(
      16, 32, kernel_metadata={"axes": ("d", "f")}, rngs=nnx.Rngs(0)
    )
    factory = methods.sira(
      experts=4,
      rank=2,
      k=2,
      expert_dropout=0.0,
      capacity_factor=1.0,
      execution="dispatch",
    )
    model = nnx.List([layer])
    surgery.adapt(model, [surgery.Rule("0", factory)], rngs=nnx.Rngs(1))
    tiny.randomize(model)
    layer.adapter.router.kernel[...] = 50 * layer.adapter.router.kernel[...]
    sharding.place(model)
    graph, trainable, rest = nnx.split(layer, Trainable, ...)

    def loss(trainable, x, rest):
      y = nnx.merge(graph, trainable, rest)(x)
      return jnp.sin(sharding.constrain(y, "batch", "length", ...)).sum()

    rng = np.random.default_rng(0)
    x = {"x": rng.normal(size=(ROWS, LENGTH, 16)).astype(np.float32)}
    given = (trainable, sharding.rows(x)["x"], rest)
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile()
    gradients = jax.tree.map(np.asarray, program(*given))
  return gradients, collectives(program.as_text()), layer.adapter


@pytest.mark.parametrize(
  "sizes, over",
  [(dict(data=4, tensor=2), "data"), (dict(data=2, tensor=4), "tensor")],
)
def test_experts_apart(sizes, over):
  """Over the axis of the rows, buffers travel; over another, sums do."""
  expected, nothing, _ = dispatched(None, None)
  found, exchanged, adapter = dispatched(sizes, {"experts": over})
  assert not nothing
  assert max(differences(expected, found)) < 1e-5
  for array in (adapter.A[...], adapter.B[...]):
    whole, part = array.shape, array.sharding.shard_shape(array.shape)
    assert part[whole.index(4)] == 1
  travelling = {k: n for k, n in exchanged.items() if k[0] == "all-to-all"}
  gathered = {size for kind, size in exchanged if kind == "all-gather"}
  if over == "data":
    # Buffers [experts rows slots d] there, [experts rows slots f] back, and
    # both again for the gradients, each in 4 parts; a device has one expert, 2
    # rows of each part, 6 slots, and 16 of d and of the 32 of f.
    assert travelling == {("all-to-all", 2 * 6 * 16): 4 * 4}
    assert gathered == {16 * 4}  # the router's kernel
  else:
    # Every device of the axis has the same rows; y is summed over experts, and
    # its gradient, of which a device has 8 of 32 by the frozen layer, gathered.
    assert not travelling
    assert exchanged["all-reduce", 4 * LENGTH * 32] == 1
    assert gathered == {4 * LENGTH * 4, 4 * LENGTH * 32}
