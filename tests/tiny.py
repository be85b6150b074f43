"""A decoder of two small blocks, and batches for it."""

from flax import nnx
import jax.numpy as jnp
import numpy as np

from sira_jax.adapters import methods, surgery
from sira_jax.models import decoder

VOCABULARY, LENGTH, ROWS = 64, 12, 4
CONFIG = decoder.DecoderConfig(
  vocabulary_size=VOCABULARY,
  layers=2,
  d_model=16,
  heads=2,
  kv_heads=1,
  head_dim=8,
  d_ff=24,
  rope_theta=500.0,
  norm_epsilon=1e-3,
  tied_embeddings=True,
  max_length=64,
)
# Few sites, of unequal sizes in and out: programs compile sooner.
SITES = r"layers\.\d+\.(self_attn\.k|mlp\.down)_proj"
SIZES = [(16, 8), (24, 16)] * 2


def base(*, tied: bool = True, dtype=jnp.float32, **settings):
  config = decoder.DecoderConfig(**(vars(CONFIG) | {"tied_embeddings": tied}))
  return decoder.Decoder(config, rngs=nnx.Rngs(0), dtype=dtype, **settings)


def adapted(
  method: str = "lora", *, path: str = SITES, seed: int = 1, **settings
):
  """The base with adapters at `path`."""
  model = base()
  factory = methods.create(method, **settings)
  surgery.adapt(model, [surgery.Rule(path, factory)], rngs=nnx.Rngs(seed))
  return model


def randomize(model, *, seed: int = 0):
  """Gives what starts at zero (B, or delta) random values, as if trained."""
  rng = np.random.default_rng(seed)
  for _, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      adapter = module.adapter
      b = adapter.B if hasattr(adapter, "B") else adapter.delta
      b[...] = jnp.asarray(rng.normal(size=b.shape), jnp.float32)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
  """Rows of 12, 12, 9 and 7 tokens; the second half of each are targets."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
  sizes = np.array([12, 12, 9, 7])[:, None]
  at = np.arange(LENGTH)
  return {
    "decoder_input_tokens": np.roll(tokens, 1, axis=1) * (at > 0),
    "decoder_target_tokens": np.where(at < sizes, tokens, 0),
    "decoder_loss_weights": np.float32((at >= sizes // 2) & (at < sizes)),
  }
