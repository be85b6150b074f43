# SPDX-License-Identifier: Apache-2.0
"""The layers that adapters go beside: each multiplies by one weight, d -> f.

    nnx.Linear          the last axis
    nnx.LinearGeneral   the last axes, of which the weight has several
    nnx.Einsum          the same, as its string says: "BTNH,NHD->BTD"

An adapter sees any of them as a matrix [d f], with its axes folded.
"""

from collections.abc import Callable
import dataclasses
import math

from flax import nnx
import jax
import numpy as np

from sira_jax.adapters.variables import Axes


@dataclasses.dataclass(frozen=True)
class Fold:
  """How a layer's weight is a matrix.

  Attributes:
    ins: sizes of the input's last axes, which are summed over.
    outs: sizes of the output's last axes.
    order: the weight's axes, those of `ins` first.
  """

  ins: tuple[int, ...]
  outs: tuple[int, ...]
  order: tuple[int, ...]

  @property
  def d(self) -> int:
    """Features in."""
    return math.prod(self.ins)

  @property
  def f(self) -> int:
    """Features out."""
    return math.prod(self.outs)

  def matrix(self, kernel: jax.Array) -> jax.Array:
    """The weight as [d f]."""
    return kernel.transpose(self.order).reshape(self.d, self.f)

  def kernel(self, matrix: jax.Array) -> jax.Array:
    """Undoes `matrix`."""
    back = tuple(int(axis) for axis in np.argsort(self.order))
    return matrix.reshape(self.ins + self.outs).transpose(back)

  def flat(self, x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """x with its last axes, of these sizes, as one."""
    if len(sizes) == 1:
      return x
    return x.reshape(*x.shape[: x.ndim - len(sizes)], math.prod(sizes))


def fold(layer: nnx.Module) -> Fold:
  """How the layer's weight is a matrix.

  Raises:
    ValueError: it is not one, and why.
  """
  kinds = [kind for kind in _FOLDS if isinstance(layer, kind)]
  if not kinds:
    raise ValueError(f"it is no {', '.join(kind.__name__ for kind in _FOLDS)}")
  return _FOLDS[kinds[0]](layer)


def axes(layer: nnx.Module) -> Axes:
  """The words of d and f: of the first axis of each that has one."""
  own = fold(layer)
  words = layer.kernel.get_metadata().get("axes") or (None,) * len(own.order)
  words = [words[axis] for axis in own.order]
  split = len(own.ins)
  d, f = (
    next((word for word in part if word is not None), None)
    for part in (words[:split], words[split:])
  )
  return d, f


def _linear(layer: nnx.Linear) -> Fold:
  return Fold((layer.in_features,), (layer.out_features,), (0, 1))


def _general(layer: nnx.LinearGeneral) -> Fold:
  count = len(layer.in_features)
  if layer.batch_axis:
    raise ValueError("it has a weight for each place of its batch axes")
  if tuple(layer.axis) != tuple(range(-count, 0)):
    raise ValueError(
      f"it sums over the axes {layer.axis}, not over the last ones,"
      f" {tuple(range(-count, 0))}"
    )
  order = tuple(range(layer.kernel[...].ndim))
  return Fold(tuple(layer.in_features), tuple(layer.out_features), order)


def _einsum(layer: nnx.Einsum) -> Fold:
  inputs, output = layer.einsum_str.replace(" ", "").split("->")
  x, kernel = inputs.split(",")
  ins = [letter for letter in x if letter in kernel and letter not in output]
  outs = [letter for letter in output if letter not in x]
  free = [letter for letter in x if letter not in ins]
  plain = (
    "." not in layer.einsum_str
    and len(set(x)) == len(x)
    and len(set(kernel)) == len(kernel)
    and sorted(kernel) == sorted(ins + outs)
    and x.endswith("".join(ins))
    and list(output) == free + outs
    and ins
  )
  if not plain:
    raise ValueError(
      f"{layer.einsum_str!r} is not the last axes of {x} times one weight, with"
      " the axes of its own last"
    )
  order = tuple(kernel.index(letter) for letter in ins + outs)
  shape = layer.kernel[...].shape
  sizes = [shape[axis] for axis in order]
  return Fold(tuple(sizes[: len(ins)]), tuple(sizes[len(ins) :]), order)


_FOLDS: dict[type[nnx.Module], Callable[..., Fold]] = {
  nnx.Linear: _linear,
  nnx.LinearGeneral: _general,
  nnx.Einsum: _einsum,
}
KINDS = tuple(_FOLDS)
