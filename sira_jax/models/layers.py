# SPDX-License-Identifier: Apache-2.0
"""What transformers are made of: projections, norm, rotary, attention."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import sharding


def linear(
  axes: tuple[str, str],
  sizes: tuple[int, int],
  *,
  rngs: nnx.Rngs,
  dtype,
  bias: bool = False,
) -> nnx.Linear:
  """Exactly an nnx.Linear, for `adapt` finds its sites by that type."""
  return nnx.Linear(
    *sizes,
    use_bias=bias,
    param_dtype=dtype,
    kernel_metadata={"axes": axes},
    bias_metadata={"axes": axes[1:]},
    rngs=rngs,
  )


def embedding(
  vocabulary_size: int, d: int, *, rngs: nnx.Rngs, dtype
) -> nnx.Embed:
  """A table with a row for each token; `look_up` reads it."""
  return nnx.Embed(
    vocabulary_size,
    d,
    param_dtype=dtype,
    embedding_metadata={"axes": ("vocabulary", "d")},
    rngs=rngs,
  )


def small_embedding(rows: int, d: int, *, rngs: nnx.Rngs, dtype) -> nnx.Embed:
  """As `embedding`, with rows so few that each device has all of them."""
  return nnx.Embed(
    rows,
    d,
    param_dtype=dtype,
    embedding_metadata={"axes": (None, "d")},
    rngs=rngs,
  )


def look_up(
  table: nnx.Embed,
  tokens: Int[Array, "batch length"],
  *,
  over: str | None = "vocabulary",
) -> Float[Array, "batch length d"]:
  """The tokens' rows; `over` is the word of the table's rows."""
  # Whole in d, as every weight becomes where it is used. Looked up in slices
  # of d instead, XLA would make the whole batch's on each device.
  rows = sharding.constrain(table.embedding[...], over, None)
  x = jnp.take(rows, tokens, axis=0)
  return sharding.constrain(x, "batch", "length", None)


def tied_logits(
  table: nnx.Embed, hidden: Float[Array, "batch length d"]
) -> Float[Array, "batch length vocabulary"]:
  """float32 products with every token's row."""
  return _wide_products(hidden, table.embedding[...])


@jax.custom_vjp
def _wide_products(x, rows):
  """x rows^T in float32.

  Its gradients are products of what comes back in x's dtype, as those of every
  other layer are. JAX's own would be of float32, with the whole table converted
  to it, which takes accelerators several times as long.
  """
  return jnp.einsum("bld,vd->blv", x, rows, preferred_element_type=jnp.float32)


def _wide_products_back(kept, slope):
  x, rows = kept
  # float16 would lose what is small of it.
  if x.dtype == rows.dtype == jnp.bfloat16:
    slope = slope.astype(x.dtype)
  to_x = jnp.einsum("blv,vd->bld", slope, rows).astype(x.dtype)
  to_rows = jnp.einsum("blv,bld->vd", slope, x).astype(rows.dtype)
  return to_x, to_rows


_wide_products.defvjp(
  lambda x, rows: (_wide_products(x, rows), (x, rows)), _wide_products_back
)


class RMSNorm(nnx.Module):
  """y = scale * x / sqrt(mean(x^2) + epsilon), computed in float32.

  With `offset` it is 1 + scale instead, as in Gemma.

  Zhang and Sennrich 2019, eq. 4; epsilon inside the root as in Llama.
  """

  def __init__(
    self,
    d: int,
    *,
    epsilon: float,
    dtype: jnp.dtype,
    offset: bool = False,
    axis: str | None = "d",
  ):
    self.epsilon = epsilon
    self.offset = offset
    start = jnp.zeros if offset else jnp.ones
    self.scale = nnx.Param(start((d,), dtype), axes=(axis,))

  def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """The formula above, in the dtype of x."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
    scale = self.scale[...].astype(jnp.float32)
    scale = 1 + scale if self.offset else scale
    return (normed * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
  """y = scale * (x - mean(x)) / sqrt(var(x) + epsilon) + bias, in float32.

  Ba et al. 2016, eq. 4.
  """

  def __init__(self, d: int, *, epsilon: float, dtype: jnp.dtype):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones((d,), dtype), axes=("d",))
    self.bias = nnx.Param(jnp.zeros((d,), dtype), axes=("d",))

  def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """The formula above, in the dtype of x."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide).mean(axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(variance + self.epsilon)
    scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
    return (normed * scale + bias).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Lower rotary frequencies, for sequences longer than first trained on.

  All are divided by `factor`; or, with `low` and `high`, of waves longer than
  original_length / low those are, of waves shorter than original_length / high
  none is, and in between the divisor's inverse goes linearly, in turns per
  original_length, from one to the other (Llama 3.1).

  Attributes:
    factor: the divisor.
    low: turns within the original length, below which it is divided by.
    high: turns, above which nothing changes; greater than `low`.
    original_length: in tokens.
  """

  factor: float
  low: float | None = None
  high: float | None = None
  original_length: int | None = None

  def __post_init__(self):
    bands = (self.low, self.high, self.original_length)
    if None in bands and any(bands):
      raise ValueError(f"low, high and original_length go together: {bands}.")
    if self.low is not None and not self.low < self.high:
      raise ValueError(f"low must be below high, got {self.low}, {self.high}.")

  def __call__(self, frequencies: Float[Array, "half"]) -> Float[Array, "half"]:
    """The new frequencies, in radians per token."""
    if self.low is None:
      return frequencies / self.factor
    turns = self.original_length * frequencies / (2 * jnp.pi)
    kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return frequencies * (kept + (1 - kept) / self.factor)


def rotary(
  positions: Int[Array, "batch length"],
  head_dim: int,
  *,
  theta: float,
  scaling: RopeScaling | None = None,
) -> tuple[
  Float[Array, "batch length 1 half"], Float[Array, "batch length 1 half"]
]:
  """Cosines and sines of position * theta^(-2i / head_dim), 2i < head_dim.

  float32, with an axis for heads; `rotate` takes them. Su et al. 2021.
  `scaling` changes the frequencies, which positions are multiplied by.
  """
  exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  frequencies = theta**-exponents
  if scaling is not None:
    frequencies = scaling(frequencies)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, "batch length heads head_dim"],
  cos: Float[Array, "batch length 1 half"],
  sin: Float[Array, "batch length 1 half"],
) -> Float[Array, "batch length heads head_dim"]:
  """Turns the pair (x_i, x_{i + head_dim / 2}) by the angle of its position.

  Hugging Face's pairing of dimensions. GGUF's llama files pair neighbours
  (x_2i, x_{2i + 1}) instead; `formats.gguf` reorders their rows.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def capped(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
  """cap * tanh(x / cap); x without a cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def attention(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch slots kv_heads head_dim"],
  values: Float[Array, "batch slots kv_heads head_dim"],
  mask: Bool[Array, "#batch #length slots"],
  *,
  bias: Float[Array, "#batch heads length slots"] | None = None,
  scale: float | None = None,
  cap: float | None = None,
) -> Float[Array, "batch length heads head_dim"]:
  """softmax(scale q k^T + bias) v over the slots where the mask is True.

  The scale is 1 / sqrt(head_dim) unless given; `cap` is `capped`'s. Query head
  h reads key head h // (heads / kv_heads) (grouped-query attention, Ainslie et
  al. 2023). Softmax in float32; a query whose mask is False everywhere averages
  all slots, so it is finite.
  """
  batch, length, heads, head_dim = queries.shape
  slots, kv_heads = keys.shape[1:3]
  group = heads // kv_heads
  # The queries of one group make one tall matrix against their shared keys:
  # a third less time than jax.nn.dot_product_attention on a CPU (8 x 128
  # tokens, 9 heads on 3, forward and backward), with the same numbers.
  tall = queries.reshape(batch, length, kv_heads, group, head_dim)
  tall = tall.transpose(0, 2, 3, 1, 4)
  tall = tall.reshape(batch, kv_heads, group * length, head_dim)
  scores = jnp.einsum(
    "bkqh,bskh->bkqs", tall, keys, preferred_element_type=jnp.float32
  )
  scores = scores.reshape(batch, kv_heads, group, length, slots)
  scores = scores * (head_dim**-0.5 if scale is None else scale)
  scores = capped(scores, cap)
  if bias is not None:
    scores += bias.reshape(-1, kv_heads, group, length, slots)
  # The most negative finite number: -inf would make an empty row NaN.
  lowest = jnp.finfo(jnp.float32).min
  scores = jnp.where(mask[:, None, None], scores, lowest)
  weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  weights = weights.reshape(batch, kv_heads, group * length, slots)
  mixed = jnp.einsum("bkqs,bskh->bkqh", weights, values)
  mixed = mixed.reshape(batch, kv_heads, group, length, head_dim)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape)
