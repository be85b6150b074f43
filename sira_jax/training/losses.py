# SPDX-License-Identifier: Apache-2.0
"""Losses that compute logits only where there is a target."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sira_jax import sharding

Logits = Callable[[Float[Array, "... d"]], Float[Array, "... vocabulary"]]

# Positions at a time on a CPU: few, so that those without a target are skipped.
_CPU_CHUNK = 16
# Logits of a device at a time elsewhere: many, for each time the whole last
# layer is read, and gathered where it is divided.
_LOGITS = 2**26


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


def squared_error(
  logits: Logits,
  hidden: Float[Array, "batch texts d"],
  *,
  targets: Float[Array, "batch texts"],
  weights: Float[Array, "batch texts"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """The weighted sums of (number - target)^2, and of |number - target|.

  Args:
    logits: the model's head, of one output.
    hidden: what it takes.
    targets: numbers.
    weights: zero where there is no target.
  """
  errors = logits(hidden).astype(jnp.float32)[..., 0] - targets
  # Where there is no target there may be anything, and 0 * inf is NaN.
  errors = jnp.where(weights == 0, 0.0, errors)
  return (jnp.square(errors) * weights).sum(), (jnp.abs(errors) * weights).sum()


def cross_entropy_at_targets(
  logits: Logits,
  hidden: Float[Array, "batch length d"],
  *,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  chunk: int | None = None,
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
    chunk: positions of each row to take at a time; None for what suits the
      devices.
  """
  loss = functools.partial(cross_entropy, logits)
  chunk = chunk or _chunk(logits, hidden)
  return _at_targets(loss, (hidden,), chunk, targets=targets, weights=weights)


def consistency(
  logits: Logits,
  hidden_a: Float[Array, "batch length d"],
  hidden_b: Float[Array, "batch length d"],
  *,
  weights: Float[Array, "batch length"],
) -> Float[Array, ""]:
  """How far two passes disagree: a weighted sum over positions of

      1/2 [ KL(sg(p_b) || p_a) + KL(sg(p_a) || p_b) ]

  p = softmax(logits), in float32; sg stops the gradient, so that each pass is
  drawn to what the other says.
  Computes every logit, twice [batch length vocabulary] of them.

  Source: AdaMix, Wang et al. 2022 (arXiv 2205.12410); the stopped gradients
  are those of the authors' code.

  Args:
    logits: the model's last layer.
    hidden_a: what it takes, of one pass.
    hidden_b: of the other.
    weights: zero where there is no target.
  """
  log_a, log_b = (
    jax.nn.log_softmax(logits(hidden).astype(jnp.float32))
    for hidden in (hidden_a, hidden_b)
  )

  def divergence(log_p, log_q):
    log_p = jax.lax.stop_gradient(log_p)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)

  both = divergence(log_b, log_a) + divergence(log_a, log_b)
  return (both * weights).sum() / 2


def consistency_at_targets(
  logits: Logits,
  hidden_a: Float[Array, "batch length d"],
  hidden_b: Float[Array, "batch length d"],
  *,
  weights: Float[Array, "batch length"],
  chunk: int | None = None,
) -> Float[Array, ""]:
  """`consistency` at the targets alone, for a last layer that is frozen.

  What `cross_entropy_at_targets` is to `cross_entropy`, with as many logits of
  each pass at a time. Only the two hiddens have a gradient.

  Args:
    logits: the model's last layer.
    hidden_a: what it takes, of one pass.
    hidden_b: of the other.
    weights: zero where there is no target.
    chunk: positions of each row to take at a time; None for what suits the
      devices.
  """
  chunk = chunk or _chunk(logits, hidden_a)

  def loss(hidden_a, hidden_b, weights):
    return consistency(logits, hidden_a, hidden_b, weights=weights), ()

  total, _ = _at_targets(loss, (hidden_a, hidden_b), chunk, weights=weights)
  return total


def _chunk(logits, hidden) -> int:
  """How many positions of each row to take at a time."""
  rows, length, d = hidden.shape
  if sharding.platform() == "cpu":
    return min(_CPU_CHUNK, length)
  one = jax.ShapeDtypeStruct((1, 1, d), hidden.dtype)
  vocabulary = jax.eval_shape(logits, one).shape[-1]
  own = -(-rows // sharding.places())
  most = max(1, _LOGITS // (own * vocabulary))
  # Matrix units take whole tiles of positions: 65 of a row cost more than 64.
  if most >= length:
    return length
  return most if most < 8 else most - most % 8


def _at_targets(loss, hiddens, chunk, **given):
  """The sums of `loss(*hiddens, **given)`, from the chunks with a target.

  The first of the sums has a slope, in `hiddens`; what is `given` has none.
  """

  def forward(hiddens):
    return _walk(loss, hiddens, given, chunk)

  @jax.custom_vjp
  def sums(hiddens):
    return forward(hiddens)[0]

  def backward(gradients, slopes):
    scaled = lambda x: (slopes[0] * x).astype(x.dtype)  # noqa: E731
    return (jax.tree.map(scaled, gradients),)

  sums.defvjp(forward, backward)
  return sums(hiddens)


def _walk(loss, hiddens, given, chunk):
  """All sums of `loss`, and the gradients of the first in `hiddens`."""
  order = jnp.argsort(given["weights"] == 0, axis=1, stable=True)
  batch, length = order.shape
  steps = -(-length // chunk)

  def split(values):
    index = order.reshape(order.shape + (1,) * (values.ndim - 2))
    front = jnp.take_along_axis(values, index, axis=1)
    pad = [(0, 0), (0, steps * chunk - length)] + [(0, 0)] * (values.ndim - 2)
    front = jnp.pad(front, pad)
    return front.reshape(-1, steps, chunk, *front.shape[2:]).swapaxes(0, 1)

  def differentiate(hiddens, given):
    return jax.value_and_grad(
      lambda hiddens: loss(*hiddens, **given), has_aux=True
    )(hiddens)

  def nothing(*part):
    shapes = jax.eval_shape(differentiate, *part)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def step(sums, part):
    some = (part[1]["weights"] != 0).any()
    values, gradients = jax.lax.cond(some, differentiate, nothing, *part)
    return jax.tree.map(jnp.add, sums, values), gradients

  def restore(gradients):
    gradients = gradients.swapaxes(0, 1).reshape(batch, -1, gradients.shape[-1])
    return jnp.take_along_axis(gradients[:, :length], back, axis=1)

  parts = jax.tree.map(split, (hiddens, given))
  zeros, _ = nothing(*jax.tree.map(lambda x: x[0], parts))
  sums, gradients = jax.lax.scan(step, zeros, parts)
  back = jnp.argsort(order, axis=1)[..., None]
  return sums, jax.tree.map(restore, gradients)
