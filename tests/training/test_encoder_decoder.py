# SPDX-License-Identifier: Apache-2.0
"""Adapters in a T5: its loss falls, its base stays, on one device or eight."""

from flax import nnx
import jax
import numpy as np
import optax
import pytest

from sira_jax import meshes, sharding
from sira_jax.adapters import methods, surgery
from sira_jax.training import step as training
from tests import tiny_t5

SIRA = dict(experts=4, rank=2, k=2, expert_dropout=0.1, capacity_factor=1.5)
METHODS = [("lora", dict(rank=4)), ("sira", SIRA)]


def run(method, settings, *, steps):
  """The losses of some steps on one batch, and what was trained."""
  model, _, _ = tiny_t5.golden("tiny_t5_gated")
  tiny_t5.adapt(model, method, **settings)
  optimizer = optax.adam(0.03)
  state = training.init(model, optimizer, seed=0)
  step, losses = training.make(model, optimizer), []
  batch = sharding.rows(tiny_t5.batch())
  for _ in range(steps):
    state, metrics = step(state, batch)
    losses.append(metrics)
  return jax.device_get(losses), jax.device_get(state.trainable), model


@pytest.mark.parametrize("method, settings", METHODS)
def test_the_loss_falls(method, settings):
  frozen = nnx.state(tiny_t5.golden("tiny_t5_gated")[0])
  metrics, trained, model = run(method, settings, steps=30)
  losses = [m["loss"] for m in metrics]
  assert losses[-1] < 0.6 * losses[0]
  assert (
    metrics[0]["targets"]
    == (tiny_t5.batch()["decoder_target_tokens"] > 0).sum()
  )
  if method == "sira":
    assert 0.9 < metrics[0]["balance_loss"] < 2
  for leaf in jax.tree.leaves(trained):
    assert np.isfinite(leaf).all()
  now = dict(nnx.to_flat_state(nnx.state(model)))
  for path, before in nnx.to_flat_state(frozen):
    np.testing.assert_array_equal(now[path][...], before[...])


def test_layers_of_the_same_input_share_a_router():
  model, _, _ = tiny_t5.golden("tiny_t5_gated")
  sira = methods.create("sira", experts=4, rank=2, k=2, shared_router=True)
  rule = surgery.Rule(r"decoder\.blocks\.\d+\.(cross_)?attention\.[qkv]", sira)
  surgery.adapt(model, [rule], rngs=nnx.Rngs(0))
  for block in model.decoder.blocks:
    own, cross = block.attention, block.cross_attention
    routers = [
      layer.adapter.router
      for layer in (own.q, own.k, own.v, cross.q, cross.k, cross.v)
    ]
    groups = [[id(router) == id(r) for r in routers] for router in routers]
    # q of the cross-attention reads the decoder, k and v the encoder.
    assert [sum(same) for same in groups] == [3, 3, 3, 1, 2, 2]


@pytest.mark.parametrize("method, settings", METHODS)
def test_eight_devices_equal_one(method, settings):
  """Loss, gradient and what two steps train; and the weights are divided."""
  expected, trained, _ = run(method, settings, steps=2)
  with sharding.use(meshes.mesh(fsdp=2, tensor=2)):
    metrics, got, model = run(method, settings, steps=2)
  kernel = model.decoder.blocks[0].cross_attention.k.kernel[...]
  assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
  for one, other in zip(expected, metrics, strict=True):
    for name in ("loss", "gradient_norm"):
      np.testing.assert_allclose(one[name], other[name], rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3),
    trained,
    got,
  )
