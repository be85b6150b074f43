# SPDX-License-Identifier: Apache-2.0
"""Which tokens are left to draw: by hand, and by Hugging Face."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import filters
from tests import tiny_generation

# As in tests/golden/make_generation.py.
FILTERS = {
  "cold": dict(temperature=0.6),
  "k": dict(temperature=1.0, top_k=5),
  "p": dict(temperature=1.3, top_p=0.8),
  "both": dict(temperature=2.0, top_k=12, top_p=0.7),
  "one": dict(temperature=1.0, top_p=0.01),
}


def kept(p, **settings):
  """The probabilities that are left of some."""
  settings = {"temperature": 1.0} | settings
  left = filters.filtered(jnp.log(jnp.asarray(p)), **settings)
  return np.asarray(jax.nn.softmax(left, axis=-1))


P = [0.15, 0.5, 0.05, 0.3]


@pytest.mark.parametrize(
  "settings, expected",
  [
    ({}, P),
    (dict(top_k=1), [0, 1, 0, 0]),
    (dict(top_k=2), [0, 5 / 8, 0, 3 / 8]),
    (dict(top_k=99), P),
    # The token that crosses p stays: 0.5 < 0.51 < 0.5 + 0.3.
    (dict(top_p=0.51), [0, 5 / 8, 0, 3 / 8]),
    (dict(top_p=0.49), [0, 1, 0, 0]),
    (dict(top_p=0.79), [0, 5 / 8, 0, 3 / 8]),
    (dict(top_p=0.81), [3 / 19, 10 / 19, 0, 6 / 19]),
    # Of what top k leaves, 5/8 and 3/8, the first reaches 0.6 alone.
    (dict(top_k=2, top_p=0.6), [0, 1, 0, 0]),
    # Squared: 225, 2500, 25, 900 of 3650, so that 2500 reaches 0.6.
    (dict(temperature=0.5, top_p=0.6), [0, 1, 0, 0]),
    (dict(temperature=0.5), np.square(P) / np.square(P).sum()),
  ],
)
def test_by_hand(settings, expected):
  np.testing.assert_allclose(kept(P, **settings), expected, atol=1e-6)
  # Each row by itself.
  rows = kept([[P[::-1], P]], **settings)
  np.testing.assert_allclose(rows[0, 1], expected, atol=1e-6)


def test_equals():
  """At the edge top k keeps all of them, top p the lower ids."""
  p = [0.1, 0.25, 0.25, 0.25, 0.15]
  third = 1 / 3
  np.testing.assert_allclose(
    kept(p, top_k=2), [0, third, third, third, 0], atol=1e-6
  )
  np.testing.assert_allclose(
    kept(p, top_p=0.49), [0, 0.5, 0.5, 0, 0], atol=1e-6
  )


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(temperature=0.0), "temperature above 0, got 0.0"),
    (dict(temperature=float("nan")), "temperature above 0, got nan"),
    (dict(temperature=1.0, top_k=0), "top_k of at least 1, got 0"),
    (dict(temperature=1.0, top_p=0.0), "top_p above 0 and at most 1, got 0"),
    (dict(temperature=1.0, top_p=1.1), "top_p above 0 and at most 1, got 1.1"),
  ],
)
def test_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    filters.check(**settings)


@pytest.fixture(scope="module", params=tiny_generation.MODELS)
def scores(request):
  """Hugging Face's probabilities by setting, and our unfiltered logits."""
  golden = tiny_generation.Golden(request.param)
  found = {kind: golden.probabilities(kind) for kind in FILTERS}
  ((prompt, _), *_) = found.values()
  tokens = np.array([prompt], np.int32)

  @jax.jit
  def start():
    hidden = golden.model.start(tokens, np.array([len(prompt)]), room=1)[0]
    return golden.model.logits(hidden)[0, 0]

  return {kind: expected for kind, (_, expected) in found.items()}, start()


@pytest.mark.parametrize("kind", FILTERS)
def test_equals_hugging_face(scores, kind):
  expected, logits = scores[0][kind], scores[1]
  left = filters.filtered(logits, **FILTERS[kind])
  found = np.asarray(jax.nn.softmax(left))
  assert ((found > 0) == (expected > 0)).all()
  np.testing.assert_allclose(found, expected, atol=1e-5)
