# SPDX-License-Identifier: Apache-2.0
"""An encoder that reads whole texts: BERT, RoBERTa, XLM-R and their like.

Paths are Hugging Face's in short:

    tokens  positions  types  norm  blocks.N.
      attention.{q,k,v,o}  attention_norm
      mlp.{wi,wo}          mlp_norm
    pooler  head

Source: Devlin et al. 2019 (arXiv 1810.04805), Liu et al. 2019 (arXiv
1907.11692), Conneau et al. 2020 (arXiv 1911.02116). There is no dropout.
"""

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import ambient
from sira_jax.models import encoder_blocks, layers, stacking
from sira_jax.models.encoder_blocks import EncoderConfig

POOLINGS = ("first", "mean", "pooler")


class Encoder(nnx.Module):
  """Tokens to one vector for each text, and to scores where it has a head.

  `dtype` is that of the parameters; the computation follows it, but for norms,
  softmax, means and scores, which are float32. `remat` recomputes each block in
  the backward pass instead of keeping its inside. `scan` runs the blocks as a
  loop; see `stacking`.

  Its `pooling` makes a text's vector of the states of its tokens:

      first   the first token's
      mean    the mean over all tokens of the text
      pooler  tanh(pooler(the first token's)), as in pretraining

  Its `head` is None, a checkpoint's last layer, or one to be trained
  (`adapters.heads`).

  Made under `nnx.eval_shape` it holds shapes only, for a loader to fill.
  """

  FEATURES = (
    "encoder_input_tokens",
    "encoder_type_ids",
    "encoder_segment_ids",
    "encoder_positions",
    "decoder_loss_weights",
  )

  def __init__(
    self,
    config: EncoderConfig,
    *,
    rngs: nnx.Rngs,
    dtype=jnp.float32,
    remat: bool = False,
    scan: bool = False,
  ):
    self.config = config
    self.remat = remat
    self.scan = scan
    d, made = config.d_model, {"rngs": rngs, "dtype": dtype}
    self.tokens = layers.embedding(config.vocabulary_size, d, **made)
    self.positions, self.types = (
      layers.small_embedding(rows, d, **made)
      for rows in (config.positions, config.types)
    )
    self.norm = encoder_blocks.norm(config, dtype)
    self.blocks = nnx.List(
      [encoder_blocks.Block(config, **made) for _ in range(config.layers)]
    )
    self.pooling = "first"
    # Data, for a head may be put on later.
    self.pooler, self.head = nnx.data(None), nnx.data(None)
    if config.pooler:
      self.pooler = layers.linear(("d", None), (d, d), bias=True, **made)
    if config.labels is not None:
      sizes = (d, config.labels)
      self.head = layers.linear(("d", None), sizes, bias=True, **made)
      self.pooling = "pooler"

  @property
  def max_length(self) -> int:
    """The longest text that the model was made for, in tokens."""
    return self.config.positions - self.config.first_position

  def pool_by(self, pooling: str) -> None:
    """Makes texts' vectors of tokens' states so: a name in `POOLINGS`.

    Raises:
      ValueError: an unknown one, or a pooler where there is none.
    """
    if pooling not in POOLINGS:
      raise ValueError(
        f"Unknown pooling {pooling!r}; there are {', '.join(POOLINGS)}."
      )
    if pooling == "pooler" and self.pooler is None:
      raise ValueError(
        'This encoder came without a pooler: take pooling="mean" or "first".'
      )
    self.pooling = pooling

  def states(
    self,
    encoder_input_tokens: Int[Array, "batch length"],
    *,
    encoder_type_ids: Int[Array, "batch length"] | None = None,
    encoder_segment_ids: Int[Array, "batch length"] | None = None,
    encoder_positions: Int[Array, "batch length"] | None = None,
  ) -> Float[Array, "batch length d"]:
    """The states of all tokens after the last block.

    Segment ids say that rows are packed: 0 is padding, and a token sees only
    tokens of its own segment. Without them a row is one text, padded where its
    tokens are `config.padding`. Positions default to 0, 1, ... within each
    text; types, to 0.

    Raises:
      ValueError: the row of one text is longer than max_length.
    """
    segments = self._segments(encoder_input_tokens, encoder_segment_ids)
    if encoder_positions is None:
      encoder_positions = self._positions(encoder_input_tokens, segments)
    if encoder_type_ids is None:
      encoder_type_ids = jnp.zeros_like(encoder_input_tokens)
    x = layers.look_up(self.tokens, encoder_input_tokens)
    x += layers.look_up(self.types, encoder_type_ids, over=None)
    places = encoder_positions + self.config.first_position
    x += layers.look_up(self.positions, places, over=None)
    # Padding is a segment too: its tokens see each other and thus something.
    mask = segments.ids[:, :, None] == segments.ids[:, None, :]
    with ambient.SEGMENTS(segments):
      return self._through_blocks(self.norm(x), mask)

  def hidden(
    self,
    encoder_input_tokens: Int[Array, "batch length"],
    *,
    encoder_segment_ids: Int[Array, "batch length"] | None = None,
    decoder_loss_weights: Float[Array, "batch texts"] | None = None,
    **features: Int[Array, "batch length"],
  ) -> Float[Array, "batch texts d"]:
    """One vector for each text: the only one of a row, or each segment's.

    Args:
      encoder_input_tokens: as of `states`, which `features` are for.
      encoder_segment_ids: where rows are packed, of 1, 2, ... and 0.
      decoder_loss_weights: of a packed batch, whose shape says how many texts a
        row may hold; segments of greater ids have no vector.

    Raises:
      ValueError: as `states`; or segment ids alone.
    """
    if encoder_segment_ids is None:
      texts = 1
    elif decoder_loss_weights is not None:
      texts = decoder_loss_weights.shape[1]
    else:
      raise ValueError(
        "Packed rows need decoder_loss_weights [batch texts] beside"
        " encoder_segment_ids, to say how many texts a row may hold."
      )
    states = self.states(
      encoder_input_tokens, encoder_segment_ids=encoder_segment_ids, **features
    )
    segments = self._segments(encoder_input_tokens, encoder_segment_ids)
    numbers = jnp.arange(1, texts + 1)[None, :, None]
    return self._pooled(states, segments.ids[:, None, :] == numbers)

  def logits(
    self, hidden: Float[Array, "batch texts d"]
  ) -> Float[Array, "batch texts labels"]:
    """float32 scores of every label; of a regression, one number.

    Raises:
      ValueError: the model has no head.
    """
    if self.head is None:
      raise ValueError(
        "This encoder has no head, so it scores no labels: put one on with"
        " adapters.heads.attach, or take its hidden."
      )
    return self.head(hidden).astype(jnp.float32)

  def __call__(
    self, encoder_input_tokens: Int[Array, "batch length"], **features
  ) -> Float[Array, "batch texts labels"]:
    """`logits(hidden(...))`."""
    return self.logits(self.hidden(encoder_input_tokens, **features))

  def _segments(self, tokens, ids) -> ambient.Segments:
    if ids is not None:
      return ambient.Segments(ids, packed=True)
    real = (tokens != self.config.padding).astype(jnp.int32)
    return ambient.Segments(real, packed=False)

  def _positions(self, tokens, segments):
    """0, 1, ... within each text."""
    length = tokens.shape[1]
    if segments.packed:
      # Of padding all 0, for it may be longer than the table; a text that is
      # has no row in it, and becomes NaN.
      within = jnp.arange(length) - segments.bounds[0]
      return jnp.where(segments.ids > 0, within, 0)
    if length > self.max_length:
      raise ValueError(
        f"Expected rows of at most max_length={self.max_length} tokens, got"
        f" {length}. Shorten them, or pass encoder_segment_ids if each is"
        " several shorter texts packed."
      )
    return jnp.broadcast_to(jnp.arange(length), tokens.shape)

  def _through_blocks(self, x, mask):
    call = encoder_blocks.Block.__call__
    if self.remat:
      call = nnx.remat(call)
    return stacking.run(
      lambda block, x: call(block, x, mask), self.blocks, x, loop=self.scan
    )

  def _pooled(
    self,
    states: Float[Array, "batch length d"],
    members: Bool[Array, "batch texts length"],
  ) -> Float[Array, "batch texts d"]:
    """`pooling` over each text's tokens; finite where a text has none."""
    if self.pooling == "mean":
      weights = members.astype(jnp.float32)
      count = jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)
      sums = jnp.einsum("btl,bld->btd", weights, states.astype(jnp.float32))
      return (sums / count).astype(states.dtype)
    first = members.argmax(axis=-1)[..., None]
    x = jnp.take_along_axis(states, first, axis=1)
    return jnp.tanh(self.pooler(x)) if self.pooling == "pooler" else x
