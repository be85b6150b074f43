"""The step's gradient, metrics, donation and progress."""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax import ambient, meshes, plan, sharding
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import Trainable
from sira_jax.training import losses
from sira_jax.training import step as training
from tests import tiny

LORA = methods.lora(rank=2)
SIRA = methods.sira(
  experts=4, rank=2, k=2, balance_coefficient=0.5, expert_dropout=0.0
)


def model_with(**rules):
  """An untied decoder with an adapter for each `name=(path, factory)`."""
  model = tiny.base(tied=False)
  surgery.adapt(
    model,
    [surgery.Rule(*rule) for rule in rules.values()],
    rngs=nnx.Rngs(1),
  )
  tiny.randomize(model)
  return model


def autodiff(model, batch):
  """The gradient of the plain loss, computed with no care."""
  graph, trainable, rest = nnx.split(model, Trainable, ...)

  def loss(trainable):
    merged = nnx.merge(graph, trainable, rest)
    features = {name: batch[name] for name in model.FEATURES if name in batch}
    total, _ = losses.cross_entropy(
      merged.logits,
      merged.hidden(**features),
      targets=batch["decoder_target_tokens"],
      weights=batch["decoder_loss_weights"],
    )
    return total / batch["decoder_loss_weights"].sum()

  return jax.jit(jax.grad(loss))(trainable)


@pytest.mark.parametrize(
  "head, path",
  [(True, r"lm_head|layers\.1\.mlp\.up_proj"), (False, r".*k_proj")],
)
def test_gradient(head, path, monkeypatch):
  """A trained head takes the loss of every logit."""
  taken = []
  for name in ("cross_entropy", "cross_entropy_at_targets"):
    loss = getattr(losses, name)
    monkeypatch.setattr(
      losses,
      name,
      lambda *a, _loss=loss, _name=name, **k: (
        taken.append(_name) or _loss(*a, **k)
      ),
    )
  model, batch = model_with(all=(path, LORA)), tiny.batch()
  step = training.make(model, optax.sgd(1.0))
  state = training.init(model, optax.sgd(1.0), seed=0)
  before = jax.tree.map(np.asarray, state.trainable)
  after, _ = step(state, batch)
  assert taken[0] == ("cross_entropy" if head else "cross_entropy_at_targets")
  moved = jax.tree.map(lambda a, b: a - b, before, after.trainable)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
    moved,
    autodiff(model, batch),
  )
  assert all(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(moved))


@pytest.fixture(scope="module")
def stepped():
  """A step of a routed and an unrouted site, its model and optimizer."""
  model = model_with(
    routed=(r".*k_proj", SIRA), plain=(r"layers\.0\.mlp\.down_proj", LORA)
  )
  optimizer = optax.adam(1e-2)
  return model, optimizer, training.make(model, optimizer)


def test_loss_falls(stepped):
  model, optimizer, step = stepped
  state = training.init(model, optimizer, seed=0)
  found = []
  for _ in range(30):
    state, metrics = step(state, tiny.batch())
    found.append(float(metrics["loss"]))
  assert found[-1] < 0.7 * found[0]
  assert int(state.step) == 30


def test_metrics(stepped):
  model, optimizer, step = stepped
  batch = tiny.batch()
  # In training too, so it routes with capacity, as the step does.
  logits = nnx.jit(
    lambda model: model(
      batch["decoder_input_tokens"],
      decoder_target_tokens=batch["decoder_target_tokens"],
    )
  )(model)
  guesses = np.asarray(logits.argmax(-1))
  some = (np.arange(tiny.LENGTH) % 2 == 0) & (guesses != 0)
  real = batch["decoder_target_tokens"] != 0
  batch["decoder_target_tokens"] = np.where(
    some & real, guesses, batch["decoder_target_tokens"]
  )
  _, metrics = step(training.init(model, optimizer, seed=0), batch)
  assert set(metrics) == {
    "loss",
    "accuracy",
    "targets",
    "tokens",
    "gradient_norm",
    "skipped",
    "balance_loss",
    "dropped_fraction",
  }
  assert metrics["skipped"] == 0
  assert metrics["targets"] == batch["decoder_loss_weights"].sum() == 21
  assert metrics["tokens"] == 12 + 12 + 9 + 7
  picked = np.take_along_axis(
    jax.nn.log_softmax(logits), batch["decoder_target_tokens"][..., None], -1
  )[..., 0]
  weights = batch["decoder_loss_weights"]
  np.testing.assert_allclose(
    metrics["loss"], -(picked * weights).sum() / 21, rtol=1e-5
  )
  right = guesses == batch["decoder_target_tokens"]
  assert 5 < (right * weights).sum() < 21
  np.testing.assert_allclose(
    metrics["accuracy"], (right * weights).sum() / 21, rtol=1e-6
  )


def test_penalty_is_the_mean_over_routed_layers(stepped):
  model, _, _ = stepped
  loss, metrics = nnx.jit(training.batch_loss)(model, tiny.batch())
  np.testing.assert_allclose(
    loss - metrics["loss"], 0.5 * metrics["balance_loss"], rtol=1e-4
  )


def test_weights_may_be_integers(stepped):
  """seqio's feature converters give them so."""
  model, _, _ = stepped
  batch = tiny.batch()
  batch["decoder_loss_weights"] = batch["decoder_loss_weights"].astype(np.int32)
  loss, _ = nnx.eval_shape(training.batch_loss, model, batch)
  assert loss.dtype == jnp.float32


def test_state_is_donated_and_the_model_is_not(stepped):
  model, optimizer, step = stepped
  state = training.init(model, optimizer, seed=0)
  kept = jax.tree.leaves(nnx.state(model))
  step(state, tiny.batch())
  donated = [
    *jax.tree.leaves(state.trainable),
    *jax.tree.leaves(state.optimizer),
  ]
  assert all(leaf.is_deleted() for leaf in donated)
  assert not any(leaf.is_deleted() for leaf in kept)


@pytest.mark.parametrize("platform, calls", [("cpu", 1), ("tpu", 0)])
def test_an_optimizer_is_a_computation_of_its_own(platform, calls, monkeypatch):
  """Of the two kinds of program, both compiled for this CPU."""
  model, optimizer = model_with(all=(r".*k_proj", LORA)), optax.adam(1e-3)
  state, batch = training.init(model, optimizer, seed=0), tiny.batch()
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  step = training.program(model, optimizer).step
  _, frozen = training.frozen(model)
  compiled = step.lower(state, frozen, batch, None).compile()
  assert len(re.findall(r" call\(", compiled.as_text())) == calls
  donated = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer))
  assert compiled.memory_analysis().alias_size_in_bytes > donated


def test_nothing_is_transferred_unasked(stepped):
  model, optimizer, step = stepped
  state = training.init(model, optimizer, seed=0)
  batch = jax.device_put(tiny.batch())
  with jax.transfer_guard("disallow"):
    state, metrics = step(state, batch)
    state, metrics = step(state, batch)
  assert np.isfinite(jax.device_get(metrics["loss"]))


def test_a_key_of_its_own_for_each_step():
  seen = []

  class Probe(nnx.Module):
    FEATURES = ()

    def __init__(self):
      self.weight = Trainable(jnp.ones(()))

    def hidden(self):
      jax.debug.callback(
        lambda key: seen.append(key.tolist()),
        jax.random.key_data(ambient.DROPOUT_KEY.get()),
      )
      return jnp.ones((1, 1, 2)) * self.weight

    def logits(self, hidden):
      return hidden

  batch = {
    "decoder_target_tokens": np.ones((1, 1), np.int32),
    "decoder_loss_weights": np.ones((1, 1), np.float32),
  }
  model, optimizer = Probe(), optax.sgd(0.1)
  step = training.make(model, optimizer)
  for seed, steps in ((0, 2), (0, 1), (1, 1)):
    state = training.init(model, optimizer, seed=seed)
    for _ in range(steps):
      state, _ = step(state, batch)
    jax.effects_barrier()
  first, second, again, other = map(tuple, seen)
  assert first == again
  assert len({first, second, other}) == 3


def test_a_rematerialized_model_trains_the_same():
  found = []
  for remat in (False, True):
    model = tiny.base(remat=remat)
    factory = methods.sira(experts=3, rank=2, k=2)
    rule = surgery.Rule(r"layers\.1\.mlp\.down_proj", factory)
    surgery.adapt(model, [rule], rngs=nnx.Rngs(1))
    tiny.randomize(model)
    state = training.init(model, optax.sgd(1.0), seed=0)
    state, metrics = training.make(model, optax.sgd(1.0))(state, tiny.batch())
    found.append((state.trainable, metrics))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)


def test_a_model_without_adapters_is_refused():
  with pytest.raises(ValueError, match="no Trainable variables"):
    training.init(tiny.base(), optax.sgd(1.0), seed=0)


@pytest.mark.parametrize("rule", [(r".*k_proj", LORA), (r".*down_proj", SIRA)])
@pytest.mark.parametrize("places", [1, 2])
def test_microbatches_are_one_batch(rule, places):
  """Rows of unlike numbers of targets; SGD's step is the gradient."""
  mesh = meshes.mesh(devices=jax.devices()[:places])
  found = []
  for parts in (1, 2):
    with sharding.use(mesh):
      model, batch = model_with(all=rule), tiny.batch()
      state = training.init(model, optax.sgd(1.0), seed=0)
      step = training.make(model, optax.sgd(1.0), microbatches=parts)
      state, metrics = step(state, sharding.rows(batch))
      found.append(jax.tree.map(np.asarray, (state.trainable, metrics)))
  one, two = found
  assert (batch["decoder_loss_weights"].sum(axis=1) != 6).any()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    one,
    two,
  )


def test_microbatches_need_less_memory():
  model = model_with(all=(r".*k_proj", LORA))
  batch = jax.tree.map(lambda x: np.concatenate([x] * 16), tiny.batch())
  sizes = [
    plan.plan(
      model,
      optax.sgd(1.0),
      batch=batch,
      mesh=meshes.mesh(devices=jax.devices()[:1]),
      microbatches=parts,
    ).temporaries
    for parts in (1, 8)
  ]
  assert sizes[1] < sizes[0] / 2
