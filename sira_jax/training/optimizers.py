# SPDX-License-Identifier: Apache-2.0
"""Optimizers, as optax chains."""

import inspect
from typing import Any

from flax import nnx
import jax
import optax

from sira_jax.adapters.variables import GateParam
from sira_jax.training import proximal


def adamw(
  *,
  steps: int,
  learning_rate: float = 1e-3,
  warmup_steps: int = 0,
  final_fraction: float = 0.0,
  weight_decay: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.999,
  clip: float | None = 1.0,
  gates: proximal.Gates | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW with linear warm-up and cosine decay; and its schedule.

  clip by global norm -> Adam -> decoupled decay -> learning rate
  -> proximal step, of the gates alone.

  Args:
    steps: of the whole run.
    learning_rate: the peak.
    warmup_steps: from zero to the peak.
    final_fraction: of the peak, at the last step; 1 is a constant rate.
    weight_decay: of every trained array but the gates.
    b1: Adam's, of the mean.
    b2: Adam's, of the square.
    clip: the largest global norm of a gradient; None does not clip.
    gates: how the `GateParam` variables are trained; None is as the others,
      but never decayed.

  Raises:
    ValueError: the warm-up is not shorter than the run, or a size that makes
      no sense.
  """
  schedule = _schedule(steps, learning_rate, warmup_steps, final_fraction)
  rule = optax.adamw(
    schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_others
  )
  return _chain(rule, schedule, clip, gates), schedule


def adafactor(
  *,
  steps: int,
  learning_rate: float = 3e-4,
  warmup_steps: int = 0,
  final_fraction: float = 1.0,
  decay_rate: float = 0.8,
  parameter_scale: bool = False,
  clip: float | None = 1.0,
  gates: proximal.Gates | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Adafactor without momentum or decay, at a constant rate; and its schedule.

  clip by global norm -> gradient / root of its mean square, factored into
  rows and columns where two sides have 128 or more -> clip by each array's
  root mean square -> learning rate -> proximal step, of the gates alone.

  Source: Shazeer & Stern 2018. The code of MoV and MoLoRA
  (for-ai/parameter-efficient-moe, configs/molora.gin) trains with it at a
  constant 3e-4 and a decay rate of 0.8. It leaves T5X's default to scale the
  steps by the parameters; ours does not, since B starts at zero.

  Args:
    steps: of the whole run.
    learning_rate: the peak.
    warmup_steps: from zero to the peak.
    final_fraction: of the peak, at the last step, by a cosine.
    decay_rate: the mean square's decay at step t is 1 - t ** -decay_rate.
    parameter_scale: multiply the step of each array but the gates by its root
      mean square, or by 1e-3 where that is less.
    clip: the largest global norm of a gradient; None does not clip.
    gates: how the `GateParam` variables are trained; None is as the others.

  Raises:
    ValueError: as `adamw`.
  """
  schedule = _schedule(steps, learning_rate, warmup_steps, final_fraction)
  rule = optax.adafactor(
    schedule, decay_rate=decay_rate, multiply_by_parameter_scale=False
  )
  if parameter_scale:
    scale = optax.scale_by_param_block_rms(min_scale=1e-3)
    rule = optax.chain(rule, optax.masked(scale, _others))
  return _chain(rule, schedule, clip, gates), schedule


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor}


def create(
  kind: str,
  *,
  steps: int,
  gates: proximal.Gates | None = None,
  **settings: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer named in `OPTIMIZERS`, and its schedule.

  Raises:
    ValueError: no such optimizer, or a setting that it does not have or
      refuses.
  """
  if kind not in OPTIMIZERS:
    raise ValueError(
      f"Unknown optimizer {kind!r}; there are {sorted(OPTIMIZERS)}."
    )
  parameters = inspect.signature(OPTIMIZERS[kind]).parameters
  known = [name for name in parameters if name not in ("steps", "gates")]
  unknown = sorted(set(settings) - set(known))
  if unknown:
    raise ValueError(
      f"{kind} has no setting {', '.join(unknown)}; it has {', '.join(known)}."
    )
  return OPTIMIZERS[kind](steps=steps, gates=gates, **settings)


def _schedule(steps, learning_rate, warmup_steps, final_fraction):
  if steps < 1 or not 0 <= warmup_steps < steps:
    raise ValueError(
      "optimizer: expected steps >= 1 and 0 <= warmup_steps < steps, got"
      f" steps={steps}, warmup_steps={warmup_steps}."
    )
  if not learning_rate > 0:
    raise ValueError(
      f"optimizer: learning_rate must be above 0, got {learning_rate}."
    )
  if not 0 <= final_fraction <= 1:
    raise ValueError(
      f"optimizer: final_fraction must be in [0, 1], got {final_fraction}."
    )
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup_steps else learning_rate,
    peak_value=learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=steps,
    end_value=final_fraction * learning_rate,
  )


def _chain(rule, schedule, clip, gates):
  """Adds to the update rule what comes before it and after it."""
  if clip is not None and not clip > 0:
    raise ValueError(
      f"optimizer: clip must be above 0 (None does not clip), got {clip}."
    )
  links = [] if clip is None else [optax.clip_by_global_norm(clip)]
  links.append(rule)
  if gates is None:
    return optax.chain(*links)
  # Before the clipping, which is of the whole gradient in the released code.
  first = optax.masked(proximal.mean_l1(gates.mean_penalty), _gates)
  last = optax.chain(
    optax.scale(gates.learning_rate),
    proximal.l1(gates.threshold(schedule), form=gates.form),
  )
  return optax.chain(first, *links, optax.masked(last, _gates))


def _gates(tree):
  """True at the variables that are gates, by their type."""
  return jax.tree.map(
    lambda variable: isinstance(variable, GateParam),
    tree,
    is_leaf=lambda node: isinstance(node, nnx.Variable),
  )


def _others(tree):
  return jax.tree.map(lambda gate: not gate, _gates(tree))
