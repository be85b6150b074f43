"""Which layers rules adapt, what stays as it was, and merging."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sira_jax
from sira_jax.adapters import methods, surgery
from tests import tiny

LORA = methods.lora(rank=2)
SIRA = methods.sira(experts=3, rank=2, k=2, expert_dropout=0.0)
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


class Special(nnx.Linear):
  """A layer that `adapt` cannot know."""


class Block(nnx.Module):
  def __init__(self, rngs):
    self.q_proj = nnx.Linear(4, 4, rngs=rngs)
    self.v_proj = nnx.Linear(4, 4, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return jnp.tanh(self.v_proj(self.q_proj(x)))


class Toy(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.layers = nnx.List([Block(rngs), Block(rngs)])
    self.general = nnx.LinearGeneral((2, 4), 4, axis=(0, 2), rngs=rngs)
    self.special = Special(4, 4, rngs=rngs)

  def __call__(self, x):
    for block in self.layers:
      x = block(x)
    return x


def adapt(model, *rules, seed=0):
  rules = [sira_jax.Rule(*rule) for rule in rules]
  return sira_jax.adapt(model, rules, rngs=nnx.Rngs(seed))


def toy(factory=LORA):
  model = Toy()
  adapt(model, (r".*_proj", factory))
  tiny.randomize(model)
  return model


def paths(model):
  return {surgery._name(path) for path, _ in nnx.iter_modules(model)}


def test_the_first_rule_that_matches_decides():
  sites = adapt(Toy(), (r"layers\.1\.q_proj", SIRA), (r".*\.q_proj", LORA))
  assert [(site.path, site.factory) for site in sites] == [
    ("layers.0.q_proj", LORA),
    ("layers.1.q_proj", SIRA),
  ]
  # 2 (4 + 4), and 3 experts of it with a router of 4 x 3.
  assert [site.parameters for site in sites] == [16, 60]


@pytest.mark.parametrize(
  "rules, message",
  [
    ([], "at least one Rule"),
    ([("layers.0.q_prj", LORA)], r"matches no layer.*nearest.*layers\.0\.q_pr"),
    ([("q_proj", LORA)], "must match a whole path"),
    ([(r".*_proj", LORA), (r".*q_proj", SIRA)], r"\['\.\*q_proj'\] decide no"),
    (
      [("general", LORA)],
      r"'general', a LinearGeneral.*axes \(0, 2\), not",
    ),
    ([("special", LORA)], "'special', a Special"),
    ([("(", LORA)], "is no regex"),
  ],
  ids=["none", "typo", "part", "shadowed", "general", "subclass", "regex"],
)
def test_rules_are_refused(rules, message):
  model = Toy()
  with pytest.raises(ValueError, match=message):
    adapt(model, *rules)
  assert not jax.tree.leaves(nnx.state(model, sira_jax.Trainable))
  assert type(model.layers[0].q_proj) is nnx.Linear


@pytest.mark.parametrize("path", [r".*_proj", r".*"])
def test_adapting_twice_is_refused(path):
  model = nnx.List([Block(nnx.Rngs(0))])
  adapt(model, (path, SIRA))
  with pytest.raises(ValueError, match=r"'0\.q_proj', which has an adapter"):
    adapt(model, (path, LORA))


class Shared(nnx.Module):
  """One block by two names, and one of its layers by a third."""

  def __init__(self):
    self.encoder = Block(nnx.Rngs(0))
    self.decoder = self.encoder
    self.head = self.encoder.v_proj


@pytest.mark.parametrize(
  "path", ["encoder.v_proj", "decoder.v_proj", "head", ".*v_proj"]
)
def test_shared_layers_are_found_by_any_path(path):
  model = Shared()
  (site,) = adapt(model, (path, LORA))
  assert site.path == "decoder.v_proj"
  assert isinstance(model.head, surgery.Adapted)
  assert model.decoder.v_proj is model.head
  assert not isinstance(model.encoder.q_proj, surgery.Adapted)


def test_modules_that_refer_to_their_parents():
  model = Shared()
  model.encoder.parent = model
  model.encoder.q_proj.parent = model.encoder
  assert len(adapt(model, (".*v_proj", LORA))) == 1


def test_what_a_layer_was_it_stays():
  plain, model = Toy(), Toy()
  kernel = model.layers[0].q_proj.kernel
  adapt(model, (r"layers\.0\.q_proj", SIRA))
  layer = model.layers[0].q_proj
  assert isinstance(layer, nnx.Linear)
  assert layer.kernel is kernel and layer.in_features == 4
  added = {"layers.0.q_proj.adapter", "layers.0.q_proj.adapter.router"}
  assert paths(model) == paths(plain) | added
  assert type(model.layers[1].q_proj) is nnx.Linear
  before, after = nnx.state(plain, nnx.Param), nnx.state(model, nnx.Param)
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_start_depends_on_path_and_seed_alone():
  def start(*rules, seed=0):
    model = Toy()
    adapt(model, *rules, seed=seed)
    found = model.layers[1].q_proj.adapter
    return np.asarray(found.A), np.asarray(found.router.kernel)

  rules = (r"layers\.1\.q_proj", SIRA), (r"layers\.0\..*", LORA)
  one, same, other = start(*rules), start(*rules[::-1]), start(*rules, seed=1)
  for a, b, c in zip(one, same, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert (a != c).all()


def test_layers_and_experts_start_apart():
  model = Toy()
  adapt(model, (r".*q_proj", SIRA))
  first, second = (block.q_proj.adapter.A[...] for block in model.layers)
  assert (first != second).all()
  assert (first[:, 0] != first[:, 1]).all()
  # Uniform in +-1 / sqrt(4).
  assert 0.4 < float(jnp.abs(first).max()) <= 0.5


def test_merging_equals_the_adapted_model():
  model = toy()
  adapted = model(X)
  assert np.abs(adapted - Toy()(X)).max() > 0.1
  plain = paths(Toy())
  sira_jax.merge(model)
  np.testing.assert_allclose(model(X), adapted, atol=1e-6)
  assert paths(model) == plain
  assert type(model.layers[0].q_proj) is nnx.Linear
  adapt(model, (r".*_proj", LORA))


def test_merging_keeps_the_kernel_dtype():
  layer = nnx.List(
    [nnx.Linear(4, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))]
  )
  adapt(layer, ("0", LORA))
  sira_jax.merge(layer)
  assert layer[0].kernel.dtype == jnp.bfloat16


def test_merging_a_router_is_refused_with_nothing_changed():
  model = Toy()
  adapt(model, (r"layers\.0\..*", LORA), (r"layers\.1\.q_proj", SIRA))
  tiny.randomize(model)
  before = jax.tree.map(np.array, nnx.state(model))
  with pytest.raises(ValueError, match=r"layers\.1\.q_proj: sira routes"):
    sira_jax.merge(model)
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_merging_nothing_is_refused():
  with pytest.raises(ValueError, match="no adapters"):
    sira_jax.merge(Toy())


def test_works_under_transforms():
  """nnx.jit, nnx.remat and jax.jit of a split model give what eager gives."""
  model = toy(SIRA)
  expected = model(X)
  graph, state = nnx.split(model)
  rematerialized = nnx.jit(lambda model: nnx.remat(Toy.__call__)(model, X))
  for got in (
    nnx.jit(Toy.__call__)(model, X),
    rematerialized(model),
    jax.jit(lambda state: nnx.merge(graph, state)(X))(state),
  ):
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_works_on_shapes_alone():
  shapes = nnx.state(nnx.eval_shape(lambda: toy(SIRA)), sira_jax.Trainable)
  arrays = nnx.state(toy(SIRA), sira_jax.Trainable)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, arrays)
