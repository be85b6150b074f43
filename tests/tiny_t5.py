"""T5s of two small blocks a side, random or Hugging Face's, and batches."""

import json
import pathlib
import shutil

from flax import nnx
import jax.numpy as jnp
import numpy as np
import tokenizers

from sira_jax.adapters import methods, surgery
from sira_jax.formats import huggingface
from sira_jax.models import t5

GOLDEN = pathlib.Path(__file__).parent / "golden"
VOCABULARY, ROWS, INPUTS, LENGTH = 64, 8, 14, 10
# Every width that a mesh divides is a multiple of 8.
CONFIG = t5.T5Config(
  vocabulary_size=VOCABULARY,
  encoder_layers=2,
  decoder_layers=2,
  d_model=16,
  heads=3,
  head_dim=8,
  d_ff=24,
  activation="gelu",
  gated=True,
  buckets=8,
  max_distance=12,
  bias_by_layer=False,
  norm_epsilon=1e-3,
  tied_embeddings=False,
  scaled_logits=False,
)
# Of the encoder, of the decoder, and of the decoder but reading the encoder.
SITES = (
  r"encoder\.blocks\.\d+\.mlp\.wo",
  r"decoder\.blocks\.\d+\.attention\.q",
  r"decoder\.blocks\.\d+\.cross_attention\.[kv]",
)


def base(**options) -> t5.T5:
  return t5.T5(CONFIG, rngs=nnx.Rngs(0), **options)


def adapt(model, method: str, **settings):
  """Adapters at `SITES`."""
  factory = methods.create(method, **settings)
  rules = [surgery.Rule(path, factory) for path in SITES]
  return surgery.adapt(model, rules, rngs=nnx.Rngs(1))


def golden(name: str, **options):
  """A Hugging Face model of tests/golden, its features and its logits."""
  model = huggingface.load_model(GOLDEN / name, **options)
  arrays = dict(np.load(GOLDEN / name / "expected.npz"))
  logits = arrays.pop("logits")
  return model, {k: v.astype(np.int32) for k, v in arrays.items()}, logits


def tokens_of(*shape: int, seed: int = 0) -> np.ndarray:
  random = np.random.default_rng(seed)
  return random.integers(1, VOCABULARY, shape).astype(np.int32)


def shifted(targets):
  """What the decoder reads: its targets one later, 0 first."""
  return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


def batch(seed: int = 0) -> dict[str, np.ndarray]:
  """Rows of 14 to 7 tokens in, and of 10 to 3 tokens out."""
  inputs = tokens_of(ROWS, INPUTS, seed=seed)
  targets = tokens_of(ROWS, LENGTH, seed=seed + 100)
  row = np.arange(ROWS)[:, None]
  inputs[np.arange(INPUTS) >= INPUTS - row] = 0
  targets[np.arange(LENGTH) >= LENGTH - row] = 0
  return {
    "encoder_input_tokens": inputs,
    "decoder_input_tokens": shifted(targets),
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.float32(targets != 0),
  }


def error(got, expected) -> float:
  got, expected = jnp.asarray(got), jnp.asarray(expected)
  return float(jnp.abs(got - expected).max() / jnp.abs(expected).max())


def word_tokenizer(folder, *, more: int = 0, **options):
  """A tokenizer.json of four tokens, or more, that pads and truncates."""
  ids = {"<pad>": 0, "</s>": 1, "<end>": 2, "a": 3}
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(ids, unk_token="<pad>")
  )
  made.add_tokens([f"extra{i}" for i in range(more)])
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.enable_padding(length=9)
  made.enable_truncation(2)
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(options))


def byte_folder(folder: pathlib.Path) -> pathlib.Path:
  """A folder with the tiny ByT5 and its tokenizer."""
  made = folder / "byt5"
  shutil.copytree(GOLDEN / "tiny_byt5", made)
  named = {"tokenizer_class": "ByT5Tokenizer"}
  (made / "tokenizer_config.json").write_text(json.dumps(named))
  return made
