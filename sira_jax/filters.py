# SPDX-License-Identifier: Apache-2.0
"""Which next tokens may be drawn, and how likely: temperature, top k, top p."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def check(
  *, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> None:
  """Checks what `filtered` is given.

  Raises:
    ValueError: a temperature that is not positive, a top_k below 1, or a top_p
      that is not above 0 and at most 1.
  """
  if not 0 < temperature < float("inf"):
    raise ValueError(
      f"Expected a temperature above 0, got {temperature}: towards 0, greedy"
      " decoding."
    )
  if top_k is not None and top_k < 1:
    raise ValueError(f"Expected top_k of at least 1, got {top_k}.")
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"Expected top_p above 0 and at most 1, got {top_p}.")


def filtered(
  logits: Float[Array, "*batch vocabulary"],
  *,
  temperature: float | Float[Array, ""],
  top_k: int | Int[Array, ""] | None = None,
  top_p: float | Float[Array, ""] | None = None,
) -> Float[Array, "*batch vocabulary"]:
  """Logits of the distribution to draw from; -inf where nothing is drawn.

      l      logits / temperature
      top_k  keeps l_i >= the k-th largest: all of equals at the edge
      top_p  keeps, of what is left, token i of the descending order where
             p_1 + ... + p_(i-1) < top_p, for p = softmax(l): the fewest tokens
             that reach top_p. Of equals, the lower id comes first.

  None leaves a filter out; a top_k beyond the vocabulary keeps all. The order
  and the definitions are those of Hugging Face's logits warpers; top p is
  nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751), top k Fan et al.
  2018 (arXiv 1805.04833).
  """
  scores = logits / temperature
  if top_k is None and top_p is None:
    return scores
  order = jnp.argsort(scores, axis=-1, stable=True, descending=True)
  ranked = jnp.take_along_axis(scores, order, axis=-1)
  if top_k is not None:
    last = jnp.minimum(top_k, scores.shape[-1]) - 1
    edge = jnp.take(ranked, last, axis=-1)[..., None]
    ranked = jnp.where(ranked >= edge, ranked, -jnp.inf)
  if top_p is not None:
    p = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    ranked = jnp.where(before < top_p, ranked, -jnp.inf)
  return jnp.put_along_axis(scores, order, ranked, axis=-1, inplace=False)
