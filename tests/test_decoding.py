# SPDX-License-Identifier: Apache-2.0
"""Greedy and sampled decoding against the full forward, token by token."""

import zlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sira_jax import decoding, filters
from sira_jax.models import decoder
from tests import tiny_generation

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
  # Whichever of several stop tokens comes first.
  several = [expected[1][6], eos_id, expected[3][2]]
  assert len(set(several)) == 3
  for ids, whole in zip(decode(eos_id=several), expected, strict=True):
    at = [i for i, token in enumerate(whole) if token in several]
    assert ids == whole[: min(at, default=9)]


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


DRAWN = dict(max_new_tokens=7, temperature=1.5, top_k=9, top_p=0.9, seed=3)


def drawn_by_full_forward(model, prompt, number, eos_id) -> list[int]:
  """The definition of one draw: no cache, no batch."""
  key = jax.random.key(DRAWN["seed"])
  checksum = zlib.crc32(np.array(prompt, np.int32).tobytes())
  key = jax.random.fold_in(jax.random.fold_in(key, checksum), number)
  ids = list(prompt)
  for step in range(DRAWN["max_new_tokens"]):
    tokens = np.zeros((1, 48), int)
    tokens[0, : len(ids)] = ids
    logits = forward(model, tokens)[0, len(ids) - 1]
    limits = {k: DRAWN[k] for k in ("temperature", "top_k", "top_p")}
    left = filters.filtered(logits, **limits)
    token = int(jax.random.categorical(jax.random.fold_in(key, step), left))
    if token == eos_id:
      break
    ids.append(token)
  return ids[len(prompt) :]


def test_samples(model):
  """A prompt's own, whatever is drawn beside them."""
  prompts = prompts_of(3, 18, 7)

  def draw(prompts, **options):
    return decoding.sample(
      model, prompts, **{"eos_id": NO_TOKEN, **DRAWN, **options}
    )

  with jax.transfer_guard("disallow"):
    found = draw(prompts, samples=2)
  assert found == [
    [drawn_by_full_forward(model, p, i, NO_TOKEN) for i in range(2)]
    for p in prompts
  ]
  assert len({tuple(ids) for several in found for ids in several}) == 6
  # Alone; in rows that do not suffice; and once more, where draws go on.
  assert draw(prompts[1:2], samples=2) == found[1:2]
  assert draw(prompts, samples=2, batch_size=1) == found
  assert draw([*prompts, prompts[1]], samples=2)[1::2] == [
    found[1],
    [drawn_by_full_forward(model, prompts[1], i, NO_TOKEN) for i in (2, 3)],
  ]
  # Other numbers need no other program.
  programs = decoding._decode._cache_size()
  assert draw(prompts, samples=2, seed=4) != found
  assert draw(prompts, samples=2, temperature=3.0, top_k=4) != found
  (one, other), *_ = draw(prompts, samples=2, top_k=1)
  greedy = by_full_forward(model, prompts[0], 7, NO_TOKEN)
  assert one == other == greedy
  eos_id = found[0][1][3]
  assert draw(prompts, samples=2, eos_id=eos_id) == [
    [ids[: ids.index(eos_id)] if eos_id in ids else ids for ids in several]
    for several in found
  ]
  assert decoding._decode._cache_size() == programs


def test_frequencies():
  """4000 draws, against the probabilities that Hugging Face draws by."""
  golden = tiny_generation.Golden("tiny_t5_gated")
  prompt, expected = golden.probabilities("both")
  (found,) = decoding.sample(
    golden.model,
    [prompt],
    max_new_tokens=1,
    eos_id=NO_TOKEN,
    temperature=2.0,
    top_k=12,
    top_p=0.7,
    seed=0,
    samples=4000,
  )
  counts = np.bincount(np.ravel(found), minlength=len(expected))
  assert counts.sum() == 4000 and not counts[expected == 0].any()
  p = expected[expected > 0]
  assert len(p) > 3 and p.min() * 4000 > 50
  squares = (counts[expected > 0] - 4000 * p) ** 2 / (4000 * p)
  # Exceeded by one seed in a thousand.
  assert squares.sum() < stats.chi2.ppf(0.999, len(p) - 1)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(samples=0), "samples of at least 1, got 0"),
    (dict(seed=-1), "a seed from 0 to"),
    (dict(top_p=2.0), "top_p above 0 and at most 1"),
    (dict(max_new_tokens=0), "max_new_tokens of at least 1, got 0"),
  ],
)
def test_refuses_samples(model, options, message):
  with pytest.raises(ValueError, match=message):
    decoding.sample(model, prompts_of(3), eos_id=1, **(DRAWN | options))


@pytest.mark.parametrize(
  ("lengths", "message"),
  [((3, 40), "got 40 in prompt 1"), ((0,), "got 0 in prompt 0")],
)
def test_refuses_prompts_that_do_not_fit(model, lengths, message):
  with pytest.raises(ValueError, match=message):
    decoding.greedy(
      model, prompts_of(*lengths), max_new_tokens=9, eos_id=NO_TOKEN
    )
