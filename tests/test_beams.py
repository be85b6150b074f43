# SPDX-License-Identifier: Apache-2.0
"""Beam search against Hugging Face's, beam by beam."""

import jax
import numpy as np
import pytest

from sira_jax import beams, decoding, meshes, sharding
from tests import tiny_generation

# As in tests/golden/make_generation.py.
BEAMS = {
  "plain": {},
  "unnormalised": dict(length_penalty=0.0),
  "long": dict(length_penalty=2.5),
  "short": dict(length_penalty=-2.0),
  "early": dict(early_stopping=True),
}


@pytest.fixture(scope="module", params=tiny_generation.MODELS)
def golden(request):
  return tiny_generation.Golden(request.param)


def search(golden, width=4, **options):
  options = {"eos_id": golden.ends, "batch_size": 16} | options
  return beams.search(
    golden.model,
    golden.prompts,
    beams=width,
    max_new_tokens=tiny_generation.NEW_TOKENS,
    **options,
  )


def tokens(found):
  return [[beam.tokens for beam in several] for several in found]


def test_equals_hugging_face(golden):
  """All beams, their order and scores; one program for all settings.

  Hugging Face decoded each prompt alone, and we do all of them at once.
  """
  programs = beams._search._cache_size()
  for kind, settings in BEAMS.items():
    with jax.transfer_guard("disallow"):
      found = search(golden, **settings)
    assert tokens(found) == golden.tokens(f"beams/{kind}"), kind
    for several, scores in zip(found, golden.of(f"scores/{kind}"), strict=True):
      own = [beam.score for beam in several]
      np.testing.assert_allclose(own, scores, rtol=1e-5)
  assert beams._search._cache_size() == programs + 1
  # Each setting makes a difference.
  plain, *others = (golden.tokens(f"beams/{kind}") for kind in BEAMS)
  assert plain not in others


def test_greedy_equals_hugging_face(golden):
  found = decoding.greedy(
    golden.model,
    golden.prompts,
    max_new_tokens=tiny_generation.NEW_TOKENS,
    eos_id=golden.ends,
  )
  assert found == golden.tokens("greedy")


def test_one_beam_is_greedy():
  """And ends with its first stop token; here each prompt is alone."""
  golden = tiny_generation.Golden("tiny_llama_sharded")
  assert tokens(search(golden, width=1, batch_size=1)) == [
    [ids] for ids in golden.tokens("greedy")
  ]


def test_on_a_mesh():
  """Prompts and weights over eight devices, stop tokens on each."""
  golden = tiny_generation.Golden("tiny_llama_sharded")
  with sharding.use(meshes.mesh(data=4, fsdp=2)):
    sharding.place(golden.model)
    # Two prompts' beams at once, rounded up to eight rows of prompts.
    assert tokens(search(golden, batch_size=8)) == golden.tokens("beams/plain")


def test_refused():
  golden = tiny_generation.Golden("tiny_llama_sharded")
  with pytest.raises(ValueError, match="beams of at least 1, got 0"):
    search(golden, width=0)
  golden.prompts[1] = []
  with pytest.raises(ValueError, match="got 0 in prompt 1"):
    search(golden)
