# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer of the Llama family.

Parameters have Hugging Face's names as their paths, so that a rule such as
`layers.*q_proj` means the same module here and there.
"""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import ambient, sharding
from sira_jax.models import layers, stacking


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """The sizes of a decoder.

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

  Raises:
    ValueError: heads do not divide by kv_heads, or head_dim is odd.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of the tokens seen so far, one array a layer."""

  keys: tuple[Float[Array, "batch slots kv_heads head_dim"], ...]
  values: tuple[Float[Array, "batch slots kv_heads head_dim"], ...]


class Layout(NamedTuple):
  """Where the tokens stand and whom they see: the same for every block."""

  positions: Int[Array, "#batch length"]
  cos: Float[Array, "#batch length 1 half"]
  sin: Float[Array, "#batch length 1 half"]
  mask: Bool[Array, "#batch length slots"]


class Attention(nnx.Module):
  """Grouped-query self-attention with rotary positions."""

  SAME_INPUT = ("q_proj", "k_proj", "v_proj")

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype):
    self.head_dim = config.head_dim
    d, made = config.d_model, {"rngs": rngs, "dtype": dtype}
    f, kv_f = (n * config.head_dim for n in (config.heads, config.kv_heads))
    self.q_proj = layers.linear(("d", "heads"), (d, f), **made)
    self.k_proj = layers.linear(("d", "kv_heads"), (d, kv_f), **made)
    self.v_proj = layers.linear(("d", "kv_heads"), (d, kv_f), **made)
    self.o_proj = layers.linear(("heads", "d"), (f, d), **made)

  def __call__(self, x: Float[Array, "batch length d"], layout: Layout, past):
    """Attends; `past` is a layer's (keys, values) to write to, or None."""
    by_head = (*x.shape[:2], -1, self.head_dim)
    queries, keys, values = (
      project(x).reshape(by_head)
      for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    queries = layers.rotate(queries, layout.cos, layout.sin)
    keys = layers.rotate(keys, layout.cos, layout.sin)
    if past is not None:
      at = (jnp.arange(x.shape[0])[:, None], layout.positions)
      keys = past[0].at[at].set(keys.astype(past[0].dtype))
      values = past[1].at[at].set(values.astype(past[1].dtype))
    mixed = layers.attention(queries, keys, values, layout.mask)
    return self.o_proj(mixed.reshape(*x.shape[:2], -1)), (keys, values)


class MLP(nnx.Module):
  """y = down(silu(gate(x)) * up(x)); Shazeer 2020, SwiGLU."""

  SAME_INPUT = ("gate_proj", "up_proj")

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype):
    d, f, made = config.d_model, config.d_ff, {"rngs": rngs, "dtype": dtype}
    self.gate_proj = layers.linear(("d", "f"), (d, f), **made)
    self.up_proj = layers.linear(("d", "f"), (d, f), **made)
    self.down_proj = layers.linear(("f", "d"), (f, d), **made)

  def __call__(
    self, x: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length d"]:
    """The formula above."""
    return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype):
    norm = {"epsilon": config.norm_epsilon, "dtype": dtype}
    self.input_layernorm = layers.RMSNorm(config.d_model, **norm)
    self.self_attn = Attention(config, rngs=rngs, dtype=dtype)
    self.post_attention_layernorm = layers.RMSNorm(config.d_model, **norm)
    self.mlp = MLP(config, rngs=rngs, dtype=dtype)

  def __call__(
    self, x: Float[Array, "batch length d"], layout: Layout, past=None
  ):
    """The new x, and the block's keys and values as `Attention` gives them."""
    mixed, past = self.self_attn(self.input_layernorm(x), layout, past)
    x = x + mixed
    x = x + self.mlp(self.post_attention_layernorm(x))
    return sharding.constrain(x, "batch", "length", None), past


class Decoder(nnx.Module):
  """Tokens to logits, each token seeing itself and those before it.

  `dtype` is that of the parameters; the computation follows it, but for
  norms, rotary angles, softmax and logits, which are float32. `remat`
  recomputes each block in the backward pass instead of keeping its inside.
  `scan` runs blocks of one kind as a loop: less to compile, and a copy of the
  weights in each pass. On a CPU it is the slower, and compiles no sooner where
  the optimizer's many arrays take the time (docs/scale.md).

  Made under `nnx.eval_shape` it holds shapes only, for a loader to fill.
  """

  FEATURES = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_segment_ids",
    "decoder_positions",
  )

  def __init__(
    self,
    config: DecoderConfig,
    *,
    rngs: nnx.Rngs,
    dtype=jnp.float32,
    remat: bool = False,
    scan: bool = False,
  ):
    self.config = config
    self.remat = remat
    self.scan = scan
    made = {"rngs": rngs, "dtype": dtype}
    self.embed_tokens = layers.embedding(
      config.vocabulary_size, config.d_model, **made
    )
    self.layers = nnx.List(
      [Block(config, **made) for _ in range(config.layers)]
    )
    self.norm = layers.RMSNorm(
      config.d_model, epsilon=config.norm_epsilon, dtype=dtype
    )
    if not config.tied_embeddings:
      sizes = (config.d_model, config.vocabulary_size)
      self.lm_head = layers.linear(("d", "vocabulary"), sizes, **made)

  @property
  def max_length(self) -> int:
    """The longest sequence that the model was made for."""
    return self.config.max_length

  def hidden(
    self,
    decoder_input_tokens: Int[Array, "batch length"],
    *,
    decoder_target_tokens: Int[Array, "batch length"] | None = None,
    decoder_segment_ids: Int[Array, "batch length"] | None = None,
    decoder_positions: Int[Array, "batch length"] | None = None,
  ) -> Float[Array, "batch length d"]:
    """The normed hidden states after the last block.

    Segment ids say that rows are packed: 0 is padding, and a token sees only
    tokens of its own segment. Without them a row is one example, padded where
    its target is 0; without targets nothing is padding. Positions default to
    0, 1, ... along the row, which in a packed row is as good as counting
    anew, for rotary attention sees differences only.

    Raises:
      ValueError: the row is longer than the model's max_length.
    """
    length = decoder_input_tokens.shape[1]
    if decoder_positions is None:
      if length > self.max_length:
        raise ValueError(
          f"Expected rows of at most max_length={self.max_length} tokens, got "
          f"{length}. Shorten them, or pass decoder_positions if each is "
          "several shorter examples packed."
        )
      decoder_positions = jnp.arange(length)[None]
    segments = None
    if decoder_segment_ids is not None:
      segments = ambient.Segments(decoder_segment_ids, packed=True)
    elif decoder_target_tokens is not None:
      real = (decoder_target_tokens != 0).astype(jnp.int32)
      segments = ambient.Segments(real, packed=False)
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    if segments is not None:
      # Padding is a segment too: its tokens see each other and thus something.
      mask &= segments.ids[:, :, None] == segments.ids[:, None, :]
    layout = self._layout(decoder_positions, mask)
    x = layers.look_up(self.embed_tokens, decoder_input_tokens)
    with ambient.SEGMENTS(segments):
      x = self._through_blocks(x, layout)
    return self.norm(x)

  def logits(
    self, hidden: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length vocabulary"]:
    """float32 scores of every next token."""
    if not self.config.tied_embeddings:
      return self.lm_head(hidden).astype(jnp.float32)
    return layers.tied_logits(self.embed_tokens, hidden)

  def __call__(
    self, decoder_input_tokens: Int[Array, "batch length"], **features
  ) -> Float[Array, "batch length vocabulary"]:
    """`logits(hidden(...))`."""
    return self.logits(self.hidden(decoder_input_tokens, **features))

  def init_cache(self, batch: int, length: int, dtype=None) -> Cache:
    """An empty cache of `length` slots a row, in the embedding's dtype."""
    config = self.config
    shape = (batch, length, config.kv_heads, config.head_dim)
    dtype = dtype or self.embed_tokens.embedding.dtype
    keys, values = (
      tuple(jnp.zeros(shape, dtype) for _ in self.layers) for _ in range(2)
    )
    return Cache(keys, values)

  def start(
    self,
    prompts: Int[Array, "batch length"],
    lengths: Int[Array, "batch"],
    *,
    room: int,
  ) -> tuple[Float[Array, "batch 1 d"], Int[Array, "batch"], Cache]:
    """As `decoding.Cached` says: the prompt is kept, and continued."""
    batch, length = prompts.shape
    positions = jnp.broadcast_to(jnp.arange(length), prompts.shape)
    hidden, cache = self.extend(
      prompts,
      positions,
      self.init_cache(batch, length + room),
      real=positions < lengths[:, None],
    )
    ends = jnp.maximum(lengths - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, ends, axis=1), lengths, cache

  def extend(
    self,
    tokens: Int[Array, "batch n"],
    positions: Int[Array, "batch n"],
    cache: Cache,
    *,
    real: Bool[Array, "batch n"] | None = None,
  ) -> tuple[Float[Array, "batch n d"], Cache]:
    """Hidden states of tokens that follow what the cache holds.

    The token at position p is kept in slot p and sees slots 0 to p. So rows
    of different lengths are padded on the right and need no more masking: the
    row's next token overwrites a padding slot just before it would be seen.
    `real` says to layers that ask (`ambient.SEGMENTS`) which are no padding.
    """
    slots = jnp.arange(cache.keys[0].shape[1])
    layout = self._layout(positions, slots <= positions[:, :, None])
    segments = None
    if real is not None:
      segments = ambient.Segments(real.astype(jnp.int32), packed=False)
    x = layers.look_up(self.embed_tokens, tokens)
    kept = []
    with ambient.SEGMENTS(segments), ambient.DECODING(True):
      for block, *past in zip(
        self.layers, cache.keys, cache.values, strict=True
      ):
        x, past = block(x, layout, past)
        kept.append(past)
    keys, values = zip(*kept, strict=True)
    return self.norm(x), Cache(keys, values)

  def _through_blocks(self, x, layout):
    call = Block.__call__
    if self.remat:
      call = nnx.remat(call)
    if self.scan:
      return stacking.run(lambda b, x: call(b, x, layout)[0], self.layers, x)
    for block in self.layers:
      x, _ = call(block, x, layout)
    return x

  def _layout(self, positions, mask) -> Layout:
    cos, sin = layers.rotary(
      positions, self.config.head_dim, theta=self.config.rope_theta
    )
    return Layout(positions, cos, sin, mask)
