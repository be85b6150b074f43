# SPDX-License-Identifier: Apache-2.0
"""The models of `train_step` and their batches, all of random numbers."""

import dataclasses

from flax import nnx
import jax.numpy as jnp
import numpy as np

from sira_jax.models import decoder, t5, t5_blocks

SMOLLM2_135M = decoder.DecoderConfig(
  vocabulary_size=49_152,
  layers=30,
  d_model=576,
  heads=9,
  kv_heads=3,
  head_dim=64,
  d_ff=1536,
  rope_theta=10_000.0,
  norm_epsilon=1e-5,
  tied_embeddings=True,
  max_length=8192,
)
LLAMA_1B = decoder.DecoderConfig(
  vocabulary_size=128_256,
  layers=16,
  d_model=2048,
  heads=32,
  kv_heads=8,
  head_dim=64,
  d_ff=8192,
  rope_theta=500_000.0,
  norm_epsilon=1e-5,
  tied_embeddings=True,
  max_length=131_072,
)
TINY = dataclasses.replace(
  SMOLLM2_135M,
  vocabulary_size=128,
  layers=2,
  d_model=32,
  heads=4,
  kv_heads=2,
  head_dim=8,
  d_ff=64,
)
T5_LARGE = t5_blocks.T5Config(
  vocabulary_size=32_128,
  encoder_layers=24,
  decoder_layers=24,
  d_model=1024,
  heads=16,
  head_dim=64,
  d_ff=2816,
  activation="gelu",
  gated=True,
  buckets=32,
  max_distance=128,
  bias_by_layer=False,
  norm_epsilon=1e-6,
  tied_embeddings=False,
  scaled_logits=False,
)
TINY_T5 = dataclasses.replace(
  T5_LARGE,
  vocabulary_size=128,
  encoder_layers=2,
  decoder_layers=3,
  d_model=32,
  heads=3,
  head_dim=8,
  d_ff=64,
)
CONFIGS = {"135m": SMOLLM2_135M, "1b": LLAMA_1B, "tiny": TINY}
ENCODER_DECODERS = {"t5-large": T5_LARGE, "t5-tiny": TINY_T5}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclasses.dataclass(frozen=True)
class Setting:
  """A decoder-only model and a batch.

  Attributes:
    model: a name in `CONFIGS`.
    layers: instead of the model's own number; None keeps that.
    rows: of the batch.
    length: tokens of a row.
    share: of the positions, that have a target.
    dtype: of the base and of the computation.
    modules: which projections are adapted.
    scan: see `decoder.Decoder`.
  """

  model: str
  rows: int
  length: int
  layers: int | None = None
  share: float = 1.0
  dtype: str = "float32"
  modules: tuple[str, ...] = ATTENTION
  scan: bool = False

  # Of each kind of model: its sizes by name, its class, how its config calls
  # the numbers of layers, and what "frozen" trains, so that all of the base
  # runs, forward and backward.
  CONFIGS = CONFIGS
  MAKE = decoder.Decoder
  LAYERS = ("layers",)
  PROBE = r"layers\.0\.self_attn\.q_proj"

  @property
  def config(self) -> decoder.DecoderConfig | t5_blocks.T5Config:
    """The model's sizes."""
    config = self.CONFIGS[self.model]
    if self.layers is not None:
      changed = dict.fromkeys(self.LAYERS, self.layers)
      config = dataclasses.replace(config, **changed)
    return config

  @property
  def lengths(self) -> dict[str, int]:
    """Side of the model -> tokens of a row."""
    return {"decoder": self.length}

  @property
  def tokens(self) -> int:
    """Of the batch, of all sides."""
    return self.rows * sum(self.lengths.values())

  @property
  def pattern(self) -> str:
    """A rule's path."""
    return rf".*\.({'|'.join(self.modules)})"

  def __str__(self):
    layers = " + ".join(str(getattr(self.config, name)) for name in self.LAYERS)
    sizes = " + ".join(f"{self.rows} x {n}" for n in self.lengths.values())
    return (
      f"{self.model}, {layers} layers, {sizes}, {self.share:.0%} targets,"
      f" {self.dtype}"
    )


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Setting):
  """An encoder-decoder and a batch.

  Attributes:
    model: a name in `ENCODER_DECODERS`.
    layers: of each side.
    length: tokens of a row that the encoder reads.
    share: of the decoder's positions.
    modules: in the encoder, in the decoder, and between them.
    targets_length: tokens of a row that the decoder reads, and as many targets.
  """

  modules: tuple[str, ...] = ("q", "k", "v", "o")
  targets_length: int = 128

  CONFIGS = ENCODER_DECODERS
  MAKE = t5.T5
  LAYERS = ("encoder_layers", "decoder_layers")
  PROBE = r"(encoder|decoder)\.blocks\.0\.attention\.q"

  @property
  def lengths(self) -> dict[str, int]:
    """Side of the model -> tokens of a row."""
    return {"encoder": self.length, "decoder": self.targets_length}


def batch(setting: Setting) -> dict[str, np.ndarray]:
  """Random tokens; each row's targets are its last ones, as an answer's are."""
  rng = np.random.default_rng(0)
  size, length = setting.config.vocabulary_size, setting.lengths["decoder"]
  found = {
    f"{side}_input_tokens": rng.integers(
      1, size, (setting.rows, number), dtype=np.int32
    )
    for side, number in setting.lengths.items()
  }
  shape = (setting.rows, length)
  first = length - max(1, round(setting.share * length))
  weights = np.broadcast_to(np.arange(length) >= first, shape)
  return {
    **found,
    "decoder_target_tokens": rng.integers(1, size, shape, dtype=np.int32),
    "decoder_loss_weights": weights.astype(np.float32),
  }


def base(setting: Setting) -> nnx.Module:
  """The model with random weights; programs share its arrays."""
  return setting.MAKE(
    setting.config,
    rngs=nnx.Rngs(0),
    dtype=jnp.dtype(setting.dtype),
    scan=setting.scan,
  )
