# SPDX-License-Identifier: Apache-2.0
"""The sizes and the blocks of a T5."""

import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import ambient, sharding
from sira_jax.models import layers, relative, stacking

ACTIVATIONS = {
  "relu": jax.nn.relu,
  # gelu_new of the papers' code, which is the tanh approximation.
  "gelu": functools.partial(jax.nn.gelu, approximate=True),
  "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The sizes of a T5.

  Attributes:
    vocabulary_size: rows of the embedding table.
    encoder_layers: blocks of the encoder.
    decoder_layers: blocks of the decoder.
    d_model: width of the residual stream.
    heads: of each attention.
    head_dim: width of one head; heads * head_dim need not be d_model.
    d_ff: inner width of the feed-forward layer.
    activation: a name in `ACTIVATIONS`.
    gated: whether a second projection multiplies the activation.
    buckets: of relative distances, see `relative`.
    max_distance: from where on distances share a bucket.
    bias_by_layer: a relative bias in each block; else the first's serves all.
    norm_epsilon: added to the mean square in each RMSNorm.
    tied_embeddings: whether the logits use the embedding table.
    scaled_logits: whether they are multiplied by d_model ** -0.5.

  Raises:
    ValueError: an unknown activation, or buckets that cannot be.
  """

  vocabulary_size: int
  encoder_layers: int
  decoder_layers: int
  d_model: int
  heads: int
  head_dim: int
  d_ff: int
  activation: str
  gated: bool
  buckets: int
  max_distance: int
  bias_by_layer: bool
  norm_epsilon: float
  tied_embeddings: bool
  scaled_logits: bool

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"Unknown activation {self.activation!r}; there are"
        f" {', '.join(ACTIVATIONS)}."
      )
    relative.check(self.buckets, self.max_distance)


class View(NamedTuple):
  """What a stack's attention sees: slots and their relative bias."""

  positions: Int[Array, "#batch length"]
  mask: Bool[Array, "#batch length slots"]
  bias: Float[Array, "#batch heads length slots"] | None = None


class Encoded(NamedTuple):
  """What the decoder reads of the encoder; `mask` says who reads what."""

  x: Float[Array, "batch inputs d"]
  mask: Bool[Array, "batch #length inputs"]
  segments: ambient.Segments


def _projections(config, rngs, dtype):
  """q, k, v and o."""
  d, f = config.d_model, config.heads * config.head_dim
  made = {"rngs": rngs, "dtype": dtype}
  return (
    *(layers.linear(("d", "heads"), (d, f), **made) for _ in range(3)),
    layers.linear(("heads", "d"), (f, d), **made),
  )


def _by_head(x, heads):
  return x.reshape(*x.shape[:2], heads, -1)


class Attention(nnx.Module):
  """softmax(q k^T + bias) v, with no scale: T5's init has it."""

  SAME_INPUT = ("q", "k", "v")

  def __init__(
    self, config: T5Config, *, biased: bool, causal: bool, rngs, dtype
  ):
    settings = {"buckets": config.buckets, "max_distance": config.max_distance}
    self.position_bias = (
      relative.Bias(
        config.heads, causal=causal, **settings, rngs=rngs, dtype=dtype
      )
      if biased
      else None
    )
    self.q, self.k, self.v, self.o = _projections(config, rngs, dtype)
    self.heads = config.heads

  def __call__(self, x: Float[Array, "batch length d"], view: View, past):
    """Attends; `past` is a layer's (keys, values) to write to, or None."""
    queries, keys, values = (
      _by_head(project(x), self.heads) for project in (self.q, self.k, self.v)
    )
    if past is not None:
      at = (jnp.arange(x.shape[0])[:, None], view.positions)
      keys = past[0].at[at].set(keys.astype(past[0].dtype))
      values = past[1].at[at].set(values.astype(past[1].dtype))
    mixed = layers.attention(
      queries, keys, values, view.mask, bias=view.bias, scale=1.0
    )
    return self.o(mixed.reshape(*x.shape[:2], -1)), (keys, values)


class CrossAttention(nnx.Module):
  """softmax(q k^T) v, with k and v of the encoder's tokens."""

  SAME_INPUT = ("k", "v")

  def __init__(self, config: T5Config, *, rngs, dtype):
    self.q, self.k, self.v, self.o = _projections(config, rngs, dtype)
    self.heads = config.heads

  def read(self, encoded: Encoded):
    """Keys and values. The layers that make them see the encoder's tokens."""
    with ambient.SEGMENTS(encoded.segments):
      return tuple(
        _by_head(project(encoded.x), self.heads) for project in (self.k, self.v)
      )

  def __call__(self, x: Float[Array, "batch length d"], inputs, mask):
    """Attends to `inputs`, as `read` gives them."""
    queries = _by_head(self.q(x), self.heads)
    mixed = layers.attention(queries, *inputs, mask, scale=1.0)
    return self.o(mixed.reshape(*x.shape[:2], -1))


class MLP(nnx.Module):
  """y = wo(act(wi(x)))."""

  def __init__(self, config: T5Config, *, rngs, dtype):
    d, f, made = config.d_model, config.d_ff, {"rngs": rngs, "dtype": dtype}
    self.activation = config.activation
    self.wi = layers.linear(("d", "f"), (d, f), **made)
    self.wo = layers.linear(("f", "d"), (f, d), **made)

  def __call__(
    self, x: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length d"]:
    """The formula above."""
    return self.wo(ACTIVATIONS[self.activation](self.wi(x)))


class GatedMLP(nnx.Module):
  """y = wo(act(wi_0(x)) * wi_1(x)); Shazeer 2020, GEGLU."""

  SAME_INPUT = ("wi_0", "wi_1")

  def __init__(self, config: T5Config, *, rngs, dtype):
    d, f, made = config.d_model, config.d_ff, {"rngs": rngs, "dtype": dtype}
    self.activation = config.activation
    self.wi_0 = layers.linear(("d", "f"), (d, f), **made)
    self.wi_1 = layers.linear(("d", "f"), (d, f), **made)
    self.wo = layers.linear(("f", "d"), (f, d), **made)

  def __call__(
    self, x: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length d"]:
    """The formula above."""
    return self.wo(ACTIVATIONS[self.activation](self.wi_0(x)) * self.wi_1(x))


class Block(nnx.Module):
  """x + attention(norm(x)), in a decoder + cross_attention, then + mlp."""

  def __init__(
    self, config: T5Config, *, biased: bool, decoder: bool, rngs, dtype
  ):
    made = {"rngs": rngs, "dtype": dtype}
    norm = {"epsilon": config.norm_epsilon, "dtype": dtype}
    self.attention_norm = layers.RMSNorm(config.d_model, **norm)
    self.attention = Attention(config, biased=biased, causal=decoder, **made)
    if decoder:
      self.cross_attention_norm = layers.RMSNorm(config.d_model, **norm)
      self.cross_attention = CrossAttention(config, **made)
    self.mlp_norm = layers.RMSNorm(config.d_model, **norm)
    self.mlp = (GatedMLP if config.gated else MLP)(config, **made)

  def __call__(
    self,
    x: Float[Array, "batch length d"],
    view: View,
    *,
    cross=None,
    past=None,
  ):
    """The new x, and the block's keys and values as `Attention` gives them.

    Args:
      x: the residual stream.
      view: what self-attention sees.
      cross: a function of the cross-attention and its normed input.
      past: see `Attention`.
    """
    mixed, past = self.attention(self.attention_norm(x), view, past)
    x = x + mixed
    if cross is not None:
      x = x + cross(self.cross_attention, self.cross_attention_norm(x))
    x = x + self.mlp(self.mlp_norm(x))
    return sharding.constrain(x, "batch", "length", None), past


class Stack(nnx.Module):
  """The blocks of the encoder or of the decoder, and a norm."""

  def __init__(
    self, config: T5Config, *, decoder: bool, remat: bool, rngs, dtype
  ):
    count = config.decoder_layers if decoder else config.encoder_layers
    made = {"decoder": decoder, "rngs": rngs, "dtype": dtype}
    self.blocks = nnx.List(
      [
        Block(config, biased=i == 0 or config.bias_by_layer, **made)
        for i in range(count)
      ]
    )
    self.norm = layers.RMSNorm(
      config.d_model, epsilon=config.norm_epsilon, dtype=dtype
    )
    self.remat = remat

  def __call__(
    self,
    x: Float[Array, "batch length d"],
    view: View,
    slots: Int[Array, "#batch slots"],
    *,
    cross=None,
    scan: bool = False,
  ) -> Float[Array, "batch length d"]:
    """Normed hidden states.

    Args:
      x: embedded tokens.
      view: their positions, and the mask.
      slots: the positions of what is seen.
      cross: the `cross` of all blocks; None in the encoder.
      scan: run equal blocks as a loop.
    """

    def biased(block):
      table = block.attention.position_bias
      return view._replace(bias=table(view.positions, slots))

    def run(block, x, view):
      return block(x, view, cross=cross, past=None)[0]

    # A block without a bias of its own has the first's.
    shared, run = biased(self.blocks[0]), nnx.remat(run) if self.remat else run

    def one(block, x):
      own = block.attention.position_bias is not None
      return run(block, x, biased(block) if own else shared)

    return self.norm(stacking.run(one, self.blocks, x, loop=scan))

  def extend(
    self,
    x: Float[Array, "batch n d"],
    view: View,
    slots: Int[Array, "#batch slots"],
    *,
    crosses,
    pasts,
  ):
    """Normed hidden states, and every block's keys and values.

    Args:
      x: embedded tokens.
      view: their positions, and the mask.
      slots: the positions of what is seen.
      crosses: a block's `cross`, for each.
      pasts: a block's `past`, for each.
    """
    kept = []
    for block, cross, past in zip(self.blocks, crosses, pasts, strict=True):
      if block.attention.position_bias is not None:
        bias = block.attention.position_bias(view.positions, slots)
        view = view._replace(bias=bias)
      x, own = block(x, view, cross=cross, past=past)
      kept.append(own)
    return self.norm(x), kept
