# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy that computes logits only where there is a target."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
  logits: Callable[[Float[Array, "... d"]], Float[Array, "... vocabulary"]],
  hidden: Float[Array, "batch length d"],
  *,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  chunk: int = 16,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """The weighted sum of -log p(target), and of right first guesses.

  A language model's vocabulary is large and its targets are few: positions of
  weight zero get no logits, and no more than [batch chunk vocabulary] of them
  exist at a time, in the backward pass too (each chunk is computed again
  there). Each row's targets are moved to its front, the rows are walked in
  steps of `chunk` positions, and steps without any target are skipped.

  Args:
    logits: the model's last layer.
    hidden: what it takes.
    targets: token ids.
    weights: zero where there is no target.
    chunk: positions of each row to take at a time.
  """
  length = targets.shape[1]
  order = jnp.argsort(weights == 0, axis=1, stable=True)
  steps = -(-length // chunk)
  pad = steps * chunk - length

  def split(values):
    index = order.reshape(order.shape + (1,) * (values.ndim - 2))
    front = jnp.take_along_axis(values, index, axis=1)
    front = jnp.pad(front, [(0, 0), (0, pad)] + [(0, 0)] * (values.ndim - 2))
    front = front.reshape(front.shape[0], steps, chunk, *front.shape[2:])
    return front.swapaxes(0, 1)

  @jax.checkpoint
  def total(hidden, targets, weights):
    scores = logits(hidden).astype(jnp.float32)
    picked = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(scores, axis=-1) - picked
    right = (scores.argmax(axis=-1) == targets) * weights
    return (losses * weights).sum(), right.sum()

  def step(sums, part):
    values = jax.lax.cond(
      (part[2] != 0).any(), total, lambda *_: (0.0, 0.0), *part
    )
    return jax.tree.map(jnp.add, sums, values), None

  parts = (split(hidden), split(targets), split(weights))
  sums, _ = jax.lax.scan(step, (0.0, 0.0), parts)
  return sums
