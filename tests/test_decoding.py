# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding against the full forward, token by token."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import decoding
from sira_jax.models import decoder

CONFIG = decoder.DecoderConfig(
  vocabulary_size=24,
  layers=2,
  d_model=16,
  heads=4,
  kv_heads=2,
  head_dim=8,
  d_ff=32,
  rope_theta=100.0,
  norm_epsilon=1e-5,
  tied_embeddings=False,
  max_length=48,
)
NO_TOKEN = -1


@pytest.fixture(scope="module")
def model():
  return make(0)


def make(seed: int) -> decoder.Decoder:
  model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(seed))
  # Far from uniform scores, so that continuations differ and wander.
  model.lm_head.kernel[...] *= 5
  return model


def prompts_of(*lengths: int) -> list[list[int]]:
  random = np.random.default_rng(1)
  return [random.integers(1, 24, n).tolist() for n in lengths]


@nnx.jit
def forward(model, tokens):
  return model(tokens)


def by_full_forward(model, prompt, count, eos_id) -> list[int]:
  """The definition: no cache, no batch, no padding that counts."""
  ids = list(prompt)
  for _ in range(count):
    # One shape, so that it compiles once; what follows is not seen.
    tokens = np.zeros((1, 48), int)
    tokens[0, : len(ids)] = ids
    best = int(jnp.argmax(forward(model, tokens)[0, len(ids) - 1]))
    if best == eos_id:
      break
    ids.append(best)
  return ids[len(prompt) :]


def test_equals_the_full_forward(model):
  prompts = prompts_of(3, 18, 1, 7, 16)
  expected = [by_full_forward(model, p, 9, NO_TOKEN) for p in prompts]
  assert len({tuple(ids) for ids in expected}) == len(prompts)

  def decode(**options):
    return decoding.greedy(model, prompts, max_new_tokens=9, **options)

  with jax.transfer_guard("disallow"):
    assert decode(eos_id=NO_TOKEN) == expected
  assert decode(eos_id=NO_TOKEN, pad_id=5) == expected
  # More prompts than rows, and rows left over.
  assert decode(eos_id=NO_TOKEN, batch_size=3) == expected
  # The end of one row is not the end of the others.
  eos_id = expected[0][4]
  assert decode(eos_id=eos_id) == [
    by_full_forward(model, p, 9, eos_id) for p in prompts
  ]


def test_nothing_is_decoded_after_the_end(model):
  (prompt,) = prompts_of(4)
  (ids,) = decoding.greedy(model, [prompt], max_new_tokens=1, eos_id=NO_TOKEN)
  assert len(ids) == 1
  assert decoding.greedy(model, [prompt], max_new_tokens=1, eos_id=ids[0]) == [
    []
  ]
  assert decoding.greedy(model, [], max_new_tokens=1, eos_id=0) == []


def test_other_weights_need_no_other_program(model):
  prompts = prompts_of(3, 5)
  options = {"max_new_tokens": 6, "eos_id": NO_TOKEN}
  first = decoding.greedy(model, prompts, **options)
  programs = decoding._decode._cache_size()
  other = make(7)
  second = decoding.greedy(other, prompts_of(3, 5), **options)
  assert second != first
  assert second == [by_full_forward(other, p, 6, NO_TOKEN) for p in prompts]
  # Another length in the same bucket, another end: the same program.
  decoding.greedy(model, prompts_of(11, 2), max_new_tokens=6, eos_id=3)
  assert decoding._decode._cache_size() == programs


@pytest.mark.parametrize(
  ("lengths", "message"),
  [((3, 40), "got 40 in prompt 1"), ((0,), "got 0 in prompt 0")],
)
def test_refuses_prompts_that_do_not_fit(model, lengths, message):
  with pytest.raises(ValueError, match=message):
    decoding.greedy(
      model, prompts_of(*lengths), max_new_tokens=9, eos_id=NO_TOKEN
    )
