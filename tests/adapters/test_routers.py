"""Routing by hand, of three tokens and three experts where it can be."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import groups, routers

# p of tokens 0, 1, 2 (rows) and experts 0, 1, 2.
P = np.array([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.4, 0.35, 0.25]])
SECOND_WANTS_FIRST = np.array([[0.5, 0.4, 0.1], [0.3, 0.6, 0.1]])


@functools.partial(jax.jit, static_argnames="settings")
def _routed(logits, ids, keep, settings):
  with ambient.SEGMENTS(ambient.Segments(ids, packed=False)):
    return routers.route(
      logits, settings, groups=groups.of_batch(*ids.shape), keep=keep
    )


def routed(p, *, keep=None, real=None, **settings):
  """The routing of one example with probabilities p [length experts]."""
  real = np.ones(len(p), int) if real is None else np.asarray(real)
  keep = None if keep is None else np.asarray(keep, bool)[None]
  logits = np.log(np.float32(p))[None]
  return _routed(logits, real[None], keep, routers.TopK(**settings))


def weights(routing):
  return np.asarray(routing.weights[0])


def test_top_k():
  routing = routed(P, k=2)
  expected = [[0.5, 0.3, 0], [0.6, 0, 0.3], [0.4, 0.35, 0]]
  np.testing.assert_allclose(weights(routing), expected, rtol=1e-6)
  assert routing.stats.load.tolist() == [[3, 2, 1]]
  assert routing.stats.chosen.tolist() == [6]
  assert routing.stats.dropped.tolist() == [0]
  assert routing.stats.tokens.tolist() == [3]


def test_capacity():
  # ceil(1 * 2 * 3 / 3) = 2 places each. First choices: expert 0 takes tokens
  # 0 and 1 and is full for token 2. Second choices: expert 1 takes tokens 0
  # and 2, expert 2 takes token 1.
  routing = routed(P, k=2, capacity_factor=1.0)
  expected = [[0.5, 0.3, 0], [0.6, 0, 0.3], [0, 0.35, 0]]
  np.testing.assert_allclose(weights(routing), expected, rtol=1e-6)
  assert routing.stats.load.tolist() == [[2, 2, 1]]
  assert routing.stats.dropped.tolist() == [1]
  assert routing.slots == 2


def test_capacity_exactly_full():
  # Experts 0, 1, 2 are chosen by tokens 0 1, 0 2, 1 2: ceil(2 * 3 / 3) = 2.
  p = np.array([[0.5, 0.3, 0.2], [0.5, 0.2, 0.3], [0.2, 0.5, 0.3]])
  routing = routed(p, k=2, capacity_factor=1.0)
  assert routing.stats.load.tolist() == [[2, 2, 2]]
  assert routing.stats.dropped.tolist() == [0]


def test_first_choices_come_before_second():
  # One place each. Expert 1 is token 0's second choice and token 1's first.
  routing = routed(SECOND_WANTS_FIRST, k=2, capacity=1)
  np.testing.assert_allclose(
    weights(routing), [[0.5, 0, 0], [0, 0.6, 0]], rtol=1e-6
  )
  assert routing.stats.dropped.tolist() == [2]


@pytest.mark.parametrize(
  "limit, causal", [({}, True), ({"capacity": 1}, False)]
)
def test_a_limit_shows_the_future(limit, causal):
  """Token 0's second expert is the first choice of a later token, or not."""
  later = SECOND_WANTS_FIRST.copy()
  later[1] = [0.1, 0.3, 0.6]
  one, other = (
    weights(routed(p, k=2, **limit))[0] for p in (SECOND_WANTS_FIRST, later)
  )
  assert (one == other).all() == causal


def test_all_tokens_to_one_expert():
  # ceil(1 * 1 * 3 / 3) = 1 place; the first token has it.
  p = [[0.98, 0.01, 0.01]] * 3
  routing = routed(p, k=1, capacity_factor=1.0)
  np.testing.assert_allclose(
    weights(routing), [[0.98, 0, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6
  )
  assert routing.stats.load.tolist() == [[1, 0, 0]]
  assert routing.stats.dropped.tolist() == [2]


def test_ties_go_to_the_lower_expert():
  routing = routed(np.full((3, 3), 1 / 3), k=2)
  assert weights(routing).astype(bool).tolist() == [[True, True, False]] * 3


@pytest.mark.parametrize(
  "p, k, expected",
  [
    # 3 / 2 * (3/3 * 0.5 + 2/3 * 0.25 + 1/3 * 0.25) = 1.125
    (P, 2, 1.125),
    # Uniform p: 3 / 2 * (sum of c_e / S = 2) / 3 = 1, whoever is chosen.
    (np.full((3, 3), 1 / 3), 2, 1.0),
    # All of p on k experts: experts / k.
    ([[1 - 2e-9, 1e-9, 1e-9]] * 3, 1, 3.0),
    ([[0.5, 0.5, 1e-9]] * 3, 2, 1.5),
  ],
  ids=["by hand", "uniform", "one expert", "two experts"],
)
def test_balance_loss(p, k, expected):
  stats = routed(p, k=k, balance_coefficient=0.5).stats
  np.testing.assert_allclose(stats.balance_loss, expected, rtol=1e-5)
  np.testing.assert_allclose(stats.penalty, expected / 2, rtol=1e-5)


def test_balance_is_counted_before_capacity():
  stats = routed(P, k=2, capacity=1).stats
  assert stats.dropped.tolist() == [3]
  np.testing.assert_allclose(stats.balance_loss, 1.125, rtol=1e-5)


def test_balance_has_no_gradient_through_the_counts():
  def loss(p):
    values = jnp.log(p)[None]
    group = groups.of_batch(1, 3)
    return routers.route(
      values, routers.TopK(k=2), groups=group
    ).stats.balance_loss

  # d/dp = 3 / 2 * share / 3, share = (1, 2/3, 1/3), less its mean under p,
  # as the softmax of log p is p / sum(p).
  share = np.array([1, 2 / 3, 1 / 3]) / 2
  expected = share - (P * share).sum(axis=1, keepdims=True)
  got = jax.jit(jax.grad(loss))(jnp.float32(P))
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_padding_changes_nothing(first):
  alone = routed(P, k=2, capacity_factor=1.0)
  other = [[0.9, 0.05, 0.05]] * 3
  p = np.concatenate([other, P] if first else [P, other])
  real = [0, 0, 0, 1, 1, 1] if first else [1, 1, 1, 0, 0, 0]
  padded = routed(p, real=real, k=2, capacity_factor=1.0)
  kept = np.asarray(real, bool)
  assert (weights(padded)[kept] == weights(alone)).all()
  assert not weights(padded)[~kept].any()
  for name, value in vars(alone.stats).items():
    np.testing.assert_allclose(getattr(padded.stats, name), value, rtol=1e-6)


def test_entropy():
  expected = -(P * np.log(P)).sum()
  np.testing.assert_allclose(routed(P, k=2).stats.entropy, [expected], 1e-6)


@pytest.mark.parametrize(
  "settings, tokens, experts, expected",
  [
    # In floats 1.1 * 10 is 11.000000000000002, whose ceiling is 12.
    (dict(k=1, capacity_factor=1.1), 10, 1, 11),
    # 0.7 * 3 * 10 / 3 is 6.999999999999999 or 7, 0.07 * 100 7.000000000000001.
    (dict(k=3, capacity_factor=0.7), 10, 3, 7),
    (dict(k=1, capacity_factor=0.07), 100, 1, 7),
    (dict(k=2, capacity_factor=1.0), 4, 3, 3),
    (dict(k=2, capacity_factor=0.01), 1, 16, 1),
    (dict(k=2, capacity_factor=2.0), 0, 3, 0),
    (dict(k=2, capacity=5), 3, 4, 5),
  ],
)
def test_places(settings, tokens, experts, expected):
  found = routers.places(routers.TopK(**settings), tokens, experts)
  assert len(found) == tokens + 1
  assert found[tokens] == expected


def test_no_limit_has_no_places():
  assert routers.places(routers.TopK(k=1), 10, 4) is None


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(k=0), "k must be at least 1"),
    (dict(k=1, capacity_factor=1.0, capacity=2), "not both"),
    (dict(k=1, capacity_factor=0.0), "capacity_factor must be"),
    (dict(k=1, capacity_factor=float("inf")), "capacity_factor must be"),
    (dict(k=1, capacity=0), "capacity must be at least 1"),
    (dict(k=1, expert_dropout=1.0), "expert_dropout must be in"),
  ],
)
def test_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    routers.TopK(**settings)


# Expert dropout. With k = experts, a token's weight is zero where it is
# dropped, and only there.
RATE, SHAPE = 0.25, (8, 64, 4)


def router(seed=1, **settings):
  settings = dict(k=SHAPE[2], expert_dropout=RATE) | settings
  return routers.Router(
    5, SHAPE[2], routers.TopK(**settings), key=jax.random.key(0), seed=seed
  )


X = np.random.default_rng(0).normal(size=(*SHAPE[:2], 5)).astype(np.float32)


@nnx.jit
def with_key(router, key):
  with ambient.DROPOUT_KEY(key):
    return router(X).weights


def dropped(seed, key):
  return np.asarray(with_key(router(seed), jax.random.key(key)) == 0)


def test_expert_dropout_has_its_rate():
  mask = dropped(seed=1, key=0)
  # 4 standard deviations: sqrt(0.25 * 0.75 / n), n = 2048 and 512.
  assert abs(mask.mean() - RATE) < 0.039
  np.testing.assert_allclose(mask.mean(axis=(0, 1)), RATE, atol=0.077)


@pytest.mark.parametrize("seed, key", [(2, 0), (1, 1)])
def test_expert_dropout_differs_by_site_and_by_key(seed, key):
  one, other = dropped(1, 0), dropped(seed, key)
  # Independent masks agree with chance 0.25^2 + 0.75^2; sd 0.011.
  assert abs((one == other).mean() - 0.625) < 0.044
  np.testing.assert_array_equal(one, dropped(1, 0))


def test_expert_dropout_differs_by_position():
  mask = dropped(1, 0)
  assert abs((mask[1:] == mask[:-1]).mean() - 0.625) < 0.05
  assert abs((mask[:, 1:] == mask[:, :-1]).mean() - 0.625) < 0.05
  assert abs((mask[..., 1:] == mask[..., :-1]).mean() - 0.625) < 0.05


def test_dropped_experts_take_no_capacity():
  # Expert 0 is dropped for token 0, so its one place is token 1's; token 0's
  # first choice is then expert 1. The rest is divided by 1 - 0.5.
  p = np.array([[0.5, 0.4, 0.1], [0.6, 0.3, 0.1]])
  keep = [[False, True, True], [True, True, True]]
  routing = routed(p, keep=keep, k=1, capacity=1, expert_dropout=0.5)
  np.testing.assert_allclose(
    weights(routing), [[0, 0.8, 0], [1.2, 0, 0]], rtol=1e-6
  )
  assert routing.stats.dropped.tolist() == [0]


def test_a_token_may_lose_all_its_experts():
  keep = [[False] * 3, [True] * 3, [True] * 3]
  routing = routed(P, keep=keep, k=2, expert_dropout=0.5)
  assert not weights(routing)[0].any()
  assert routing.stats.chosen.tolist() == [4]


def test_expert_dropout_needs_a_key():
  with pytest.raises(ValueError, match="DROPOUT_KEY"):
    router()(X)


def test_evaluation_has_no_dropout_and_no_capacity():
  strict = router(k=2, capacity=1)
  assert (np.asarray(with_key(strict, jax.random.key(0))) > 0).sum() <= 32
  strict.eval()
  free = np.asarray(nnx.jit(lambda router: router(X).weights)(strict))
  assert ((free > 0).sum(axis=-1) == 2).all()
  strict.train()
  with pytest.raises(ValueError, match="DROPOUT_KEY"):
    strict(X)


def test_segments_of_another_shape_are_refused():
  ids = jnp.ones((8, 3), int)
  with (
    ambient.SEGMENTS(ambient.Segments(ids, packed=False)),
    pytest.raises(ValueError, match=r"\[8, 64\].*\[8, 3\]"),
  ):
    router(expert_dropout=0.0)(X)
