"""Who is served, of three tokens and three experts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import capacity, groups

# q of tokens 0, 1, 2 (rows): each wants experts 0 and 1.
Q = np.array([[0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])


@functools.partial(jax.jit, static_argnames=("k", "priority"))
def _serve(q, ids, limit, k, priority):
  with ambient.SEGMENTS(ambient.Segments(ids, packed=False)):
    groups_of = groups.of_batch(*ids.shape)
  return capacity.serve(
    q,
    k,
    eligible=(q > 0) & groups_of.real[..., None],
    limit=jnp.full((1, 1, 1), limit),
    groups=groups_of,
    priority=priority,
  )


def serve(q, limit, *, k=2, priority="choice", real=None):
  """served [length experts] as lists of 0 and 1, after chosen and total."""
  real = np.ones(len(q), int) if real is None else np.asarray(real)
  found = _serve(np.float32(q)[None], real[None], limit, k, priority)
  chosen, served, total = (np.asarray(x[0]).astype(int) for x in found)
  assert not (served & ~chosen).any()
  np.testing.assert_array_equal(total, chosen.sum(axis=0, keepdims=True))
  return chosen.tolist(), served.tolist()


@pytest.mark.parametrize(
  "priority, limit, expected",
  [
    # First choices: 0 and 1 have the one place of their expert, 2 has not.
    ("choice", 1, [[1, 0, 0], [0, 1, 0], [0, 0, 0]]),
    # Token 0 takes both places.
    ("position", 1, [[1, 1, 0], [0, 0, 0], [0, 0, 0]]),
    # In the order 2 (0.7), 1 (0.6), 0 (0.5), first choices.
    ("probability", 1, [[0, 0, 0], [0, 1, 0], [1, 0, 0]]),
    # All first choices, which fill expert 0; then token 0 has the last of 1.
    ("choice", 2, [[1, 1, 0], [0, 1, 0], [1, 0, 0]]),
    ("position", 2, [[1, 1, 0], [1, 1, 0], [0, 0, 0]]),
    # All first choices, and the last place of 1 is token 2's.
    ("probability", 2, [[1, 0, 0], [0, 1, 0], [1, 1, 0]]),
  ],
)
def test_priorities(priority, limit, expected):
  chosen, served = serve(Q, limit, priority=priority)
  assert served == expected
  assert chosen == [[1, 1, 0]] * 3


@pytest.mark.parametrize("priority", capacity.PRIORITIES)
def test_enough_places(priority):
  chosen, served = serve(Q, 3, priority=priority)
  assert served == chosen == [[1, 1, 0]] * 3


@pytest.mark.parametrize("priority", capacity.PRIORITIES)
def test_ties_are_served_from_left_to_right(priority):
  # All want expert 0, and 0 before 1.
  _, served = serve(np.full((3, 3), 1 / 3), 2, k=1, priority=priority)
  assert served == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("priority", capacity.PRIORITIES)
def test_padding_takes_no_place(priority):
  q = np.concatenate([[[0.9, 0.1, 0.0]], Q, [[0.8, 0.1, 0.1]]])
  chosen, served = serve(q, 2, priority=priority, real=[0, 1, 1, 1, 0])
  alone = serve(Q, 2, priority=priority)
  assert (chosen[1:4], served[1:4]) == alone
  assert not np.any([chosen[0], chosen[4], served[0], served[4]])


@pytest.mark.parametrize("priority", capacity.PRIORITIES)
def test_dropped_experts_take_no_place(priority):
  # Token 0 has lost expert 0, whose one place is token 1's, and token 2 all.
  q = [[0.0, 0.8, 0.0], [0.6, 0.0, 0.2], [0.0, 0.0, 0.0]]
  chosen, served = serve(q, 1, priority=priority)
  assert chosen == served == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
  "limit, tokens, experts, k, expected",
  [
    # In floats 1.1 * 10 is 11.000000000000002, whose ceiling is 12.
    (dict(capacity_factor=1.1), 10, 1, 1, 11),
    # 0.7 * 3 * 10 / 3 is 6.999999999999999 or 7, 0.07 * 100 7.000000000000001.
    (dict(capacity_factor=0.7), 10, 3, 3, 7),
    (dict(capacity_factor=0.07), 100, 1, 1, 7),
    (dict(capacity_factor=1.0), 4, 3, 2, 3),
    (dict(capacity_factor=0.01), 1, 16, 2, 1),
    (dict(capacity_factor=2.0), 0, 3, 2, 0),
    (dict(capacity_factor=1), 3, 3, 2, 2),
    (dict(capacity_factor=1e-05), 3, 3, 2, 1),
    (dict(capacity=5), 3, 4, 2, 5),
    (dict(capacity=5), 9, 4, 2, 5),
  ],
)
def test_places(limit, tokens, experts, k, expected):
  limit = dict(capacity=None, capacity_factor=None) | limit
  found = capacity.places(tokens, experts, k, **limit)
  assert len(found) == tokens + 1
  assert found[tokens] == expected


def test_no_limit_has_no_places():
  assert capacity.places(10, 4, 1, capacity=None, capacity_factor=None) is None
