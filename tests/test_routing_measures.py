"""Formulas against numbers worked out by hand, or plain numpy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax import routing_measures as measures
from sira_jax.adapters import groups, routers


def test_shares():
  choices = np.array([[1, 3], [2, 0], [0, 2]])
  found = measures.shares(choices, ["a", "b", "b"], ["b", "a", "none"])
  expected = [[0.5, 0.5], [0.25, 0.75], [np.nan, np.nan]]
  np.testing.assert_array_equal(found, expected)


def test_mutual_information():
  """What the label decides, what it has no say in, and a mixture."""
  np.testing.assert_allclose(
    measures.mutual_information(np.array([np.eye(3), np.ones((3, 3))])),
    [np.log(3), 0],
    atol=1e-12,
  )
  # p = 3/8 1/8 1/8 3/8: 3/4 log(3/2) + 1/4 log(1/2).
  joint = np.array([[3, 1], [1, 3]])
  np.testing.assert_allclose(
    measures.mutual_information(joint),
    0.75 * np.log(1.5) + 0.25 * np.log(0.5),
  )


def test_the_baseline_is_that_of_all_permutations():
  """Of six examples, enumerated; examples move whole."""
  choices = np.array([[4, 0], [3, 1], [5, 1], [0, 4], [2, 2], [1, 1]])
  labels = ["a", "a", "a", "b", "b", "b"]
  each = []
  for some in itertools.combinations(range(6), 3):
    rest = [i for i in range(6) if i not in some]
    joint = np.stack([choices[list(some)].sum(0), choices[rest].sum(0)])
    each.append(float(measures.mutual_information(joint)))
  found = measures.information(
    [choices, choices[:, ::-1]],
    labels,
    strata=["one"] * 6,
    permutations=4000,
    seed=0,
  )
  np.testing.assert_allclose(found.nats, each[0])
  np.testing.assert_allclose(found.baseline, np.mean(each), rtol=0.05)
  as_much = np.mean([one >= each[0] - 1e-12 for one in each])
  np.testing.assert_allclose(found.p, as_much, atol=0.03)
  np.testing.assert_allclose(found.mean_p, as_much, atol=0.03)
  np.testing.assert_allclose(found.quantile, max(each), rtol=1e-6)


def test_labels_move_within_strata():
  """A language of one task alone: nothing is left to say for the language."""
  choices = np.array([[4, 0], [4, 0], [0, 4], [0, 4]])
  tasks = ["x", "x", "y", "y"]
  found = measures.information(
    [choices], ["en", "en", "de", "de"], strata=tasks, permutations=50, seed=0
  )
  np.testing.assert_allclose(found.nats, np.log(2))
  np.testing.assert_allclose(found.baseline, np.log(2))
  assert found.p == 1 and found.mean_p == 1


def test_what_information_refuses():
  given = dict(labels=["a", "b"], strata=["x", "x"], seed=0)
  with pytest.raises(
    ValueError, match="permutations must be at least 1, got 0"
  ):
    measures.information([np.ones((2, 3))], permutations=0, **given)
  with pytest.raises(ValueError, match="no choices"):
    layers = [np.ones((2, 3)), np.zeros((2, 4))]
    measures.information(layers, permutations=1, **given)


@functools.partial(jax.jit, static_argnames="settings")
def stats_of(logits, ids, settings):
  with ambient.SEGMENTS(ambient.Segments(ids, packed=False)):
    own = groups.of_batch(*ids.shape)
    return routers.route(logits, settings, groups=own).stats


@pytest.mark.parametrize(
  "limit",
  [
    dict(capacity=3, priority="position"),
    dict(capacity_factor=1.1, priority="choice"),
    dict(capacity_factor=1.1, priority="probability"),
    {},
  ],
  ids=str,
)
def test_turned_away_is_what_training_drops(limit):
  rng = np.random.default_rng(0)
  ids = (np.arange(16) < np.array([[16], [9], [5]])).astype(np.int32)
  logits = jnp.asarray(rng.normal(size=(3, 16, 5)), jnp.float32)
  limited, free = (
    stats_of(logits, jnp.asarray(ids), routers.TopK(k=2, **settings))
    for settings in (limit, {})
  )
  found = measures.turned_away(
    np.asarray(free.load),
    np.asarray(free.tokens),
    k=2,
    capacity=limit.get("capacity"),
    capacity_factor=limit.get("capacity_factor"),
  )
  expected = float(limited.dropped.sum() / limited.chosen.sum())
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert (found > 0) == bool(limit)


def test_similarity_is_that_of_the_weights():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(7, 4, 2)), rng.normal(size=(4, 2, 5))
  a[:, 3], b[3] = a[:, 0], -2 * b[0]  # the opposite
  b[1] = 0
  weights = [(a[:, e] @ b[e]).ravel() for e in range(4)]
  found = measures.similarity(a, b)
  for e, g in itertools.product((0, 2, 3), repeat=2):
    one, other = weights[e], weights[g]
    cosine = one @ other / np.sqrt((one @ one) * (other @ other))
    np.testing.assert_allclose(found[e, g], cosine, atol=1e-12)
  np.testing.assert_allclose(found[0, 3], -1)
  assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()


def test_distances_and_clusters():
  # Three labels; in the second layer all are alike, so that half is left.
  first = np.array([[1.0, 0.0, 0.0], [0.0, 0.6, 0.4], [0.8, 0.2, 0.0]])
  between = measures.distances([first, np.full((3, 2), 0.5)])
  expected = np.array([[0, 1, 0.2], [1, 0, 0.8], [0.2, 0.8, 0]]) / 2
  np.testing.assert_allclose(between, expected, atol=1e-12)
  merges = measures.clusters(between)
  # 0 and 2 at 0.1; then 1, at the mean of 0.5 and 0.4.
  np.testing.assert_allclose(merges[:, 2], [0.1, 0.45])
  assert set(merges[0, :2]) == {0, 2}
  # 2 is the nearer one to 1, and so stands beside it.
  assert measures.leaves(merges) in ([0, 2, 1], [1, 2, 0])
  with pytest.raises(ValueError, match="two labels at least, got 1"):
    measures.clusters(between[:1, :1])
