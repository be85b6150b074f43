# SPDX-License-Identifier: Apache-2.0
"""Runs a model's blocks, of which equal ones are traced once, or a loop.

Tracing a block takes Python as long however small it is, and XLA compiles the
body of a loop once. Parameters stay each block's own, with their own paths: a
loop stacks them inside the traced function, and their gradients come back by
block.
"""

from collections.abc import Callable, Sequence
import itertools

from flax import nnx
import jax
import jax.numpy as jnp

from sira_jax import sharding


def run(
  function: Callable[[nnx.Module, jax.Array], jax.Array],
  blocks: Sequence[nnx.Module],
  x: jax.Array,
  *,
  loop: bool,
) -> jax.Array:
  """x after `for block in blocks: x = function(block, x)`.

  Blocks of one kind differ in nothing but their variables' values. They share
  one trace of `function`; where nothing is traced, they are just called. With
  `loop`, consecutive ones are a `jax.lax.scan`. A block unlike all others, or
  with `loop` its neighbours, runs by itself. What blocks record under
  `nnx.capture` is recorded in each of them, as by the loop above; nothing else
  that `function` writes into a block is kept.
  """
  if not loop and not isinstance(x, jax.core.Tracer):
    for block in blocks:
      x = function(block, x)
    return x
  pieces = [(block, *_split(block)) for block in blocks]
  if not loop:
    return _in_turn(function, pieces, x)
  for _, group in itertools.groupby(pieces, key=lambda piece: _kind(*piece)):
    members, graphs, records, states = zip(*group, strict=True)
    if len(members) == 1:
      x = function(members[0], x)
    else:
      x, found = _scan(function, graphs[0], records[0], states, x)
      for number, block in enumerate(members):
        _record(block, jax.tree.map(lambda y, n=number: y[n], found))
  return x


def _in_turn(function, pieces, x):
  """One trace for each kind of block, and one equation for each block."""
  found = [_kind(*piece) for piece in pieces]
  kinds = [found.index(kind) for kind in found]
  calls = {}
  for (block, graph, records, state), kind in zip(pieces, kinds, strict=True):
    if kinds.count(kind) == 1:
      x = function(block, x)
      continue
    if kind not in calls:
      calls[kind] = jax.jit(_body(function, graph, records))
    x, recorded = calls[kind](x, state)
    _record(block, recorded)
  return x


def _scan(function, graph, records, states, x):
  """The new x, and what was recorded, stacked."""
  stacked = jax.tree.map(lambda *values: jnp.stack(values), *states)
  placed = jax.tree.map(
    _placed, stacked, is_leaf=lambda node: isinstance(node, nnx.Variable)
  )
  return jax.lax.scan(_body(function, graph, records), x, placed)


def _body(function, graph, records):
  """(x, a block's variables) -> (the new x, what was recorded)."""
  records = nnx.to_flat_state(records)
  recorded = nnx.Any(*(type(record) for _, record in records))
  nothing = nnx.from_flat_state([(p, r.replace({})) for p, r in records])

  def body(x, state):
    block = nnx.merge(graph, nothing, state, copy=True)
    return function(block, x), nnx.state(block, recorded)

  return body


def _split(block):
  """graph, records of a capture going on, and all other variables."""
  types = {
    type(record)
    for _, module in nnx.iter_modules(block)
    for record in getattr(module, "__captures__", ())
  }
  return nnx.split(block, nnx.Any(*types), ...)


def _kind(block, graph, records, state):
  del block, records
  leaves, tree = jax.tree.flatten(state)
  return graph, tree, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _placed(variable):
  """A stacked variable where those that it is made of are."""
  axes = variable.get_metadata().get("axes")
  if axes is None:
    return variable
  value = sharding.constrain(variable.get_value(), None, *axes)
  return variable.replace(value)


def _record(block, found):
  """Adds to what a block has recorded."""
  modules = dict(nnx.iter_modules(block))
  for (*path, _, _), record in nnx.to_flat_state(found):
    for name, values in record.get_value().items():
      for value in values:
        modules[tuple(path)].sow(type(record), name, value)
