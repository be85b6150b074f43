"""Real encoders, where they are given: make_real_*.py in tests/golden."""

import os
import pathlib

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.formats import bases, huggingface
from tests.golden import real_sentences
from tests.tiny_t5 import error

FOLDER = os.environ.get("SIRA_JAX_ENCODER")
E5 = os.environ.get("SIRA_JAX_E5")


@pytest.mark.skipif(FOLDER is None, reason="SIRA_JAX_ENCODER names no folder")
def test_states_equal_transformers():
  folder = pathlib.Path(FOLDER)
  expected = np.load(folder / "expected.npz")
  tokens, real = expected["tokens"].astype(np.int32), expected["real"] > 0
  model = huggingface.load_model(folder)
  got = nnx.jit(lambda model, tokens: model.states(tokens))(model, tokens)
  wrong = error(got[real], expected["states"][real])
  print(f"\n{folder.name}: relative error {wrong:.2e}")
  assert wrong < 2e-5
  model.pooling = "mean"
  pooled = nnx.jit(lambda model, tokens: model.hidden(tokens))(model, tokens)
  means = [
    s[r].mean(axis=0) for s, r in zip(expected["states"], real, strict=True)
  ]
  wrong = error(pooled[:, 0], jnp.stack(means))
  print(f"means of texts: relative error {wrong:.2e}")
  assert wrong < 2e-5
  tokenizer = huggingface.tokenizer(folder)
  for text, row, mask in zip(
    real_sentences.SENTENCES, tokens, real, strict=True
  ):
    assert tokenizer.encode(text).ids == row[mask].tolist()


@pytest.mark.skipif(E5 is None, reason="SIRA_JAX_E5 names no folder")
def test_e5_equals_numpy_and_its_own_engine():
  """Multilingual E5, as a run loads it: means of the states of each text."""
  base = bases.load(uri=E5)
  expected = np.load(pathlib.Path(E5) / "expected.npz")
  texts = [f"query: {text}" for text in real_sentences.IN_MORE_LANGUAGES]
  rows = [encoding.ids for encoding in base.tokenizer.encode_batch(texts)]
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, ids in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  assert 0 not in [token for row in rows for token in row]
  base.model.pooling = "mean"
  got = nnx.jit(lambda model, tokens: model.hidden(tokens))(base.model, tokens)
  got = np.array(got)[:, 0]
  wrong = error(got, expected["means"])
  got /= np.linalg.norm(got, axis=-1, keepdims=True)
  cosines = (got * expected["engine"]).sum(axis=-1)
  print(f"\nE5: relative error {wrong:.2e}, cosines {cosines.round(5)}")
  assert wrong < 2e-5
  # The engine rounds activations to 8 bits.
  assert cosines.min() > 0.999
