# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer: Llama, Mistral, Qwen and Gemma.

Parameters have Hugging Face's names as their paths, so that a rule such as
`layers.*q_proj` means the same module here and there.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import ambient
from sira_jax.models import attention, decoder_blocks, layers, stacking
from sira_jax.models.decoder_blocks import DecoderConfig, Layout, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of the tokens seen so far, one array a layer."""

  keys: tuple[Float[Array, "batch slots kv_heads head_dim"], ...]
  values: tuple[Float[Array, "batch slots kv_heads head_dim"], ...]


class Decoder(nnx.Module):
  """Tokens to logits, each token seeing itself and those before it.

  `dtype` is that of the parameters; the computation follows it, but for
  norms, rotary angles, softmax and logits, which are float32. `remat`
  recomputes each block in the backward pass instead of keeping its inside.
  `scan` runs blocks of one kind as a loop: less to compile, and a copy of the
  weights in each pass. On a CPU it is the slower, and compiles no sooner where
  the optimizer's many arrays take the time (docs/scale.md).

  With `prefix` it is a prefix LM (Raffel et al. 2020, section 3.2.1): tokens of
  a prompt see each other in both directions, and what follows is causal.

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
    prefix: bool = False,
  ):
    self.config = config
    self.prefix = prefix
    if prefix:
      self.FEATURES = (*self.FEATURES, "decoder_causal_attention")
    self.remat = remat
    self.scan = scan
    made = {"rngs": rngs, "dtype": dtype}
    self.embed_tokens = layers.embedding(
      config.vocabulary_size, config.d_model, **made
    )
    windowed = config.windowed or (False,) * config.layers
    self.layers = nnx.List(
      [decoder_blocks.Block(config, windowed=w, **made) for w in windowed]
    )
    self.norm = decoder_blocks.norm(config, dtype)
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
    decoder_causal_attention: Int[Array, "batch length"] | None = None,
  ) -> Float[Array, "batch length d"]:
    """The normed hidden states after the last block.

    Segment ids say that rows are packed: 0 is padding, and a token sees only
    tokens of its own segment. Without them a row is one example, padded where
    its target is 0; without targets nothing is padding. Positions default to
    0, 1, ... along the row, which in a packed row is as good as counting
    anew, for rotary attention sees differences only.

    A prefix LM is told by `decoder_causal_attention`, which is seqio's name of
    it, where a prompt is: 1 from the 0 before it to its last token, else 0.

    Raises:
      ValueError: the row is longer than the model's max_length; or a prefix LM
        is not told its prompts, or another decoder is.
    """
    if (decoder_causal_attention is not None) != self.prefix:
      raise ValueError(
        "Expected decoder_causal_attention of a prefix LM, and of no other"
        f" decoder: this one has prefix={self.prefix}."
      )
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
    # Padding is a segment too: its tokens see each other and thus something.
    sight = attention.Sight(
      None if segments is None else segments.ids,
      prefix=decoder_causal_attention > 0 if self.prefix else None,
    )
    layout = self._layout(decoder_positions, sight)
    x = self._embedded(decoder_input_tokens)
    with ambient.SEGMENTS(segments):
      x = self._through_blocks(x, layout)
    return self.norm(x)

  def logits(
    self, hidden: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length vocabulary"]:
    """float32 scores of every next token."""
    if self.config.tied_embeddings:
      scores = layers.tied_logits(self.embed_tokens, hidden)
    else:
      scores = self.lm_head(hidden).astype(jnp.float32)
    return layers.capped(scores, self.config.logit_cap)

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
    real = positions < lengths[:, None]
    hidden, cache = self.extend(
      prompts,
      positions,
      self.init_cache(batch, length + room),
      real=real,
      prefix=real if self.prefix else None,
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
    prefix: Bool[Array, "batch n"] | None = None,
  ) -> tuple[Float[Array, "batch n d"], Cache]:
    """Hidden states of tokens that follow what the cache holds.

    The token at position p is kept in slot p and sees slots 0 to p. So rows
    of different lengths are padded on the right and need no more masking: the
    row's next token overwrites a padding slot just before it would be seen.
    `real` says to layers that ask (`ambient.SEGMENTS`) which are no padding.
    `prefix` are tokens in the first slots that see each other.
    """
    layout = self._layout(
      positions, attention.Sight(at=positions, prefix=prefix)
    )
    segments = None
    if real is not None:
      segments = ambient.Segments(real.astype(jnp.int32), packed=False)
    x = self._embedded(tokens)
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
    call = decoder_blocks.Block.__call__
    if self.remat:
      call = nnx.remat(call)
    return stacking.run(
      lambda block, x: call(block, x, layout)[0],
      self.layers,
      x,
      loop=self.scan,
    )

  def _embedded(self, tokens):
    x = layers.look_up(self.embed_tokens, tokens)
    if self.config.embedding_scale is None:
      return x
    return x * jnp.asarray(self.config.embedding_scale, x.dtype)

  def _layout(self, positions, sight) -> Layout:
    """Of whom tokens see in blocks without a window."""
    config = self.config

    def view(sight, theta, scaling):
      angles = layers.rotary(
        positions, config.head_dim, theta=theta, scaling=scaling
      )
      return View(*angles, sight)

    whole, windowed = view(sight, config.rope_theta, config.rope_scaling), None
    if config.windowed:
      near = dataclasses.replace(sight, window=config.window)
      windowed = whole._replace(sight=near)
      if config.local_rope_theta is not None:
        windowed = view(near, config.local_rope_theta, None)
    return Layout(positions, whole, windowed)
