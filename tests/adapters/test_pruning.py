"""Pruned models compute what they did before, with less."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.adapters import pruning, surgery
from sira_jax.adapters.variables import Trainable
from tests import tiny

# Live ranks of the four sites; the last site loses its adapter.
LIVE = [[0, 2, 3], [1], [0, 1, 2, 3], []]
SIRA = dict(experts=3, rank=4, k=2, gate=1.0, expert_dropout=0.0)


@nnx.jit
def logits(model, batch):
  features = {name: batch[name] for name in model.FEATURES if name in batch}
  return model(**features)


def adapters(model):
  return [
    module.adapter
    for _, module in nnx.iter_modules(model)
    if isinstance(module, surgery.Adapted)
  ]


def gated(method, gates, **settings):
  """A trained-looking model with these gates, [site] or [site][expert]."""
  model = tiny.adapted(method, **settings)
  tiny.randomize(model)
  rng = np.random.default_rng(1)
  for adapter, live in zip(adapters(model), gates, strict=True):
    g = np.zeros(adapter.g.shape, np.float32)
    for expert, ranks in enumerate(live):
      g[expert, ranks] = rng.choice([-1, 1], len(ranks)) * rng.uniform(
        0.5, 2, len(ranks)
      )
    adapter.g[...] = jnp.asarray(g)
  model.eval()
  return model


def close(got, expected):
  got, expected = np.asarray(got), np.asarray(expected)
  np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("fold", [True, False])
def test_sora(fold):
  model = gated("sora", [[live] for live in LIVE], rank=4, alpha=3.0)
  before = logits(model, tiny.batch())
  assert np.abs(before - logits(tiny.base(), tiny.batch())).max() > 0.1
  assert [n for n, _ in pruning.remaining(model).values()] == [3, 1, 4, 0]
  parameters = sum(site.parameters for site in surgery.sites(model))
  flops = sum(s.factory.flops(*s.shape) for s in surgery.sites(model))
  sites = pruning.prune(model, fold=fold)
  close(logits(model, tiny.batch()), before)
  assert [site.factory.rank for site in sites] == [3, 1, 4]
  assert {site.factory.method for site in sites} == {"lora" if fold else "sora"}
  assert {site.factory.scale for site in sites} == {0.75}
  assert len(adapters(model)) == 3
  left = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, Trainable)))
  gates = 0 if fold else 3 + 1 + 4
  # 24 -> 16, 16 -> 8, 24 -> 16.
  wanted = gates + 3 * 40 + 1 * 24 + 4 * 40
  assert left == wanted == sum(site.parameters for site in sites)
  assert left < parameters
  assert sum(site.factory.flops(*site.shape) for site in sites) < flops
  if fold:
    assert all(adapter.g is None for adapter in adapters(model))
    surgery.merge(model)
    close(logits(model, tiny.batch()), before)


@pytest.mark.parametrize("execution", ["rank_space", "dispatch"])
@pytest.mark.parametrize("fold", [True, False])
def test_ranks_and_experts_of_a_mixture(execution, fold):
  """The second of three experts dies; the others keep 2 and 1 of 4 ranks."""
  gates = [[[1, 3], [], [0]]] * 3 + [[[], [], []]]
  model = gated("sira", gates, execution=execution, **SIRA)
  before = logits(model, tiny.batch())
  sites = pruning.prune(model, fold=fold)
  close(logits(model, tiny.batch()), before)
  for adapter in adapters(model):
    assert adapter.A.shape[1:] == (2, 2)
    assert adapter.B.shape[:2] == (2, 2)
    assert adapter.router.kernel.shape[1] == 3
    assert adapter.factory.live == (0, 2)
  leaves = jax.tree.leaves(nnx.state(model, Trainable))
  assert sum(leaf.size for leaf in leaves) == sum(s.parameters for s in sites)
  assert all(site.factory.active(16, 8) < 200 for site in sites)


def test_pruning_again():
  """What was kept for more training is pruned further."""
  model = gated("sira", [[[1, 3], [], [0]]] * 4, **SIRA)
  pruning.prune(model, fold=False)
  for adapter in adapters(model):
    adapter.g[...] = adapter.g[...].at[0].set(0)
  before = logits(model, tiny.batch())
  sites = pruning.prune(model)
  close(logits(model, tiny.batch()), before)
  assert {site.factory.live for site in sites} == {(2,)}
  assert {site.factory.rank for site in sites} == {1}


def test_nothing_to_prune_is_refused():
  with pytest.raises(ValueError, match="no gates to prune"):
    pruning.prune(tiny.adapted("lora", rank=2))
