# SPDX-License-Identifier: Apache-2.0
"""How sensitive a loss is to each frozen weight, in one backward pass.

    s_W = sum over samples of || dL_sample / dW ||_F^2

The backward pass has all that a weight's gradient is made of, the layer's
inputs x and the cotangents dy of its outputs: dL / dW = x^T dy. A probe is a
number that the forward pass ignores and whose gradient is, by a rule of its
own, || x^T dy ||_F^2. So one backward pass measures every layer, and a
gradient of d x f numbers lives only until it is squared and summed.

Source: the score of LoRA-SMoE's code (Xu and Diao 2025, arXiv 2505.06272), a
sum and not a mean over a weight's entries. Theirs takes half-precision
gradients of single samples from steps that train one block at a time; ours
leaves the model alone, uses every sample for every weight, and is float32,
for the squares of small half-precision gradients are zero.
"""

from collections.abc import Callable, Iterable
import difflib
import functools
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sira_jax.adapters import surgery

Loss = Callable[[nnx.Module, Any], jax.Array]


class Probed(nnx.Linear):
  """A frozen `nnx.Linear` that measures the gradient of its weight."""

  def __call__(self, inputs, *args, **kwargs):
    """x W0 (+ bias)."""
    y = super().__call__(inputs, *args, **kwargs)
    x = inputs.astype(y.dtype)  # as the layer itself does
    return _listen(self.per_sample, y, x, self.probe[...])


def sensitivity(
  model: nnx.Module,
  loss: Loss,
  batches: Iterable[Any],
  *,
  sites: str,
  per_sample: bool = True,
) -> dict[str, float]:
  """The sum of squares of each weight's gradients over some batches.

  The model is put into evaluation mode for it, and is left as it was. One
  program is compiled for a model, loss, choice of sites and shape of batch,
  and kept for later calls.

  Args:
    model: plain, not adapted.
    loss: of a model and a batch. For `per_sample` it must be the sum of one
      loss for each row, none of which depends on another row.
    batches: what the loss takes; the first axis of a layer's inputs is their
      rows.
    sites: a regular expression that the whole path of an `nnx.Linear` must
      match.
    per_sample: sum the squares of the gradients of single rows; False squares
      the gradient of a whole batch, which is a different number.

  Returns:
    Path -> s_W, in the model's order.

  Raises:
    ValueError: no batch; `sites` matches no layer, or an adapted one; a layer
      that the loss runs several times or does not depend on; a score that is
      not finite.
  """
  paths = _sites(model, sites)
  graph, state = nnx.split(model)
  # Transfers are said, so that this runs under jax.transfer_guard.
  probes = jax.device_put({path: np.zeros(2, np.float32) for path in paths})
  totals = {}
  for batch in map(jax.device_put, batches):
    measured = _measure(
      probes, state, batch, graph=graph, loss=loss, per_sample=per_sample
    )
    for path, (squares, calls) in jax.device_get(measured).items():
      _check(path, squares, calls)
      totals[path] = totals.get(path, 0.0) + float(squares)
  if not totals:
    raise ValueError("sensitivity needs at least one batch, got none.")
  return {path: totals[path] for path in paths}


# The weights are an argument: constants of their size would be compiled in.
@functools.partial(jax.jit, static_argnames=("graph", "loss", "per_sample"))
def _measure(probes, state, batch, *, graph, loss, per_sample):
  """path -> (sum of squares, number of calls)."""

  def total(probes):
    # The probes join a copy that lives as long as this trace.
    copy = nnx.merge(graph, state, copy=True)
    copy.eval()
    layers = surgery.linears(copy)
    for path, probe in probes.items():
      layers[path].probe = nnx.Variable(probe)
      layers[path].per_sample = per_sample
      layers[path].__class__ = Probed
    return loss(copy, batch)

  return jax.grad(total)(probes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _listen(per_sample, y, x, probe):
  """y; the gradient of the probe is (|| x^T dy ||^2, 1)."""
  return y


def _forward(per_sample, y, x, probe):
  return y, x


def _backward(per_sample, x, dy):
  squares = _squares(x, dy, per_sample=per_sample)
  # x has no gradient here: it has all of its own in y.
  return dy, None, jnp.stack([squares, jnp.ones_like(squares)])


_listen.defvjp(_forward, _backward)


def _squares(x, dy, *, per_sample):
  """The sum over samples of || x^T dy ||_F^2, one sample after another."""
  samples = x.shape[0] if per_sample and x.ndim > 1 else 1

  def one(sample):
    x, dy = sample
    gradient = jnp.matmul(
      x.T,
      dy,
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    )
    return jnp.square(gradient).sum()

  x, dy = (values.reshape(samples, -1, values.shape[-1]) for values in (x, dy))
  return jax.lax.map(one, (x, dy)).sum()


def _sites(model, pattern):
  """The first path of each layer that the pattern matches."""
  try:
    match = re.compile(pattern).fullmatch
  except re.error as error:
    raise ValueError(f"sites={pattern!r} is no regex: {error}.") from None
  linears = surgery.linears(model)
  paths = {}
  for path, layer in linears.items():
    if match(path):
      paths.setdefault(id(layer), path)
  if not paths:
    near = difflib.get_close_matches(pattern, linears, n=3, cutoff=0.0)
    raise ValueError(
      f"sites={pattern!r} matches no layer. It must match a whole path; the"
      f" nearest of the model's {len(linears)} linear layers are {near}."
    )
  for path in paths.values():
    if type(linears[path]) is not nnx.Linear:
      raise ValueError(
        f"sites={pattern!r} matches {path!r}, of type"
        f" {type(linears[path]).__name__}; only plain nnx.Linear layers can be"
        " measured. Measure before adapt, or narrow the pattern."
      )
  return list(paths.values())


def _check(path, squares, calls):
  if calls != 1:
    raise ValueError(
      f"The loss must run the layer {path!r} once, on inputs whose first axis"
      f" is the batch, and depend on it; its gradient came {int(calls)} times."
      " Leave it out of sites."
    )
  if not np.isfinite(squares):
    raise ValueError(
      f"The sensitivity of {path!r} is {squares}: the loss or a gradient is not"
      " finite. Look at the loss of each batch, and try float32 weights."
    )
