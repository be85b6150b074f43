# SPDX-License-Identifier: Apache-2.0
"""The blocks of an encoder, and the sizes that they have."""

import dataclasses
import functools

from flax import nnx
import jax
from jaxtyping import Array, Bool, Float

from sira_jax import sharding
from sira_jax.models import layers

ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The sizes of an encoder, and what sets its family apart.

  Attributes:
    family: "bert" or "roberta", which name a checkpoint's tensors differently.
    vocabulary_size: rows of the embedding table.
    layers: number of blocks.
    d_model: width of the residual stream; a multiple of `heads`.
    heads: of each attention.
    d_ff: inner width of the feed-forward layer.
    activation: a name in `ACTIVATIONS`.
    norm_epsilon: added to the variance in each LayerNorm.
    positions: rows of the table of positions.
    first_position: the row of a text's first token; RoBERTa's tables have rows
      of no use before it.
    types: rows of the table of token types.
    padding: the token that pads rows.
    pooler: whether there is one.
    labels: outputs of the checkpoint's own head; None if it has none.

  Raises:
    ValueError: an unknown activation, d_model that heads do not divide, no
      position, or a head without a pooler.
  """

  family: str
  vocabulary_size: int
  layers: int
  d_model: int
  heads: int
  d_ff: int
  activation: str
  norm_epsilon: float
  positions: int
  first_position: int
  types: int
  padding: int
  pooler: bool
  labels: int | None = None

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"Unknown activation {self.activation!r}; there are"
        f" {', '.join(ACTIVATIONS)}."
      )
    if self.d_model % self.heads:
      raise ValueError(
        f"d_model must be a multiple of heads, got d_model={self.d_model} and"
        f" heads={self.heads}."
      )
    if self.first_position >= self.positions:
      raise ValueError(
        f"Expected more than {self.first_position} positions, as the first is"
        f" row {self.first_position}; got {self.positions}."
      )
    if self.labels is not None and not self.pooler:
      raise ValueError("A checkpoint's head reads its pooler, got none.")


def norm(config: EncoderConfig, dtype) -> layers.LayerNorm:
  """One over the residual stream."""
  return layers.LayerNorm(
    config.d_model, epsilon=config.norm_epsilon, dtype=dtype
  )


class Attention(nnx.Module):
  """softmax(q k^T / sqrt(head_dim)) v, in both directions."""

  SAME_INPUT = ("q", "k", "v")

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs, dtype):
    d, made = config.d_model, {"rngs": rngs, "dtype": dtype, "bias": True}
    self.heads = config.heads
    self.q, self.k, self.v = (
      layers.linear(("d", "heads"), (d, d), **made) for _ in range(3)
    )
    self.o = layers.linear(("heads", "d"), (d, d), **made)

  def __call__(
    self,
    x: Float[Array, "batch length d"],
    mask: Bool[Array, "batch length length"],
  ) -> Float[Array, "batch length d"]:
    """Attends where the mask is True."""
    by_head = (*x.shape[:2], self.heads, -1)
    mixed = layers.attention(
      *(project(x).reshape(by_head) for project in (self.q, self.k, self.v)),
      mask,
    )
    return self.o(mixed.reshape(x.shape))


class MLP(nnx.Module):
  """y = wo(act(wi(x)))."""

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs, dtype):
    d, f = config.d_model, config.d_ff
    made = {"rngs": rngs, "dtype": dtype, "bias": True}
    self.activation = config.activation
    self.wi = layers.linear(("d", "f"), (d, f), **made)
    self.wo = layers.linear(("f", "d"), (f, d), **made)

  def __call__(
    self, x: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length d"]:
    """The formula above."""
    return self.wo(ACTIVATIONS[self.activation](self.wi(x)))


class Block(nnx.Module):
  """x = attention_norm(x + attention(x)); then mlp_norm(x + mlp(x))."""

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs, dtype):
    made = {"rngs": rngs, "dtype": dtype}
    self.attention = Attention(config, **made)
    self.attention_norm = norm(config, dtype)
    self.mlp = MLP(config, **made)
    self.mlp_norm = norm(config, dtype)

  def __call__(
    self,
    x: Float[Array, "batch length d"],
    mask: Bool[Array, "batch length length"],
  ) -> Float[Array, "batch length d"]:
    """The formula above: norms after the sums, as in the first transformer."""
    x = self.attention_norm(x + self.attention(x, mask))
    x = self.mlp_norm(x + self.mlp(x))
    return sharding.constrain(x, "batch", "length", None)
