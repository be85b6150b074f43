"""Routing by example: all its tokens go where their mean goes."""

import functools

from flax import nnx
import jax
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import groups, routers
from tests.adapters import loop, test_routers

RATE, SHAPE, X = test_routers.RATE, test_routers.SHAPE, test_routers.X

# Padding before, between and after examples.
IDS = np.zeros(SHAPE[:2], int)
IDS[0], IDS[1, :9], IDS[2, 5:20], IDS[3, :1] = 1, 1, 1, 1
PACKED = IDS.copy()
PACKED[4, :30], PACKED[4, 30:31], PACKED[4, 31:] = 1, 2, 3
PACKED[5, 3:30], PACKED[5, 33:60] = 1, 2
LAYOUTS = pytest.mark.parametrize(
  "ids, packed", [(IDS, False), (PACKED, True)], ids=["padded", "packed"]
)


@functools.partial(nnx.jit, static_argnames=("packed", "decoding"))
def of_examples(router, x, ids, packed, key=None, decoding=False):
  with (
    ambient.SEGMENTS(ambient.Segments(ids, packed)),
    ambient.DROPOUT_KEY(key),
    ambient.DECODING(decoding),
  ):
    return router(x)


@LAYOUTS
def test_all_tokens_go_where_their_mean_goes(ids, packed):
  routing = test_routers.router(k=2, level="example")
  found = np.asarray(of_examples(routing, X, ids, packed).weights)
  for row, tokens in loop.examples(ids):
    p = test_routers.probabilities(routing, X[row, tokens].mean(0))
    p[np.argsort(p)[:2]] = 0
    np.testing.assert_allclose(
      found[row, tokens], np.tile(p, (len(tokens), 1)), rtol=1e-5
    )
  assert not found[ids == 0].any()


@LAYOUTS
def test_padding_is_no_part_of_the_mean(ids, packed):
  routing = test_routers.router(k=2, level="example", z_coefficient=1.0)
  other = np.where((ids > 0)[..., None], X, 100 + X)
  one, two = (of_examples(routing, x, ids, packed) for x in (X, other))
  np.testing.assert_array_equal(one.weights, two.weights)
  for name, value in vars(one.stats).items():
    np.testing.assert_array_equal(getattr(two.stats, name), value, name)


@LAYOUTS
def test_an_example_drops_experts_once(ids, packed):
  routing = test_routers.router(level="example", expert_dropout=RATE)
  key = jax.random.key(0)
  mask = np.asarray(of_examples(routing, X, ids, packed, key).weights) == 0
  first = []
  for row, tokens in loop.examples(ids):
    assert (mask[row, tokens] == mask[row, tokens[:1]]).all()
    first.append(tuple(mask[row, tokens[0]]))
  assert len(set(first)) > 1


def test_examples_drop_experts_at_the_rate():
  # 512 examples of one token; 4 standard deviations: sqrt(0.25 * 0.75 / 2048).
  routing = test_routers.router(level="example", expert_dropout=RATE)
  x = X.reshape(-1, 1, X.shape[2])
  ids, key = np.ones(x.shape[:2], int), jax.random.key(0)
  mask = np.asarray(of_examples(routing, x, ids, False, key).weights) == 0
  assert abs(mask.mean() - RATE) < 0.039


@pytest.mark.parametrize(
  "lengths, p, k, expected",
  [
    # Three examples are routed as the tokens of P, each of which counts once:
    # 3 / 2 * (3/3 * 0.5 + 2/3 * 0.25 + 1/3 * 0.25) = 1.125
    ((3, 1, 2), test_routers.P, 2, 1.125),
    # An expert for each example: uniform, though each is all on one.
    ((1, 2, 3), 0.1 + 0.7 * np.eye(3), 1, 1.0),
    # 3 / 1 * 3/3 * 0.8
    ((1, 2, 3), [[0.8, 0.1, 0.1]] * 3, 1, 2.4),
  ],
  ids=["by hand", "uniform", "one expert"],
)
def test_balance_counts_examples(lengths, p, k, expected):
  ids = np.repeat([1, 2, 3, 0], [*lengths, 2])[None]
  p = np.concatenate([p, [[0.6, 0.3, 0.1]]])[ids - 1]
  settings = routers.TopK(k=k, level="example")

  @jax.jit
  def balance(logits, ids):
    with ambient.SEGMENTS(ambient.Segments(ids, packed=True)):
      groups_of = groups.of_batch(*ids.shape)
    return routers.route(logits, settings, groups=groups_of).stats.balance_loss

  found = balance(np.log(np.float32(p)), ids)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_decoding_by_example_is_refused(deterministic):
  refused = test_routers.router(k=2, level="example")
  refused.set_attributes(deterministic=deterministic)
  with pytest.raises(ValueError, match='use level="token"'):
    of_examples(refused, X, IDS, False, decoding=True)
  of_examples(test_routers.router(k=2), X, IDS, False, decoding=True)
