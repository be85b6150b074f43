# SPDX-License-Identifier: Apache-2.0
"""Frozen layers with an adapter beside them; `surgery` makes them."""

import typing

from flax import nnx

from sira_jax.adapters import hosts


class AdaptedLinear(nnx.Linear):
  """The sum of a frozen layer's output and its adapter's."""

  adapter: nnx.Module

  def __call__(self, inputs, *args, **kwargs):
    """x W0 (+ bias) + the adapter's term, in the frozen output's dtype."""
    return _with_term(self, inputs, super().__call__(inputs, *args, **kwargs))


class AdaptedLinearGeneral(nnx.LinearGeneral):
  """As `AdaptedLinear`."""

  adapter: nnx.Module

  def __call__(self, inputs, *args, **kwargs):
    """As `AdaptedLinear`, of several axes."""
    return _with_term(self, inputs, super().__call__(inputs, *args, **kwargs))


class AdaptedEinsum(nnx.Einsum):
  """As `AdaptedLinear`."""

  adapter: nnx.Module

  def __call__(self, inputs, einsum_str=None, **kwargs):
    """As `AdaptedLinear`, of several axes.

    Raises:
      ValueError: another `einsum_str` than the layer was made with.
    """
    if einsum_str not in (None, self.einsum_str):
      raise ValueError(
        f"An adapted Einsum computes {self.einsum_str!r}, got {einsum_str!r}."
      )
    return _with_term(self, inputs, super().__call__(inputs, **kwargs))


Adapted = AdaptedLinear | AdaptedLinearGeneral | AdaptedEinsum
# What each kind of layer becomes.
KINDS = dict(zip(hosts.KINDS, typing.get_args(Adapted), strict=True))


def _with_term(layer, x, y):
  """The frozen output y and the adapter's term, for the input x."""
  fold = hosts.fold(layer)
  term = layer.adapter(fold.flat(x, fold.ins), fold.flat(y, fold.outs))
  return y + term.astype(y.dtype).reshape(y.shape)
