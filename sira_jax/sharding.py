# SPDX-License-Identifier: Apache-2.0
"""Where arrays live: a mesh of devices, and one table of what goes over it.

A parameter names its axes where it is made, by the words of `RULES` (metadata
`axes=("d", "f")` of its Variable); the table says which axis of the mesh each
word goes over. So a model knows no mesh, and a run has one:

    with sharding.use(meshes.mesh(fsdp=4, tensor=2)):
      sharding.place(model)          # the base, slice by slice
      adapt(model, rules, ...)       # adapters, born in their slices
      state = training.init(...)     # the optimizer's arrays too
      step = training.make(...)
      state, _ = step(state, sharding.rows(batch))

Without `use`, all of this does nothing, but that `rows` go to the first device.
A Variable without `axes` is whole on every device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import math
from types import EllipsisType
from typing import Any, TypeVar

from flax import nnx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from sira_jax import meshes

T = TypeVar("T")
# A word of the table -> the mesh axis or axes that it goes over.
Rules = Mapping[str, str | tuple[str, ...] | None]

# A mesh axis divides one dimension of an array. Where two words of an array
# want the same one, the word that is first here has it: experts, if they are to
# live apart, before a layer's own dimensions.
RULES: Rules = {
  "batch": ("data", "fsdp"),
  "length": None,
  "experts": None,
  "d": "fsdp",
  # A kernel's d has fsdp; of an adapter's B, which has no d, f has both.
  "heads": ("tensor", "fsdp"),
  "kv_heads": ("tensor", "fsdp"),
  "f": ("tensor", "fsdp"),
  "vocabulary": ("tensor", "fsdp"),
  "rank": None,
}

# The (mesh, rules) in use. JAX's own contexts are part of what a compiled
# program is cached by: other rules compile anew, equal ones do not.
_current = jax.make_user_context(default_value=None)


def layout(
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  slices: int = 1,
  experts: str | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> tuple[Mesh, Rules]:
  """A mesh and the rules on it: what `use` takes, and a config has.

  Args as of `meshes.mesh`, and:
    experts: the axis that experts go over, so that each device has some of
      them and execution="dispatch" sends them their tokens; None for none.

  Sizes without a -1 take so many of a process's devices, and leave the others.

  Raises:
    ValueError: as `meshes.mesh`, or an axis that it does not have.
  """
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
  wanted = math.prod(sizes.values())
  if devices is None and -1 not in sizes.values() and jax.process_count() == 1:
    devices = jax.devices()[: max(wanted, 1)]
  made = meshes.mesh(**sizes, slices=slices, devices=devices)
  rules = {} if experts is None else {"experts": experts}
  _table(made, rules)
  return made, rules


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules | None = None) -> Iterator[None]:
  """Everything inside the `with` lives on this mesh.

  Args:
    mesh: see `meshes.mesh`.
    rules: instead of the table's, such as {"experts": "data"} for experts
      that live apart; only for words that the table has.

  Raises:
    ValueError: a word that the table does not have, or an axis that the mesh
      does not.
  """
  with _current((mesh, tuple(_table(mesh, rules).items()))):
    yield


def in_use() -> bool:
  """Whether a mesh is in use."""
  return _current.value is not None


def device() -> jax.Device:
  """One of those that programs are for."""
  if _current.value is None:
    return jax.devices()[0]
  return _current.value[0].devices.flat[0]


def platform() -> str:
  """What programs are for: "cpu", "gpu" or "tpu"."""
  return device().platform


def of(tree: T, mesh: Mesh, *, rules: Rules | None = None) -> T:
  """The same tree with a `NamedSharding` in each array's place.

  Takes whatever holds Variables: a model, its state, an optimizer's state,
  whose moments are Variables with the metadata of their parameters. Other
  arrays (counters, keys) are whole on every device, and so are Variables of
  fewer dimensions than `axes`: the factors that Adafactor keeps of a matrix.
  A dimension of size 1 is never divided.

  Raises:
    ValueError: a dimension that its mesh axes do not divide, a word that the
      table does not have, or too few words for the dimensions.
  """
  table = _table(mesh, rules)

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    axes = None
    if isinstance(leaf, nnx.Variable):
      axes = leaf.get_metadata().get("axes")

    def sharding(array):
      if axes is None or array.ndim < len(axes) or array.size == 1:
        return _named(mesh, ())
      parts = _parts(name, array.shape, axes, mesh, table)
      _check_division(name, array.shape, axes, parts, mesh)
      return _named(mesh, parts)

    return jax.tree.map(sharding, leaf)

  return jax.tree_util.tree_map_with_path(
    one, tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
  )


def place(model: nnx.Module) -> None:
  """Moves a model's arrays to where they live, in place.

  Arrays of numpy go to the devices slice by slice.

  Raises:
    ValueError: as `of`.
  """
  if _current.value is not None:
    mesh, table = _current.value
    state = nnx.state(model)
    placed = jax.tree.map(_put, state, of(state, mesh, rules=dict(table)))
    nnx.update(model, placed)


def _put(array, sharding):
  """The array where its sharding says, of which this process has a part."""
  if sharding.is_fully_addressable or (
    isinstance(array, jax.Array) and not array.is_fully_addressable
  ):
    return jax.device_put(array, sharding)
  whole = np.asarray(array)
  return jax.make_array_from_callback(
    whole.shape, sharding, lambda index: whole[index]
  )


def born(function: Callable[..., T], *args: Any) -> T:
  """function(*args), computed where its results live: none is ever whole.

  Raises:
    ValueError: as `of`.
  """
  if _current.value is None:
    return function(*args)
  mesh, table = _current.value
  shapes = jax.eval_shape(function, *args)
  shardings = of(shapes, mesh, rules=dict(table))
  return jax.jit(function, out_shardings=shardings)(*args)


def filled(
  shapes: T, read: Callable[[str, tuple[slice, ...]], np.ndarray]
) -> T:
  """Variables of shapes, filled where they live: no process reads the rest.

  Args:
    shapes: a tree of Variables that hold `jax.ShapeDtypeStruct`s.
    read: of a Variable's path, such as "layers.0.mlp.up_proj.kernel", and a
      slice of each of its axes, the numbers there, which the Variable may keep.

  Raises:
    ValueError: as `of`.
  """
  shardings = None
  if _current.value is not None:
    mesh, table = _current.value
    shardings = of(shapes, mesh, rules=dict(table))

  def one(path, leaf, sharding=None):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if sharding is None:
      return leaf.replace(
        jax.device_put(read(name, (slice(None),) * leaf.ndim))
      )
    return leaf.replace(
      jax.make_array_from_callback(
        leaf.shape, sharding.get_value(), lambda index: read(name, index)
      )
    )

  trees = (shapes,) if shardings is None else (shapes, shardings)
  return jax.tree_util.tree_map_with_path(
    one, *trees, is_leaf=lambda node: isinstance(node, nnx.Variable)
  )


def rows(batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
  """A batch on the devices of its rows; without a mesh, on the first device.

  Every process gives the whole batch and keeps the rows of its own devices:
  so a batch is the same on any number of processes. A number goes to all.

  Raises:
    ValueError: rows that the mesh does not divide.
  """
  if _current.value is None:
    return jax.device_put(batch)
  mesh, table = _current.value

  def put(name, array):
    axes = ("batch", *[None] * array.ndim)[: array.ndim]
    parts = _parts(name, array.shape, axes, mesh, dict(table))
    count = _count(parts[0], mesh) if parts else 1
    if array.ndim and len(array) % count:
      raise ValueError(
        f"{name} has {len(array)} rows, which the {count} places for rows on"
        " the mesh do not divide. Choose another batch size."
      )
    return _put(array, _named(mesh, parts))

  return {name: put(name, array) for name, array in batch.items()}


def whole(values: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
  """Values that every device has whole; without a mesh, on the first device."""
  if _current.value is None:
    return jax.device_put(values)
  sharding = _named(_current.value[0], ())
  return {name: _put(array, sharding) for name, array in values.items()}


def places() -> int:
  """How many places for rows the mesh in use has; 1 without a mesh."""
  if _current.value is None:
    return 1
  mesh, table = _current.value
  return _count(dict(table)["batch"], mesh)


def constrain(
  x: jax.Array, *axes: str | EllipsisType | None, first: str | None = None
) -> jax.Array:
  """x, divided by the words of its axes; itself where no mesh is in use.

  An axis that is not divisible is padded.

  Args:
    x: an activation.
    axes: a word for each axis; None keeps it whole, `...` leaves it to XLA.
    first: the word that has a mesh axis before all others.

  Raises:
    ValueError: a word that the table does not have, or too few or too many.
  """
  if _current.value is None:
    return x
  mesh, table = _current.value
  table = dict(sorted(table, key=lambda rule: rule[0] != first))
  words = [None if axis is ... else axis for axis in axes]
  parts = _parts("A value", x.shape, words, mesh, table)
  spec = [
    PartitionSpec.UNCONSTRAINED if axis is ... else part or None
    for axis, part in zip(axes, parts, strict=True)
  ]
  sharding = NamedSharding(mesh, PartitionSpec(*spec))
  return jax.lax.with_sharding_constraint(x, sharding)


def spec(shape: Sequence[int], *axes: str | None) -> PartitionSpec | None:
  """What an array's axes go over on the mesh in use, for `mapped`.

  None if a dimension is not divisible; of Nones without a mesh.

  Raises:
    ValueError: as `constrain`.
  """
  if _current.value is None:
    return PartitionSpec(*[None] * len(axes))
  mesh, table = _current.value
  parts = _parts("A value", shape, axes, mesh, dict(table))
  counts = [_count(part, mesh) for part in parts]
  if any(size % count for size, count in zip(shape, counts, strict=True)):
    return None
  return PartitionSpec(*(part or None for part in parts))


def mapped(
  function: Callable[..., T], specs: Sequence[Any], out: Any
) -> Callable[..., T]:
  """The function, of each device's parts alone; itself without a mesh.

  For what XLA cannot divide, such as a kernel. `specs` and `out` are its
  arguments' and its result's `spec`, or trees of them.
  """
  if _current.value is None:
    return function
  # Kernels do not say over which axes their results differ.
  return jax.shard_map(
    function,
    mesh=_current.value[0],
    in_specs=tuple(specs),
    out_specs=out,
    check_vma=False,
  )


def _table(mesh, rules):
  rules = dict(rules or {})
  unknown = sorted(set(rules) - set(RULES))
  if unknown:
    raise ValueError(
      f"The rules name the axes {unknown}; the table has {list(RULES)}."
    )
  table = {}
  for word, over in {**RULES, **rules}.items():
    over = () if over is None else over
    table[word] = (over,) if isinstance(over, str) else tuple(over)
    absent = sorted(set(table[word]) - set(mesh.axis_names))
    if absent:
      raise ValueError(
        f"The rule {word!r} -> {over!r} names {absent}, but the mesh has the"
        f" axes {list(mesh.axis_names)}."
      )
  return table


def _parts(path, shape, axes, mesh, table) -> list[tuple[str, ...]]:
  """What each dimension goes over; a mesh axis to the first in the table."""
  unknown = sorted(set(axes) - {None} - set(table))
  if unknown or len(axes) != len(shape):
    raise ValueError(
      f"{path} of shape {shape} has the axes {axes}: expected one for each"
      f" dimension, None or a word of {list(table)}."
    )
  parts, free = [()] * len(axes), set(mesh.axis_names)
  for word, over in table.items():
    for i, name in enumerate(axes):
      if name == word and shape[i] > 1:
        parts[i] = tuple(axis for axis in over if axis in free)
        free.difference_update(parts[i])
  return parts


def _count(part, mesh):
  return math.prod(mesh.shape[axis] for axis in part)


def _check_division(path, shape, axes, parts, mesh):
  for size, name, part in zip(shape, axes, parts, strict=True):
    if size % _count(part, mesh):
      sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in part)
      raise ValueError(
        f"{path} of shape {shape}: its axis {name!r} of {size} goes over the"
        f" mesh's {sizes}, which does not divide it. Choose another mesh, or"
        f" leave the axis whole, by rules={{{name!r}: None}}."
      )


def _named(mesh, parts):
  return NamedSharding(mesh, PartitionSpec(*(part or None for part in parts)))
