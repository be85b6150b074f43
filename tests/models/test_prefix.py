"""Decoders that read prompts in both directions."""

import functools
from unittest import mock

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.models import attention, decoder
from tests import tiny

# Two rows, of prompts of 5 and 9 tokens with the 0 before them.
PREFIX = (np.arange(12) < [[5], [9]]).astype(np.int32)
TOKENS = tiny.batch()["decoder_input_tokens"][:2]


@functools.partial(nnx.jit, static_argnames="method")
def run(model, *args, method="hidden", **features):
  return getattr(model, method)(*args, **features)


def test_mask_by_hand():
  sight = attention.Sight(
    jnp.array([[1, 1, 1, 1, 2, 2, 2, 0]]),
    prefix=jnp.array([[1, 1, 1, 0, 1, 1, 0, 0]]) > 0,
    window=3,
  )
  expected = """
    111.....
    111.....
    111.....
    .111....
    ....11..
    ....11..
    ....111.
    .......1
  """
  rows = [[c == "1" for c in row] for row in expected.split()]
  np.testing.assert_array_equal(sight.mask(8)[0], rows)
  # Nor does a token of the prompt see further on than its window.
  whole = attention.Sight(prefix=jnp.ones((1, 4), bool), window=2)
  near = np.abs(np.arange(4)[:, None] - np.arange(4)) < 2
  np.testing.assert_array_equal(whole.mask(4)[0], near)


def test_a_prefix_sees_itself(monkeypatch):
  """By the gradient: who changes a token of a prompt of 5, and a later one."""
  model = tiny.base(prefix=True)
  x = model._embedded(TOKENS[:1])
  monkeypatch.setattr(decoder.Decoder, "_embedded", lambda self, x: x)

  @jax.jit
  def seen(x, at):
    hidden = functools.partial(
      model.hidden, decoder_causal_attention=PREFIX[:1]
    )
    return jnp.abs(jax.vjp(hidden, x)[1](at)[0]).max(axis=-1) > 0

  for token, count in [(2, 5), (7, 8)]:
    found = seen(x, jnp.zeros_like(x).at[0, token].set(1.0))
    assert np.flatnonzero(found).tolist() == list(range(count))


def test_packed_prefixes_are_apart():
  model = tiny.base(prefix=True)
  packed = run(
    model,
    TOKENS.reshape(1, 24),
    decoder_segment_ids=np.repeat([[1, 2]], 12, axis=1),
    decoder_causal_attention=PREFIX.reshape(1, 24),
  )
  alone = run(model, TOKENS, decoder_causal_attention=PREFIX)
  np.testing.assert_allclose(packed.reshape(alone.shape), alone, atol=1e-5)


def test_decoding_reads_prompts_as_training_does():
  """The prompts, then three tokens, one at a time, against whole rows."""
  model = tiny.base(prefix=True)
  wanted = run(model, TOKENS, decoder_causal_attention=PREFIX)
  rows, lengths = np.arange(2), PREFIX.sum(axis=1)
  # Padded by a token that nobody sees.
  prompts = np.where(PREFIX, TOKENS, 63)
  start = nnx.jit(lambda model, *x: model.start(*x, room=4))
  found, at, cache = start(model, prompts, lengths)
  np.testing.assert_array_equal(at, lengths)
  for step in range(4):
    now = lengths - 1 + step
    np.testing.assert_allclose(found[:, 0], wanted[rows, now], atol=1e-5)
    if step < 3:
      now = now[:, None] + 1
      tokens = np.take_along_axis(TOKENS, now, axis=1)
      found, cache = run(model, tokens, now, cache, method="extend")


@pytest.mark.parametrize("prefix", [True, False])
def test_a_prefix_lm_alone_is_told(prefix):
  model = tiny.base(prefix=prefix)
  assert ("decoder_causal_attention" in model.FEATURES) == prefix
  features = {} if prefix else {"decoder_causal_attention": PREFIX}
  with pytest.raises(ValueError, match=f"this one has prefix={prefix}"):
    model.hidden(TOKENS, **features)


def test_a_prefix_takes_no_kernel(monkeypatch):
  asked = mock.Mock()
  monkeypatch.setattr(attention, "_kernel", asked)
  run(tiny.base(prefix=True), TOKENS, decoder_causal_attention=PREFIX)
  assert not asked.called
