# SPDX-License-Identifier: Apache-2.0
"""Optimizers, as optax chains."""

import optax


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
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW with linear warm-up and cosine decay; and its schedule.

  clip by global norm -> Adam -> decoupled decay -> learning rate.

  Args:
    steps: of the whole run.
    learning_rate: the peak.
    warmup_steps: from zero to the peak.
    final_fraction: of the peak, at the last step.
    weight_decay: of every trained array.
    b1: Adam's, of the mean.
    b2: Adam's, of the square.
    clip: the largest global norm of a gradient; None does not clip.

  Raises:
    ValueError: the warm-up is not shorter than the run, or a size that makes
      no sense.
  """
  if steps < 1 or not 0 <= warmup_steps < steps:
    raise ValueError(
      "optimizer: expected steps >= 1 and 0 <= warmup_steps < steps, got"
      f" steps={steps}, warmup_steps={warmup_steps}."
    )
  if not learning_rate > 0:
    raise ValueError(
      f"optimizer: learning_rate must be above 0, got {learning_rate}."
    )
  if clip is not None and not clip > 0:
    raise ValueError(
      f"optimizer: clip must be above 0 (None does not clip), got {clip}."
    )
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup_steps else learning_rate,
    peak_value=learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=steps,
    end_value=final_fraction * learning_rate,
  )
  links = [] if clip is None else [optax.clip_by_global_norm(clip)]
  links.append(optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay))
  return optax.chain(*links), schedule
