# SPDX-License-Identifier: Apache-2.0
"""Layers of several axes are adapted as the matrices that they are."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sira_jax
from sira_jax.adapters import hosts, surgery
from tests import tiny

EINSUMS = {
  "bta,ahc->bthc": ((4,), (6, 3)),
  "BTD,NDH->BTNH": ((4,), (6, 3)),
  "BTNH,NHD->BTD": ((6, 3), (4,)),
  "btnh, hnd -> btd": ((6, 3), (4,)),
  "btd,fd->btf": ((4,), (5,)),
  "btnh,dnh->btd": ((6, 3), (4,)),
}


class Attention(nnx.Module):
  """Heads as flax has them: to several axes and back; and einsums."""

  def __init__(self, *, bias=True):
    rngs = nnx.Rngs(0)
    self.query = nnx.LinearGeneral(8, (2, 3), use_bias=bias, rngs=rngs)
    self.out = nnx.LinearGeneral(
      (2, 3), 8, axis=(-2, -1), use_bias=bias, rngs=rngs
    )
    self.up = nnx.Einsum("btd,ndh->btnh", (2, 8, 3), (2, 3), rngs=rngs)
    self.down = nnx.Einsum("btnh,nhd->btd", (2, 3, 8), rngs=rngs)

  def __call__(self, x):
    x = x + self.out(jnp.tanh(self.query(x)))
    return x + self.down(jnp.tanh(self.up(x)))


def adapted(factory):
  model = Attention()
  sites = sira_jax.adapt(
    model, [sira_jax.Rule(".*", factory)], rngs=nnx.Rngs(1)
  )
  return model, sites


def inputs(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("string", EINSUMS)
def test_an_einsum_is_its_matrix(string):
  """Against a plain matrix product, and back."""
  ins, outs = EINSUMS[string]
  sizes = dict(zip("btadnhfc", (2, 5, 4, 4, 6, 3, 5, 3), strict=True))
  if "ahc" in string:
    sizes["h"] = 6
  kernel = string.replace(" ", "").split(",")[1].split("->")[0].lower()
  shape = tuple(sizes[letter] for letter in kernel)
  layer = nnx.Einsum(string, shape, rngs=nnx.Rngs(0))
  fold = hosts.fold(layer)
  assert (fold.ins, fold.outs) == (ins, outs)
  x = inputs(2, 5, *ins)
  flat = x.reshape(2, 5, fold.d) @ fold.matrix(layer.kernel[...])
  np.testing.assert_allclose(
    np.asarray(layer(x)).reshape(2, 5, fold.f), flat, atol=1e-5
  )
  again = fold.kernel(fold.matrix(layer.kernel[...]))
  np.testing.assert_array_equal(again, layer.kernel[...])


@pytest.mark.parametrize("method", ["sira", "lora", "mov"])
def test_terms_go_beside_all_kinds(method):
  """Nothing changes at first; then each layer gives its term."""
  settings = {} if method == "lora" else {"experts": 3}
  if method == "sira":
    settings |= {"rank": 2, "k": 2, "expert_dropout": 0.0}
  factory = sira_jax.METHODS[method](**settings)
  model, sites = adapted(factory)
  assert [(site.path, site.shape) for site in sites] == [
    ("down", (6, 8)),
    ("out", (6, 8)),
    ("query", (8, 6)),
    ("up", (8, 6)),
  ]
  x = inputs(2, 5, 8)
  np.testing.assert_array_equal(model(x), Attention()(x))
  assert isinstance(model.query, nnx.LinearGeneral)
  tiny.randomize(model)
  for name in ("query", "out", "up", "down"):
    layer, plain = getattr(model, name), getattr(Attention(), name)
    z = x if name in ("query", "up") else inputs(2, 5, 2, 3)
    y = plain(z)
    flat = z.reshape(2, 5, -1), y.reshape(2, 5, -1)
    expected = y + layer.adapter(*flat).reshape(y.shape)
    np.testing.assert_allclose(layer(z), expected, atol=1e-6)
    assert np.abs(layer(z) - y).max() > 0.1


def test_all_kinds_merge():
  model, _ = adapted(sira_jax.METHODS["lora"](rank=2, alpha=3.0))
  tiny.randomize(model)
  x = inputs(2, 5, 8)
  expected = model(x)
  sira_jax.merge(model)
  assert type(model.up) is nnx.Einsum and type(model.out) is nnx.LinearGeneral
  np.testing.assert_allclose(model(x), expected, atol=1e-5)
  assert np.abs(expected - Attention()(x)).max() > 0.1


def test_vectors_merge_with_biases():
  """(IA)3 multiplies them, too."""
  model, _ = adapted(sira_jax.METHODS["mov"](experts=1))
  tiny.randomize(model)
  model.query.bias[...] += 1.0
  model.up.bias[...] += 1.0
  x = inputs(2, 5, 8)
  expected = model(x)
  sira_jax.merge(model)
  np.testing.assert_allclose(model(x), expected, atol=1e-5)
  assert model.query.bias.shape == model.up.bias.shape == (2, 3)


def test_flax_attention_is_adapted():
  """nnx.MultiHeadAttention, whose projections are LinearGeneral."""
  model = nnx.MultiHeadAttention(
    num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0)
  )
  factory = sira_jax.METHODS["lora"](rank=2)
  rules = [sira_jax.Rule("query|value|out", factory)]
  sites = sira_jax.adapt(model, rules, rngs=nnx.Rngs(0))
  assert {site.shape for site in sites} == {(8, 8)} and len(sites) == 3
  x = inputs(2, 5, 8)
  before = model(x)
  tiny.randomize(model)
  assert np.abs(model(x) - before).max() > 0.01


def test_words_of_axes_are_folded():
  layer = nnx.LinearGeneral(
    8,
    (2, 3),
    kernel_metadata={"axes": ("d", "heads", None)},
    rngs=nnx.Rngs(0),
  )
  assert hosts.axes(layer) == ("d", "heads")
  layer = nnx.Einsum(
    "btd,ndh->btnh",
    (2, 8, 3),
    kernel_metadata={"axes": ("heads", "d", None)},
    rngs=nnx.Rngs(0),
  )
  assert hosts.axes(layer) == ("d", "heads")
  assert hosts.axes(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) == (None, None)


@pytest.mark.parametrize(
  ("layer", "message"),
  [
    (("btd,td->bt", (5, 8)), "'btd,td->bt' is not the last axes"),
    (("bdt,df->btf", (8, 6)), "'bdt,df->btf' is not"),
    (("btd,df->bft", (8, 6)), "'btd,df->bft' is not"),
    (("btd,bdf->btf", (2, 8, 6)), "'btd,bdf->btf' is not"),
    (("...d,df->...f", (8, 6)), "is not the last axes"),
  ],
)
def test_other_einsums_are_refused(layer, message):
  string, shape = layer
  model = nnx.List([nnx.Einsum(string, shape, rngs=nnx.Rngs(0))])
  rules = [sira_jax.Rule(".*", sira_jax.METHODS["lora"]())]
  with pytest.raises(ValueError, match=message):
    sira_jax.adapt(model, rules, rngs=nnx.Rngs(0))


def test_a_weight_by_batch_is_refused():
  model = nnx.List(
    [nnx.LinearGeneral(8, 6, batch_axis={0: 2}, rngs=nnx.Rngs(0))]
  )
  rules = [sira_jax.Rule(".*", sira_jax.METHODS["lora"]())]
  with pytest.raises(ValueError, match="a weight for each place"):
    sira_jax.adapt(model, rules, rngs=nnx.Rngs(0))


def test_an_adapted_einsum_has_one_string():
  model, _ = adapted(sira_jax.METHODS["lora"]())
  with pytest.raises(ValueError, match="computes 'btd,ndh->btnh', got"):
    model.up(inputs(2, 5, 8), "btd,ndh->bthn")
  y = model.up(inputs(2, 5, 8), "btd,ndh->btnh")
  assert jax.tree.leaves(y)[0].shape == (2, 5, 2, 3)
  assert isinstance(model.up, surgery.Adapted)
