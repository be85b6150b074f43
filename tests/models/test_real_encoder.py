"""A real encoder, where one is given; tests/golden/make_real_encoder.py."""

import os
import pathlib

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.formats import huggingface
from tests.golden import real_sentences
from tests.tiny_t5 import error

FOLDER = os.environ.get("SIRA_JAX_ENCODER")


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
