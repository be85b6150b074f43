# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy that computes logits only where there is a target."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logits = Callable[[Float[Array, "... d"]], Float[Array, "... vocabulary"]]


def cross_entropy(
  logits: Logits,
  hidden: Float[Array, "batch length d"],
  *,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """The weighted sum of -log p(target), and of right first guesses.

  Computes every logit, [batch length vocabulary] of them.

  Args:
    logits: the model's last layer.
    hidden: what it takes.
    targets: token ids.
    weights: zero where there is no target.
  """
  scores = logits(hidden).astype(jnp.float32)
  picked = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
  losses = jax.nn.logsumexp(scores, axis=-1) - picked
  right = scores.argmax(axis=-1) == targets
  return (losses * weights).sum(), (right * weights).sum()


def cross_entropy_at_targets(
  logits: Logits,
  hidden: Float[Array, "batch length d"],
  *,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  chunk: int = 16,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """`cross_entropy` at the targets alone, for a last layer that is frozen.

  A language model's vocabulary is large and its targets are few: positions of
  weight zero get no logits, and no more than [batch chunk vocabulary] of them
  exist at a time. Each row's targets are moved to its front, the rows are
  walked in steps of `chunk` positions, and steps without a target are skipped.
  The gradient in `hidden` is computed on the way, so that the backward pass
  needs no logits at all.

  Only `hidden` has a gradient: nothing that `logits` holds may be trained.

  Args:
    logits: the model's last layer.
    hidden: what it takes.
    targets: token ids.
    weights: zero where there is no target.
    chunk: positions of each row to take at a time.
  """

  def forward(hidden):
    return _walk(logits, hidden, targets, weights, chunk)

  @jax.custom_vjp
  def sums(hidden):
    return forward(hidden)[0]

  def backward(gradient, slopes):
    # The second sum counts right guesses and has no slope.
    return ((slopes[0] * gradient).astype(gradient.dtype),)

  sums.defvjp(forward, backward)
  return sums(hidden)


def _walk(logits, hidden, targets, weights, chunk):
  """Both sums, and the gradient of the first in `hidden`."""
  order = jnp.argsort(weights == 0, axis=1, stable=True)
  length = targets.shape[1]
  steps = -(-length // chunk)

  def split(values):
    index = order.reshape(order.shape + (1,) * (values.ndim - 2))
    front = jnp.take_along_axis(values, index, axis=1)
    pad = [(0, 0), (0, steps * chunk - length)] + [(0, 0)] * (values.ndim - 2)
    front = jnp.pad(front, pad)
    return front.reshape(-1, steps, chunk, *front.shape[2:]).swapaxes(0, 1)

  def differentiate(hidden, targets, weights):
    loss = functools.partial(
      cross_entropy, logits, targets=targets, weights=weights
    )
    (total, right), pull = jax.vjp(loss, hidden)
    return (total, right), pull((jnp.ones_like(total), jnp.zeros_like(right)))

  def nothing(hidden, *_):
    zero = jnp.zeros((), jnp.float32)
    return (zero, zero), (jnp.zeros_like(hidden),)

  def step(sums, part):
    values, (gradient,) = jax.lax.cond(
      (part[2] != 0).any(), differentiate, nothing, *part
    )
    return jax.tree.map(jnp.add, sums, values), gradient

  zero = jnp.zeros((), jnp.float32)
  parts = (split(hidden), split(targets), split(weights))
  sums, gradients = jax.lax.scan(step, (zero, zero), parts)
  gradients = gradients.swapaxes(0, 1).reshape(
    hidden.shape[0], -1, hidden.shape[2]
  )
  back = jnp.argsort(order, axis=1)[..., None]
  return sums, jnp.take_along_axis(gradients[:, :length], back, axis=1)
