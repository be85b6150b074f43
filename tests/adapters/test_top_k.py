"""The k largest, and who wins a tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.adapters import top_k


def ranked(q):
  """The experts of each token from the most probable, ties to the lower."""
  return np.argsort(-q, axis=-1, kind="stable")


def largest(q, k):
  marks = np.zeros(q.shape, bool)
  np.put_along_axis(marks, ranked(q)[..., :k], True, axis=-1)
  return marks


def probabilities(experts, tied):
  rng = np.random.default_rng(experts)
  if tied:  # zeros among them, as of dropped experts
    return rng.integers(0, 4, (2, 40, experts)).astype(np.float32) / 8
  return rng.dirichlet(np.ones(experts), (2, 40)).astype(np.float32)


SIZES = [
  (experts, k)
  for experts in (1, 2, 3, 4, 9, 16)
  for k in sorted({1, 2, 3, experts - 1, experts})
  if 1 <= k <= experts
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("experts, k", SIZES)
def test_mask_and_choices(experts, k, tied):
  q = probabilities(experts, tied)
  expected = largest(q, k)
  np.testing.assert_array_equal(top_k.mask(q, k), expected)
  np.testing.assert_array_equal(top_k.mask(q, jnp.int32(k)), expected)
  choices = np.asarray(top_k.choices(q, k))
  np.testing.assert_array_equal(choices.any(axis=0), expected)
  # The j-th marks the j-th best alone.
  assert (choices.sum(axis=-1) == 1).all()
  best = np.moveaxis(choices.argmax(axis=-1), 0, -1)
  np.testing.assert_array_equal(best, ranked(q)[..., :k])


def test_one_program_for_every_k():
  q = probabilities(9, tied=True)
  traces = []

  @jax.jit
  def mask(q, k):
    traces.append(k)
    return top_k.mask(q, k)

  for k in range(1, 10):
    np.testing.assert_array_equal(mask(q, jnp.int32(k)), largest(q, k))
  assert len(traces) == 1


@pytest.mark.parametrize("experts, near", [(2, 1), (4, 3), (16, 15)])
def test_near_ties_go_to_the_lower_expert(experts, near):
  """Values that differ in the index's bits alone tie; one more is larger."""
  q = np.full((1, 2, experts), 0.25, np.float32)
  bits = q.view(np.int32)
  bits[0, 0, -1] += near
  bits[0, 1, -1] += near + 1
  for mask in (top_k.mask(q, 1), top_k.choices(q, 1)[0]):
    assert np.asarray(mask).argmax(axis=-1).tolist() == [[0, experts - 1]]
