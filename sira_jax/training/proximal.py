# SPDX-License-Identifier: Apache-2.0
"""SoRA's proximal step, which brings gates over ranks to exactly zero."""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax


def soft_threshold(x: jax.Array, threshold: ArrayLike) -> jax.Array:
  """T(x) = sign(x) max(|x| - threshold, 0), the proximal map of the L1 norm."""
  return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def released_threshold(x: jax.Array, threshold: ArrayLike) -> jax.Array:
  """0 where |x| < 2 threshold, else sign(x) (|x| - threshold).

  Not the L1 norm's map: what the authors' code does, since it zeroes below the
  threshold after it has shrunk. On (threshold, 2 threshold) it is zero where
  `soft_threshold` is not, and it jumps at the upper end.

  Source: TsinghuaC3I/SoRA, src/sparse_optimizer.py (there, |x| equal to the
  threshold is kept as it is).
  """
  shrunk = x - jnp.sign(x) * threshold
  return jnp.where(jnp.abs(x) < 2 * threshold, 0, shrunk)


FORMS = {"paper": soft_threshold, "released": released_threshold}


@dataclasses.dataclass(frozen=True)
class Gates:
  """How SoRA's gates g over ranks are trained.

  g <- T(g - lr_t * update_t), with threshold lr_t * penalty

  where update_t is the optimizer's of the loss without any penalty, lr_t the
  gates' learning rate and T `soft_threshold`. Where update_t is the gradient,
  this is the proximal gradient step of loss + penalty * sum |g|; Adam's is a
  gradient over its own root mean square, so that a penalty of 1 or more
  outweighs any. Gates are never decayed.

  Source: Ding et al. 2023 (SoRA, arXiv 2311.11696) train g by the proximal
  gradient method. Their released code differs, and `form="released"` with
  `mean_penalty` follows it:

  * its threshold is a constant (`sparse_lambda_2`), not times the learning
    rate, so that the shrinkage grows with the number of steps and outlasts a
    learning rate that decays to zero;
  * its map is `released_threshold`, zero up to twice the threshold;
  * it adds `sparse_lambda` * mean |g| to the loss, see `mean_l1`.

  Attributes:
    penalty: lambda; the threshold itself in the released form.
    form: a key of `FORMS`.
    mean_penalty: the coefficient of the released code's loss term.
    learning_rate: of the gates, as a multiple of the run's.

  Raises:
    ValueError: a form that does not exist, or a number out of range.
  """

  penalty: float
  form: str = "paper"
  mean_penalty: float = 0.0
  learning_rate: float = 1.0

  def __post_init__(self):
    _check_form(self.form)
    for name in ("penalty", "mean_penalty"):
      value = getattr(self, name)
      if not 0 <= value < math.inf:
        raise ValueError(f"gates: {name} must be 0 or more, got {value}.")
    if not 0 < self.learning_rate < math.inf:
      raise ValueError(
        "gates: learning_rate, a multiple of the run's, must be above 0, got"
        f" {self.learning_rate}."
      )

  def threshold(self, schedule: optax.Schedule) -> float | optax.Schedule:
    """For `l1`, given the run's learning rate schedule."""
    if self.form == "released":
      return self.penalty
    return lambda step: self.learning_rate * schedule(step) * self.penalty


class L1State(NamedTuple):
  """Steps taken, for the threshold's schedule."""

  count: jax.Array


def l1(
  threshold: float | optax.Schedule, *, form: str = "paper"
) -> optax.GradientTransformation:
  """The proximal step, as the last link of a chain.

  u -> T(p + u) - p, for parameters p and the whole update u before it

  and exactly -p where T is zero, so that p + u is too. Any link behind this
  one undoes the zeros; before Adam, it makes none.

  Args:
    threshold: T's, or a schedule of it. Where it is not above zero, u stays
      as it is.
    form: T, a key of `FORMS`.

  Raises:
    ValueError: no such form; or, of the update, that it was given no params.
  """
  _check_form(form)
  schedule = threshold if callable(threshold) else lambda _: threshold

  def init(params):
    del params
    return L1State(count=jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    _check_params(params)
    now = jnp.asarray(schedule(state.count), jnp.float32)
    step = _step(FORMS[form], now)
    count = optax.safe_increment(state.count)
    return jax.tree.map(step, updates, params), L1State(count=count)

  return optax.GradientTransformation(init, update)


def mean_l1(coefficient: float) -> optax.GradientTransformation:
  """Adds the gradient of coefficient * mean |p|, of all parameters it sees.

  sign(0) is 0. For the front of a chain, masked to the gates: their mean is
  over the whole model, as in the released code of SoRA (TsinghuaC3I/SoRA,
  src/trainer.py, `compute_loss`), which clips the gradient of the sum.

  Raises:
    ValueError: of the update, that it was given no params.
  """

  def update(updates, state, params=None):
    _check_params(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))

    def add(update, param):
      return update + (coefficient / size * jnp.sign(param)).astype(
        update.dtype
      )

    return jax.tree.map(add, updates, params), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def _step(
  apply: Callable[[jax.Array, jax.Array], jax.Array], threshold: jax.Array
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """(update, param) -> update of the proximal step."""

  def step(update, param):
    old = param.astype(jnp.float32)
    new = apply(old + update.astype(jnp.float32), threshold)
    # Where new is 0 this is -old, which the wider of both types holds exactly.
    found = (new - old).astype(jnp.result_type(update, param))
    return jnp.where(threshold > 0, found, update)

  return step


def _check_form(form):
  if form not in FORMS:
    raise ValueError(
      f"Unknown form {form!r} of the proximal step; there are {sorted(FORMS)}."
    )


def _check_params(params):
  if params is None:
    raise ValueError(
      "A penalty on gates needs the parameters: call"
      " optimizer.update(gradients, state, params)."
    )
