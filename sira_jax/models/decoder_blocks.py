# SPDX-License-Identifier: Apache-2.0
"""The blocks of a decoder, and the sizes that they have."""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sira_jax import sharding
from sira_jax.models import attention, layers

ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """The sizes of a decoder, and what sets its family apart; Llama by default.

  Attributes:
    vocabulary_size: rows of the embedding table.
    layers: number of blocks.
    d_model: width of the residual stream.
    heads: query heads of a block.
    kv_heads: key and value heads; divides `heads`.
    head_dim: width of one head; even, for the rotary pairs.
    d_ff: inner width of the feed-forward layer.
    rope_theta: base of the rotary frequencies.
    norm_epsilon: added to the mean square in each RMSNorm.
    tied_embeddings: whether the logits use the embedding table.
    max_length: the longest sequence that the model was made for.
    rope_scaling: how the frequencies are lowered for longer sequences.
    activation: of the feed-forward layer's gate; a name in `ACTIVATIONS`.
    qkv_bias: whether queries, keys and values have biases (Qwen2).
    qk_norm: whether each head's queries and keys are normed (Qwen3, Gemma 3).
    window: how many tokens, itself included, one of a windowed block sees.
    windowed: which blocks are; none if empty (Mistral: all, Gemma: some).
    local_rope_theta: base of the windowed blocks' frequencies, which are not
      scaled, if it is another (Gemma 3).
    norm_offset: whether norms multiply by 1 + scale (Gemma).
    post_norms: whether what attention and the feed-forward layer give is
      normed, too (Gemma 2 and 3).
    embedding_scale: multiplies embeddings, rounded to their dtype (Gemma).
    attention_scale: multiplies q k^T; 1 / sqrt(head_dim) if None.
    attention_cap: scores become cap * tanh(scores / cap) (Gemma 2).
    logit_cap: the same of logits.

  Raises:
    ValueError: heads do not divide by kv_heads, head_dim is odd, an unknown
      activation, or `windowed` that is not one flag a block, with a window.
  """

  vocabulary_size: int
  layers: int
  d_model: int
  heads: int
  kv_heads: int
  head_dim: int
  d_ff: int
  rope_theta: float
  norm_epsilon: float
  tied_embeddings: bool
  max_length: int
  rope_scaling: layers.RopeScaling | None = None
  activation: str = "silu"
  qkv_bias: bool = False
  qk_norm: bool = False
  window: int | None = None
  windowed: tuple[bool, ...] = ()
  local_rope_theta: float | None = None
  norm_offset: bool = False
  post_norms: bool = False
  embedding_scale: float | None = None
  attention_scale: float | None = None
  attention_cap: float | None = None
  logit_cap: float | None = None

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(
        f"heads must be a multiple of kv_heads, got heads={self.heads} and "
        f"kv_heads={self.kv_heads}."
      )
    if self.head_dim % 2:
      raise ValueError(
        f"head_dim must be even (rotary pairs), got {self.head_dim}."
      )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation must be one of {sorted(ACTIVATIONS)}, got"
        f" {self.activation!r}."
      )
    if self.windowed and (
      len(self.windowed) != self.layers or self.window is None
    ):
      raise ValueError(
        f"windowed must have a flag for each of {self.layers} blocks, and needs"
        f" a window: got {len(self.windowed)} flags, window={self.window}."
      )


class View(NamedTuple):
  """Whom the tokens see, and how far away these are."""

  cos: Float[Array, "#batch length 1 half"]
  sin: Float[Array, "#batch length 1 half"]
  sight: attention.Sight


class Layout(NamedTuple):
  """Where the tokens stand and whom they see, in blocks of either kind."""

  positions: Int[Array, "#batch length"]
  whole: View
  windowed: View | None


class Attention(nnx.Module):
  """Grouped-query self-attention with rotary positions."""

  SAME_INPUT = ("q_proj", "k_proj", "v_proj")

  def __init__(
    self, config: DecoderConfig, *, windowed: bool, rngs: nnx.Rngs, dtype
  ):
    self.head_dim = config.head_dim
    self.windowed = windowed
    self.scale, self.cap = config.attention_scale, config.attention_cap
    d, made = config.d_model, {"rngs": rngs, "dtype": dtype}
    f, kv_f = (n * config.head_dim for n in (config.heads, config.kv_heads))
    into = {**made, "bias": config.qkv_bias}
    self.q_proj = layers.linear(("d", "heads"), (d, f), **into)
    self.k_proj = layers.linear(("d", "kv_heads"), (d, kv_f), **into)
    self.v_proj = layers.linear(("d", "kv_heads"), (d, kv_f), **into)
    self.o_proj = layers.linear(("heads", "d"), (f, d), **made)
    if config.qk_norm:
      self.q_norm, self.k_norm = (
        norm(config, dtype, width=config.head_dim) for _ in range(2)
      )

  def __call__(self, x: Float[Array, "batch length d"], layout: Layout, past):
    """Attends; `past` is a layer's (keys, values) to write to, or None."""
    view = layout.windowed if self.windowed else layout.whole
    by_head = (*x.shape[:2], -1, self.head_dim)
    queries, keys, values = (
      project(x).reshape(by_head)
      for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    if hasattr(self, "q_norm"):
      queries, keys = self.q_norm(queries), self.k_norm(keys)
    queries = layers.rotate(queries, view.cos, view.sin)
    keys = layers.rotate(keys, view.cos, view.sin)
    if past is not None:
      at = (jnp.arange(x.shape[0])[:, None], layout.positions)
      keys = past[0].at[at].set(keys.astype(past[0].dtype))
      values = past[1].at[at].set(values.astype(past[1].dtype))
    mixed = attention.attend(
      queries, keys, values, view.sight, scale=self.scale, cap=self.cap
    )
    return self.o_proj(mixed.reshape(*x.shape[:2], -1)), (keys, values)


class MLP(nnx.Module):
  """y = down(act(gate(x)) * up(x)); Shazeer 2020, SwiGLU and GEGLU."""

  SAME_INPUT = ("gate_proj", "up_proj")

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype):
    d, f, made = config.d_model, config.d_ff, {"rngs": rngs, "dtype": dtype}
    self.activation = config.activation
    self.gate_proj = layers.linear(("d", "f"), (d, f), **made)
    self.up_proj = layers.linear(("d", "f"), (d, f), **made)
    self.down_proj = layers.linear(("f", "d"), (f, d), **made)

  def __call__(
    self, x: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length d"]:
    """The formula above."""
    act = ACTIVATIONS[self.activation]
    return self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  With `post_norms` it is x + norm(attention(norm(x))), and so on. Names are
  Hugging Face's: `post_attention_layernorm` is what norms the attention's
  output there, and the feed-forward layer's input otherwise.
  """

  def __init__(
    self, config: DecoderConfig, *, windowed: bool, rngs: nnx.Rngs, dtype
  ):
    made = {"rngs": rngs, "dtype": dtype}
    self.input_layernorm = norm(config, dtype)
    self.self_attn = Attention(config, windowed=windowed, **made)
    self.post_attention_layernorm = norm(config, dtype)
    if config.post_norms:
      self.pre_feedforward_layernorm = norm(config, dtype)
      self.post_feedforward_layernorm = norm(config, dtype)
    self.mlp = MLP(config, **made)

  def __call__(
    self, x: Float[Array, "batch length d"], layout: Layout, past=None
  ):
    """The new x, and the block's keys and values as `Attention` gives them."""
    mixed, past = self.self_attn(self.input_layernorm(x), layout, past)
    if hasattr(self, "pre_feedforward_layernorm"):
      x = x + self.post_attention_layernorm(mixed)
      fed = self.mlp(self.pre_feedforward_layernorm(x))
      x = x + self.post_feedforward_layernorm(fed)
    else:
      x = x + mixed
      x = x + self.mlp(self.post_attention_layernorm(x))
    return sharding.constrain(x, "batch", "length", None), past


def norm(
  config: DecoderConfig, dtype, *, width: int | None = None
) -> layers.RMSNorm:
  """An RMSNorm of the family's kind; of the residual stream, if no width."""
  return layers.RMSNorm(
    width or config.d_model,
    epsilon=config.norm_epsilon,
    dtype=dtype,
    offset=config.norm_offset,
    axis="d" if width is None else None,
  )
