"""The k largest, and who wins a tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.adapters import groups as groups_lib
from sira_jax.adapters import routers, top_k


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
  for experts in (1, 2, 3, 4, 9, 16, 33, 64)
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


@pytest.mark.parametrize("experts", [9, 40])
def test_one_program_for_every_k(experts):
  q = probabilities(experts, tied=True)
  traces = []

  @jax.jit
  def mask(q, k):
    traces.append(k)
    return top_k.mask(q, k)

  for k in range(1, experts + 1):
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


def test_many_experts_are_routed_by_the_same_rule(monkeypatch):
  """Values and gradients of a routing, by k maxima and by all pairs."""
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 64)))
  settings = routers.TopK(k=4)

  def weights(logits):
    groups = groups_lib.of_batch(2, 12)
    found = routers.route(logits, settings, groups=groups)
    return (found.weights**2).sum() + found.stats.penalty, found.weights

  def both():
    return jax.jit(jax.grad(weights, has_aux=True))(logits)

  slopes, found = both()
  assert (np.asarray(found) > 0).sum(axis=-1).tolist() == [[4] * 12] * 2
  monkeypatch.setattr(top_k, "_PAIRS", 64)
  by_pairs, expected = both()
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(slopes, by_pairs)
