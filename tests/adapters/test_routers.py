"""Routing by hand, of three tokens and three experts where it can be."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import draws, groups, routers
from sira_jax.adapters.variables import AdapterConstant, AdapterParam
from tests.adapters import loop

# p of tokens 0, 1, 2 (rows) and experts 0, 1, 2.
P = np.array([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.4, 0.35, 0.25]])


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


def test_renormalised():
  # As above, divided by 0.5 + 0.3, 0.6 + 0.3 and 0.4 + 0.35: by what a token
  # chose, though token 2 was turned away by expert 0.
  routing = routed(P, k=2, capacity_factor=1.0, renormalise=True)
  expected = [[5 / 8, 3 / 8, 0], [6 / 9, 0, 3 / 9], [0, 35 / 75, 0]]
  np.testing.assert_allclose(weights(routing), expected, rtol=1e-6)


RANDOM = np.random.default_rng(2).dirichlet(np.ones(4), (2, 8))


@pytest.mark.parametrize(
  "settings, causal",
  [
    (dict(), True),
    (dict(renormalise=True), True),
    (dict(capacity=1, k=1), True),
    (dict(capacity=2, priority="position"), True),
    (dict(capacity=2, priority="position", renormalise=True), True),
    (dict(capacity=2), False),
    (dict(capacity=2, priority="probability"), False),
    (dict(capacity_factor=0.5, priority="position"), False),
  ],
  ids=str,
)
def test_a_limit_shows_the_future(settings, causal):
  """Whether tokens are routed alike, come what may after them, or nothing."""
  settings = dict(k=2) | settings
  whole = weights(routed(RANDOM[0], **settings))
  same = True
  for now in range(1, 8):
    other = np.concatenate([RANDOM[0, :now], RANDOM[1, now:]])
    for later in (
      routed(other, **settings),
      routed(other, real=np.arange(8) < now, **settings),
    ):
      same &= (weights(later)[:now] == whole[:now]).all()
  assert same == causal


def test_all_tokens_to_one_expert():
  # ceil(1 * 1 * 3 / 3) = 1 place; the first token has it.
  p = [[0.98, 0.01, 0.01]] * 3
  routing = routed(p, k=1, capacity_factor=1.0)
  np.testing.assert_allclose(
    weights(routing), [[0.98, 0, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6
  )
  assert routing.stats.load.tolist() == [[1, 0, 0]]
  assert routing.stats.dropped.tolist() == [2]


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


def test_balance_of_what_is_served():
  # As in test_capacity, 2, 2 and 1 of the 3 tokens:
  # 3 / 2 * (2/3 * 0.5 + 2/3 * 0.25 + 1/3 * 0.25) = 0.875
  stats = routed(P, k=2, capacity_factor=1.0, balance_served=True).stats
  np.testing.assert_allclose(stats.balance_loss, 0.875, rtol=1e-5)


@pytest.mark.parametrize(
  "real, expected", [([1, 1, 1], 5 / 3), ([1, 1, 0], 1 / 2)]
)
def test_z_loss(real, expected):
  # logsumexp of the logits is 0, 1 and 2.
  p = P * np.exp([[0.0], [1.0], [2.0]])
  settings = dict(k=2, balance_coefficient=0.5, z_coefficient=0.1)
  stats = routed(p, real=real, **settings).stats
  penalty = 0.5 * stats.balance_loss + 0.1 * expected
  np.testing.assert_allclose(stats.penalty, penalty, rtol=1e-5)


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
  "settings, message",
  [
    (dict(k=0), "k must be at least 1"),
    (dict(k=1, capacity_factor=1.0, capacity=2), "not both"),
    (dict(k=1, capacity_factor=0.0), "capacity_factor must be"),
    (dict(k=1, capacity_factor=float("inf")), "capacity_factor must be"),
    (dict(k=1, capacity=0), "capacity must be at least 1"),
    (dict(k=1, expert_dropout=1.0), "expert_dropout must be in"),
    (dict(k=1, expert_dropout=-0.1), "expert_dropout must be in"),
    (dict(k=2, first_k=0), "first_k must be from 1 to k = 2"),
    (dict(k=2, first_k=3), "first_k must be from 1 to k = 2"),
    (dict(k=1, level="row"), "Unknown level 'row'; there are token, example"),
    (
      dict(k=1, priority="first"),
      "Unknown priority 'first'; there are choice, position, probability",
    ),
    (dict(k=2, first_k=1, capacity=1), "is for a constant k.*first_k=1"),
    (dict(k=2, first_k=2, capacity_factor=1.0), "is for a constant k"),
    (dict(k=1, level="example", capacity=1), "routing by token.*'example'"),
    (dict(k=1, level="example", capacity_factor=1.0), "routing by token"),
  ],
)
def test_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    routers.TopK(**settings)


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


# Routers, of random tokens.
RATE, SHAPE, SEED = 0.25, (8, 64, 4), 1
X = np.random.default_rng(0).normal(size=(*SHAPE[:2], 5)).astype(np.float32)


def router(**settings):
  settings = routers.TopK(**(dict(k=SHAPE[2]) | settings))
  return routers.Router(
    X.shape[2], SHAPE[2], settings, key=jax.random.key(0), seed=SEED
  )


@nnx.jit
def with_key(router, key=None):
  with ambient.DROPOUT_KEY(key):
    return router(X)


def probabilities(router, x):
  return loop.softmax(x @ np.asarray(router.kernel, np.float64))


def test_a_router_drops_by_its_seed():
  # With k = experts a weight is zero where it is dropped, and only there.
  key = jax.random.key(3)
  with ambient.DROPOUT_KEY(key):
    keep = draws.keep(SHAPE, RATE, SEED)
  dropping = router(expert_dropout=RATE)
  expected = np.where(keep, probabilities(dropping, X) / (1 - RATE), 0)
  found = with_key(dropping, key).weights
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_expert_dropout_needs_a_key():
  with pytest.raises(ValueError, match="DROPOUT_KEY"):
    router(expert_dropout=RATE)(X)


def test_evaluation_has_no_dropout_and_no_capacity():
  strict = router(k=2, capacity=1, expert_dropout=RATE)
  found = with_key(strict, jax.random.key(0)).weights
  assert (np.asarray(found) > 0).sum() <= 32
  strict.eval()
  free = np.asarray(with_key(strict).weights)
  assert ((free > 0).sum(axis=-1) == 2).all()
  strict.train()
  with pytest.raises(ValueError, match="DROPOUT_KEY"):
    strict(X)


@pytest.mark.parametrize(
  "trained, kind", [(True, AdapterParam), (False, AdapterConstant)]
)
def test_a_frozen_router_is_a_constant(trained, kind):
  assert type(router(trained=trained).kernel) is kind


def test_more_choices_than_experts_are_refused():
  with pytest.raises(ValueError, match=r"k = 5 exceeds .* experts, 4"):
    router(k=5)


def test_k_grows():
  growing = router(first_k=1)
  logits = X.astype(np.float64) @ np.asarray(growing.kernel)
  traces = []

  @nnx.jit
  def at(router, progress):
    traces.append(progress)
    with ambient.PROGRESS(progress):
      return router(X)

  # round(1 + 3 progress); halves go to the even number.
  for progress, k in [
    (0.0, 1),
    (0.1, 1),
    (0.2, 2),
    (0.5, 2),
    (0.6, 3),
    (0.83, 3),
    (0.999, 4),
  ]:
    found = at(growing, np.float32(progress))
    constant = routers.TopK(k=k)
    expected = loop.route(logits, constant, ids=np.ones(SHAPE[:2], int))
    np.testing.assert_allclose(found.weights, expected["weights"], rtol=1e-5)
    np.testing.assert_allclose(
      found.stats.balance_loss, expected["balance"], rtol=1e-5
    )
  assert len(traces) == 1


def test_a_growing_k_needs_progress():
  growing = router(k=3, first_k=1)
  with pytest.raises(ValueError, match=r"k grows from 1 to 3.*PROGRESS"):
    growing(X)
  growing.eval()
  assert ((np.asarray(with_key(growing).weights) > 0).sum(axis=-1) == 3).all()
