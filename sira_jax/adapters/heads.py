# SPDX-License-Identifier: Apache-2.0
"""A head of one's own: a last layer that is made anew and trained whole."""

from collections.abc import Callable, Sequence
import dataclasses

from flax import nnx
import jax.numpy as jnp

from sira_jax import sharding
from sira_jax.adapters import tuning
from sira_jax.adapters.variables import HeadParam

# The standard deviation of BERT's own start, where a head has one, too.
_START = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadFactory:
  """The settings of a head: the group `config.head`.

  Attributes:
    labels: what its outputs mean, in order; none for a regression, whose one
      output is the number itself.
    pooling: what the model makes the vector of, see its `pool_by`.

  Raises:
    ValueError: one label alone, or one that is there twice.
  """

  labels: Sequence[str] = ()
  pooling: str = "mean"
  method = "head"

  def __post_init__(self):
    if isinstance(self.labels, str):
      raise ValueError(f"labels must be a sequence, got {self.labels!r}.")
    object.__setattr__(self, "labels", tuple(self.labels))
    if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
      raise ValueError(
        "A head needs two labels at least, each once; or none, for a"
        f" regression. Got {self.labels!r:.200}."
      )

  @property
  def outputs(self) -> int:
    """How many numbers it gives."""
    return len(self.labels) or 1

  def describe(self) -> str:
    """In a few words, for a run's reader."""
    kind = f"{len(self.labels)} labels" if self.labels else "a number"
    return f"head of {kind}, by {self.pooling}"


def attach(
  model: nnx.Module, factory: HeadFactory, *, rngs: nnx.Rngs
) -> nnx.Linear:
  """Puts a head on a model, in place of the one that it has, if any.

  Its kernel [d outputs] is drawn from a normal of deviation 0.02, its bias is
  zero, and both are `HeadParam`s: trained, saved and exported with adapters.

  Args:
    model: with `head`, `pool_by(pooling)` and `config.d_model`, such as an
      encoder. Put its head on before `adapt`, which then leaves it alone.
    factory: the settings.
    rngs: to draw from.

  Raises:
    ValueError: the model takes no head, or not this pooling.
  """
  pool_by: Callable[[str], None] | None = getattr(model, "pool_by", None)
  if pool_by is None:
    raise ValueError(
      f"A {type(model).__name__} takes no head: its logits are of tokens. A"
      " head is for encoders, such as BERT or XLM-R."
    )
  pool_by(factory.pooling)

  def build(key):
    head = nnx.Linear(
      model.config.d_model,
      factory.outputs,
      kernel_init=nnx.initializers.normal(_START),
      kernel_metadata={"axes": ("d", None)},
      bias_metadata={"axes": (None,)},
      param_dtype=jnp.float32,
      rngs=nnx.Rngs(key),
    )
    tuning.retype(head, nnx.Param, HeadParam)
    return head

  head = sharding.born(build, rngs.params())
  head.factory = factory
  model.head = head
  return head


def of(model: nnx.Module) -> nnx.Linear | None:
  """A model's head, if it is one that is trained."""
  head = getattr(model, "head", None)
  return head if head is not None and tuning.owned(head, HeadParam) else None


def freeze(head: nnx.Linear) -> None:
  """Makes a trained head a part of the model, as a checkpoint's own is."""
  tuning.retype(head, HeadParam, nnx.Param)
