# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder transformer of the T5 family.

    T5 1.0               ReLU, tied embeddings, scaled logits
    T5 1.1, Flan, mT5    gated GELU, a last layer of its own
    ByT5                 as T5 1.1, with more encoder than decoder blocks
    umT5                 as mT5, with a relative bias in each block

Paths are Hugging Face's in short:

    shared  lm_head  {encoder,decoder}.norm  {encoder,decoder}.blocks.N.
      attention.{q,k,v,o}           attention_norm        .position_bias
      cross_attention.{q,k,v,o}     cross_attention_norm  (of the decoder)
      mlp.{wi,wo} or {wi_0,wi_1,wo} mlp_norm

Source: Raffel et al. 2020 (arXiv 1910.10683) and its released T5 1.1; Xue et
al. 2021 (mT5), 2022 (ByT5); Chung et al. 2023 (umT5). There is no dropout.
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import ambient
from sira_jax.models import layers
from sira_jax.models.t5_blocks import Encoded, Stack, T5Config, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """What decoding remembers: one array a layer, and whom the decoder sees."""

  keys: tuple[Float[Array, "batch slots heads head_dim"], ...]
  values: tuple[Float[Array, "batch slots heads head_dim"], ...]
  inputs: tuple[tuple[Float[Array, "batch inputs heads head_dim"], ...], ...]
  mask: Bool[Array, "batch 1 inputs"]


class T5(nnx.Module):
  """Tokens to logits of what follows: the encoder reads, the decoder writes.

  `dtype` is that of the parameters; the computation follows it, but for
  norms, biases, softmax and logits, which are float32. `remat` recomputes each
  block in the backward pass instead of keeping its inside. `scan` runs equal
  blocks as a loop; see `stacking`.

  Made under `nnx.eval_shape` it holds shapes only, for a loader to fill.
  """

  # Without positions, which say nothing that segments do not: see `hidden`.
  FEATURES = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "encoder_segment_ids",
    "decoder_segment_ids",
  )

  def __init__(
    self,
    config: T5Config,
    *,
    rngs: nnx.Rngs,
    dtype=jnp.float32,
    remat: bool = False,
    scan: bool = False,
  ):
    self.config = config
    self.scan = scan
    made = {"rngs": rngs, "dtype": dtype}
    sizes = (config.d_model, config.vocabulary_size)
    self.shared = layers.embedding(*sizes[::-1], **made)
    self.encoder = Stack(config, decoder=False, remat=remat, **made)
    self.decoder = Stack(config, decoder=True, remat=remat, **made)
    if not config.tied_embeddings:
      self.lm_head = layers.linear(("d", "vocabulary"), sizes, **made)

  @property
  def max_length(self) -> float:
    """None is too long: all far tokens are equally far."""
    return math.inf

  def hidden(
    self,
    encoder_input_tokens: Int[Array, "batch inputs"],
    decoder_input_tokens: Int[Array, "batch length"],
    *,
    decoder_target_tokens: Int[Array, "batch length"] | None = None,
    encoder_segment_ids: Int[Array, "batch inputs"] | None = None,
    decoder_segment_ids: Int[Array, "batch length"] | None = None,
    encoder_positions: Int[Array, "batch inputs"] | None = None,
    decoder_positions: Int[Array, "batch length"] | None = None,
  ) -> Float[Array, "batch length d"]:
    """The normed hidden states of the decoder.

    Segment ids say that rows are packed: 0 is padding, and a token sees only
    tokens of its own segment. Without them a row is one example, padded where
    the encoder's input is 0 and where the decoder's target is; without targets
    nothing of the decoder is padding. Positions default to 0, 1, ... along the
    row, which in a packed row is as good as counting anew, for T5 sees
    differences only; given, each row has biases of its own, which take memory.

    Raises:
      ValueError: segment ids of one side only.
    """
    if (encoder_segment_ids is None) != (decoder_segment_ids is None):
      raise ValueError(
        "Expected encoder_segment_ids and decoder_segment_ids together, or"
        " neither: packed inputs belong to packed targets."
      )
    packed = encoder_segment_ids is not None
    if packed:
      inputs = ambient.Segments(encoder_segment_ids, packed=True)
      outputs = ambient.Segments(decoder_segment_ids, packed=True)
    else:
      inputs, outputs = _row(encoder_input_tokens), None
      if decoder_target_tokens is not None:
        outputs = _row(decoder_target_tokens)
    x = self._encode(encoder_input_tokens, inputs, encoder_positions)
    length = decoder_input_tokens.shape[1]
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    seen = _real(inputs)
    if packed:
      seen = outputs.ids[:, :, None] == inputs.ids[:, None, :]
    if outputs is not None:
      # Padding is a segment too: its tokens see each other and thus something.
      causal &= outputs.ids[:, :, None] == outputs.ids[:, None, :]
    if decoder_positions is None:
      decoder_positions = jnp.arange(length)[None]

    def cross(attention, queries):
      return attention(queries, attention.read(encoded), encoded.mask)

    encoded = Encoded(x, seen, inputs)
    with ambient.SEGMENTS(outputs):
      return self.decoder(
        layers.look_up(self.shared, decoder_input_tokens),
        View(decoder_positions, causal),
        decoder_positions,
        cross=cross,
        scan=self.scan,
      )

  def logits(
    self, hidden: Float[Array, "batch length d"]
  ) -> Float[Array, "batch length vocabulary"]:
    """float32 scores of every next token."""
    if self.config.tied_embeddings:
      scores = layers.tied_logits(self.shared, hidden)
    else:
      scores = self.lm_head(hidden).astype(jnp.float32)
    return (
      scores * self.config.d_model**-0.5
      if self.config.scaled_logits
      else scores
    )

  def __call__(
    self,
    encoder_input_tokens: Int[Array, "batch inputs"],
    decoder_input_tokens: Int[Array, "batch length"],
    **features,
  ) -> Float[Array, "batch length vocabulary"]:
    """`logits(hidden(...))`."""
    return self.logits(
      self.hidden(encoder_input_tokens, decoder_input_tokens, **features)
    )

  def start(
    self,
    prompts: Int[Array, "batch length"],
    lengths: Int[Array, "batch"],
    *,
    room: int,
  ) -> tuple[Float[Array, "batch 1 d"], Int[Array, "batch"], Cache]:
    """As `decoding.Cached` says: the prompt is encoded, the answer is begun.

    The decoder's first input is 0, padding, as in training.
    """
    batch, length = prompts.shape
    real = jnp.arange(length) < lengths[:, None]
    segments = ambient.Segments(real.astype(jnp.int32), packed=False)
    x = self._encode(prompts, segments, None)
    encoded = Encoded(x, _real(segments), segments)
    config = self.config
    empty = jnp.zeros((batch, room, config.heads, config.head_dim), x.dtype)
    empty = (empty,) * config.decoder_layers
    inputs = tuple(
      block.cross_attention.read(encoded) for block in self.decoder.blocks
    )
    zeros = jnp.zeros((batch, 1), jnp.int32)
    cache = Cache(empty, empty, inputs, encoded.mask)
    hidden, cache = self.extend(zeros, zeros, cache)
    return hidden, jnp.ones((batch,), jnp.int32), cache

  def extend(
    self,
    tokens: Int[Array, "batch n"],
    positions: Int[Array, "batch n"],
    cache: Cache,
  ) -> tuple[Float[Array, "batch n d"], Cache]:
    """Hidden states of decoder tokens that follow what the cache holds.

    The token at position p is kept in slot p and sees slots 0 to p.
    """
    slots = jnp.arange(cache.keys[0].shape[1])
    mask = slots <= positions[:, :, None]

    def crosses():
      for inputs in cache.inputs:
        yield lambda attention, x, inputs=inputs: attention(
          x, inputs, cache.mask
        )

    with ambient.SEGMENTS(None), ambient.DECODING(True):
      x, kept = self.decoder.extend(
        layers.look_up(self.shared, tokens),
        View(positions, mask),
        slots[None],
        crosses=list(crosses()),
        pasts=list(zip(cache.keys, cache.values, strict=True)),
      )
    keys, values = zip(*kept, strict=True)
    return x, dataclasses.replace(cache, keys=keys, values=values)

  def _encode(self, tokens, segments, positions):
    if positions is None:
      positions = jnp.arange(tokens.shape[1])[None]
    mask = _real(segments)
    if segments.packed:
      mask = segments.ids[:, :, None] == segments.ids[:, None, :]
    with ambient.SEGMENTS(segments):
      return self.encoder(
        layers.look_up(self.shared, tokens),
        View(positions, mask),
        positions,
        scan=self.scan,
      )


def _row(tokens):
  return ambient.Segments((tokens != 0).astype(jnp.int32), packed=False)


def _real(segments):
  return (segments.ids > 0)[:, None]
