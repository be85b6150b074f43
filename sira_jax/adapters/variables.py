# SPDX-License-Identifier: Apache-2.0
"""The Variable types that say what is trained, saved and left alone.

`nnx.Param` is the base model and stays frozen: what the step differentiates
is a type of its own, never a name pattern.
"""

from flax import nnx

# The words of a layer's d and f (see `sharding.RULES`), which the dimensions
# of its adapter take over; None where the model does not say.
Axes = tuple[str | None, str | None]


class Trainable(nnx.Variable):
  """What a training step differentiates and an optimizer keeps state for."""


class AdapterParam(Trainable):
  """A trained array of an adapter: A, B or a router."""


class GateParam(AdapterParam):
  """SoRA's gate over ranks: trained by proximal steps, never decayed."""


class BaseParam(Trainable):
  """A weight of the base model that full fine-tuning trains."""


class HeadParam(Trainable):
  """A weight of a head that was made anew: saved with the adapters."""


class AdapterConstant(nnx.Variable):
  """An array of an adapter that is saved with it and never trained."""


class Seed(nnx.Variable):
  """An integer that sets a layer's random draws apart.

  An array, and not a part of the graph, so that layers alike have equal graphs.
  """


class RoutingRecord(nnx.Variable):
  """A `records.RoutingStats` that one forward pass left under `nnx.capture`."""
