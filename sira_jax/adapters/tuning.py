# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning: the base model's own weights become trainable."""

import dataclasses

from flax import nnx

from sira_jax.adapters.variables import BaseParam


@dataclasses.dataclass(frozen=True)
class FullFactory:
  """No adapter: a rule with it frees every parameter of the modules it matches.

  Weights are trained in the dtype that they have: load the base as float32.

  Attributes:
    method: the name in `METHODS` that it came from.
  """

  method: str

  def describe(self) -> str:
    """In a few words, for a run's reader."""
    return f"{self.method} fine-tuning"


def owned(
  module: nnx.Module, kind: type = nnx.Param
) -> dict[str, nnx.Variable]:
  """The variables of exactly this kind that a module holds itself, by name."""
  return {k: v for k, v in vars(module).items() if type(v) is kind}


def free(module: nnx.Module) -> None:
  """Makes a module's own parameters trainable."""
  retype(module, nnx.Param, BaseParam)


def freeze(module: nnx.Module) -> None:
  """Undoes `free`."""
  retype(module, BaseParam, nnx.Param)


def retype(module: nnx.Module, old: type, new: type) -> None:
  """Makes a module's own variables of one kind those of another."""
  for name, variable in owned(module, old).items():
    setattr(module, name, new(variable.get_value(), **variable.get_metadata()))
