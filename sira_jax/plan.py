# SPDX-License-Identifier: Apache-2.0
"""What a training step needs, found by compiling it without one number.

    found = plan.plan(model, optimizer, batch=plan.batch(16, 2048), mesh=mesh)
    print(found.describe())

Neither the weights nor the devices need exist: a model made under
`nnx.eval_shape` has shapes only, and `devices("v5e:4x4")` are chips that a
compiler knows, for a mesh. The program is that of `training.step`, for that
mesh, compiled by the compiler of those chips; nothing of it is run.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

from flax import nnx
import jax
from jax.experimental import topologies
import jax.numpy as jnp
import optax

from sira_jax import collectives, sharding
from sira_jax.training import step as training

GIB = 2**30
# Memory of a device that a program may use, in GiB, by `device_kind`: what the
# compiler of jax 0.10.2 says, a little less than what is built in.
LIMITS = {
  "TPU v4": 30.75,
  "TPU v5": 95.74,
  "TPU v5 lite": 15.75,
  "TPU v6 lite": 31.25,
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """A compiled step, in numbers; all bytes, FLOPs and collectives a device's.

  Attributes:
    device: its kind.
    mesh: axis -> devices.
    frozen: parameters of the base.
    trained: parameters that the step changes.
    weights: bytes of what is frozen.
    training: bytes of what is trained, the optimizer's state, and what is
      saved with them.
    batch: bytes of the batch.
    padding: bytes that the layouts of the three above take on top.
    temporaries: bytes of activations, gradients and gathered weights, at once.
    output: bytes of results that do not replace the state they came from.
    program: bytes of the program itself, where it lies in the same memory.
    flops: as XLA counts them, the body of a loop once: a lower bound, low where
      XLA turns products of gathered weights into loops.
    collectives: what the device exchanges with others.
    seconds: it took to compile.
    limit: bytes of a device; None where unknown.
    refusal: the compiler's words if it found that the step does not fit; then
      what comes of compiling is zero.
  """

  device: str
  mesh: Mapping[str, int]
  frozen: int
  trained: int
  weights: int
  training: int
  batch: int
  padding: int
  temporaries: int
  output: int
  program: int
  flops: float
  collectives: tuple[collectives.Collective, ...]
  seconds: float
  limit: int | None
  refusal: str | None = None

  @property
  def total(self) -> int:
    """Bytes of a device, while the step runs."""
    inputs = self.weights + self.training + self.batch + self.padding
    return inputs + self.temporaries + self.output + self.program

  @property
  def fits(self) -> bool | None:
    """Whether the device has as much; None where that is unknown."""
    if self.refusal is not None:
      return False
    return None if self.limit is None else self.total <= self.limit

  def describe(self) -> str:
    """For a reader, a line a number."""
    axes = ", ".join(f"{name} {count}" for name, count in self.mesh.items())
    lines = [
      f"plan      a step on {math.prod(self.mesh.values())} x {self.device}:"
      f" {axes}",
      f"weights   {size(self.weights)}  {self.frozen:,} parameters, frozen",
      f"trained   {size(self.training)}  {self.trained:,} parameters, and the"
      " optimizer's state",
      f"batch     {size(self.batch)}",
    ]
    if self.refusal is not None:
      return "\n".join([*lines, f"does not fit: {self.refusal}"])
    verdict = "; what a device has is unknown, give a limit"
    if self.limit is not None:
      word = "fits" if self.fits else "does not fit"
      verdict = f" of {size(self.limit).strip()}: {word}"
    lines += [
      f"padding   {size(self.padding)}  of all these",
      f"working   {size(self.temporaries)}  activations, gradients, gathered"
      " weights",
      f"output    {size(self.output)}",
      f"program   {size(self.program)}",
      f"total     {size(self.total)}{verdict}",
      f"compute   at least {self.flops / 1e12:.4g} TFLOP: bodies of loops once",
    ]
    for one in self.collectives:
      lines.append(f"exchange  {size(one.bytes)}  {one.count} {one.kind}")
    lines.append(
      f"compiled  in {self.seconds:.0f} s; all numbers are a device's"
    )
    return "\n".join(lines)


def plan(
  model: nnx.Module,
  optimizer: optax.GradientTransformation,
  *,
  batch: Mapping[str, Any],
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules | None = None,
  steps: int | None = None,
  microbatches: int = 1,
  limit: float | None = None,
) -> Plan:
  """Compiles the training step of `model` for `mesh`.

  Args:
    model: adapted; of arrays or of shapes.
    optimizer: of its Trainable variables.
    batch: anything with shapes and dtypes, see `batch`; of the whole mesh.
    mesh: of devices that are here, or of `devices(...)`.
    rules: see `sharding.use`.
    steps: see `training.step.make`, as `microbatches`.
    limit: GiB of a device; by default what `LIMITS` or the device says.

  Raises:
    ValueError: nothing to train, shapes that the mesh does not divide, or a
      limit that is none.
  """
  if limit is not None and not limit > 0:
    raise ValueError(f"limit must be above 0 GiB, got {limit}.")
  taken = arguments(model, optimizer, batch=batch, mesh=mesh, rules=rules)
  made = training.program(
    model, optimizer, steps=steps, microbatches=microbatches
  )
  with sharding.use(mesh, rules):
    lowered = _lower(made, taken)
  begun = time.monotonic()
  state, frozen, _ = taken
  base = nnx.filter_state(frozen, nnx.Param)  # all but layers' seeds
  sizes = [_bytes(tree) for tree in taken]
  known = dict(
    device=_kind(mesh),
    mesh=dict(mesh.shape),
    frozen=_numbers(base),
    trained=_numbers(state.trainable),
    training=sizes[0],
    weights=_bytes(base),
    batch=sizes[2],
    limit=_limit(mesh, limit),
  )
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    found = dict.fromkeys(_COMPILED, 0) | {"collectives": ()}
    found["refusal"] = _refusal(str(error))
  else:
    found = _measured(compiled, sum(sizes))
  return Plan(**known, **found, seconds=time.monotonic() - begun)


def arguments(
  model: nnx.Module,
  optimizer: optax.GradientTransformation,
  *,
  batch: Mapping[str, Any],
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules | None = None,
) -> tuple[training.TrainState, nnx.State, Mapping[str, Any]]:
  """The state, the frozen variables and the batch that a step takes.

  Of shapes alone, each with the place of what it is the shape of.

  Args as of `plan`.

  Raises:
    ValueError: nothing to train, or shapes that the mesh does not divide.
  """
  graph, variables = nnx.split(model)
  state = jax.eval_shape(
    lambda variables: training.init(
      nnx.merge(graph, variables), optimizer, seed=0
    ),
    variables,
  )
  _, frozen = training.frozen(
    nnx.merge(graph, jax.eval_shape(lambda: variables))
  )
  state, frozen, rows = (
    _shapes(tree, sharding.of(tree, mesh, rules=rules))
    for tree in (state, frozen, _rows(batch))
  )
  return state, frozen, nnx.pure(rows)


def _lower(made, taken):
  """The step of a state, what is frozen, and a batch, to be compiled."""

  def step(state, frozen, batch):
    return made.step(state, frozen, batch, None)

  kept = jax.tree.map(lambda shape: shape.sharding, taken[0])
  # What is not used is kept, since it lies in the device's memory anyhow.
  return jax.jit(
    step, donate_argnums=0, keep_unused=True, out_shardings=(kept, None)
  ).lower(*taken)


_FLOATS = ("decoder_loss_weights", "decoder_target_values")


def batch(
  rows: int,
  length: int,
  *,
  targets_length: int | None = None,
  packed: bool = False,
  numbers: bool | None = None,
  prefix: bool = False,
) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a batch, as `data.pipeline.batches` makes it.

  Of an encoder with a head, `numbers` says whether it gives a number; else it
  is None.
  """
  sizes = {"decoder": length}
  if targets_length is not None:
    sizes = {"encoder": length, "decoder": targets_length}
  sides = sizes if numbers is None else ["encoder"]
  names = [f"{side}_input_tokens" for side in sides]
  names += [f"decoder_target_{'values' if numbers else 'tokens'}"]
  names += ["decoder_loss_weights"]
  if prefix:
    names.append("decoder_causal_attention")
  if packed:
    names += [f"{side}_segment_ids" for side in sides]
    names += [f"{side}_positions" for side in sides]
  return {
    name: jax.ShapeDtypeStruct(
      (rows, sizes[name.partition("_")[0]]),
      jnp.float32 if name in _FLOATS else jnp.int32,
    )
    for name in names
  }


def devices(topology: str) -> Sequence[jax.Device]:
  """The chips of a TPU topology such as v5e:4x4, to compile for.

  They are not there and run nothing. Every chip is one device. What it tells
  libtpu of this machine is for a process that uses no TPU of its own.

  Raises:
    ValueError: no such topology, or no compiler for it.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"Compiling for the topology {topology!r} needs libtpu, which a machine"
      " without a TPU can have too: pip install 'sira_jax[tpu]'."
    )
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  # By default each of a v4 chip's two cores would be a device.
  options = {}
  if topology.startswith("v4:"):
    options["chip_config_name"] = "megacore"
  try:
    return topologies.get_topology_desc(topology, "tpu", **options).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"No topology {topology!r} ({error}). Give a generation and the chips"
      " along each side, in pairs: v5e:4x4, v6e:16x16, v4:2x2x4, v5p:4x4x8."
    ) from None


# libtpu looks for the machine's own chips, waits for a network that tells of
# them, and keeps other processes from them, unless told not to.
_NO_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_COMPILED = ("padding", "temporaries", "output", "program", "flops")


def _measured(compiled, arguments):
  """What XLA says of its program, given the bytes of our arguments."""
  memory = compiled.memory_analysis()
  return dict(
    padding=memory.argument_size_in_bytes - arguments,
    temporaries=memory.temp_size_in_bytes,
    output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    program=memory.generated_code_size_in_bytes,
    flops=compiled.cost_analysis()["flops"],
    collectives=collectives.collectives(compiled.as_text()),
  )


def _rows(batch):
  """The batch as Variables that say their axes."""
  return {
    name: nnx.Variable(
      jax.ShapeDtypeStruct(array.shape, array.dtype),
      axes=("batch", *[None] * (len(array.shape) - 1)),
    )
    for name, array in batch.items()
  }


def _shapes(tree, shardings):
  return jax.tree.map(
    lambda array, where: jax.ShapeDtypeStruct(
      array.shape, array.dtype, sharding=where
    ),
    tree,
    shardings,
  )


def _device_bytes(shape):
  own = shape.sharding.shard_shape(shape.shape)
  return math.prod(own) * shape.dtype.itemsize


def _bytes(tree):
  return sum(map(_device_bytes, jax.tree.leaves(tree)))


def _numbers(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _kind(mesh):
  return mesh.devices.flat[0].device_kind


def _limit(mesh, given):
  """Bytes; what was given, or the table's, or what a device here says."""
  if given is not None:
    return int(given * GIB)
  if _kind(mesh) in LIMITS:
    return int(LIMITS[_kind(mesh)] * GIB)
  device = mesh.devices.flat[0]
  # The devices of a topology are not here to be asked.
  here = device in jax.local_devices() and device.memory_stats()
  return here["bytes_limit"] if here else None


def _refusal(message: str) -> str:
  """The sentence of a compiler's message that has the numbers."""
  text = " ".join(message.split())
  found = re.search(
    r"Used \S+ of \S+ hbm|the total memory .* exceeds .*?\)", text
  )
  return found[0] if found else text[:300]


def size(number: int) -> str:
  """Bytes, for a reader: eleven letters."""
  if abs(number) >= GIB:
    return f"{number / GIB:7.2f} GiB"
  return f"{number / 2**20:7.1f} MiB"
