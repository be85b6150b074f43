"""Routers with known loads."""

import types

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient, analysis
from sira_jax.adapters import methods, surgery


class Model(nnx.Module):
  """Token t is the one-hot vector t; two layers see it."""

  FEATURES = ("decoder_input_tokens", "decoder_target_tokens")

  def __init__(self):
    self.first = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    self.second = nnx.Linear(8, 4, rngs=nnx.Rngs(0))

  def hidden(self, decoder_input_tokens, *, decoder_target_tokens):
    x = jnp.eye(8)[decoder_input_tokens]
    real = (decoder_target_tokens != 0).astype(jnp.int32)
    with ambient.SEGMENTS(ambient.Segments(real, packed=False)):
      return self.first(x) + self.second(x)


def some_set(language, *inputs, zero_shot=False):
  return types.SimpleNamespace(
    task="task", language=language, zero_shot=zero_shot, inputs=inputs
  )


SETS = [
  some_set("en", [1, 2, 1, 1], [2, 1]),
  some_set("de", [3, 4, 5], [1, 1], zero_shot=True),
]


@pytest.fixture
def model():
  """`first` sends token t to expert t - 1, surely; `second` is undecided.

  Expert dropout and capacity would show, were they on.
  """
  model = Model()
  factory = methods.sira(
    experts=4, k=1, rank=1, capacity=1, capacity_factor=None, expert_dropout=0.5
  )
  surgery.adapt(model, [surgery.Rule(".*", factory)], rngs=nnx.Rngs(0))
  kernel = np.zeros((8, 4), np.float32)
  kernel[1:5] = 100 * np.eye(4)
  kernel[5] = [100, 100, 0, 0]
  model.first.adapter.router.kernel[...] = jnp.asarray(kernel)
  model.second.adapter.router.kernel[...] = jnp.zeros((8, 4))
  return model


@pytest.mark.parametrize("batch_size", [32, 3])
def test_load_and_entropy(model, batch_size):
  report = analysis.routing(model, SETS, batch_size=batch_size)
  assert report["sets"] == ["task/en", "task/de"]
  assert report["zero_shot"] == [False, True]
  first, second = report["sites"]["first"], report["sites"]["second"]
  # en: tokens 1 2 1 1 2 1. de: 3 4 5 1 1, of which 5 ties and goes to 0.
  np.testing.assert_allclose(
    first["load"], [[4 / 6, 2 / 6, 0, 0], [3 / 5, 0, 1 / 5, 1 / 5]], atol=1e-5
  )
  # Of token 5, whose probabilities are 1/2, expert 0 gets the half.
  np.testing.assert_allclose(
    first["weight"],
    [[4 / 6, 2 / 6, 0, 0], [2.5 / 5, 0, 1 / 5, 1 / 5]],
    atol=1e-5,
  )
  np.testing.assert_allclose(second["weight"], [[0.25, 0, 0, 0]] * 2)
  # Token 5 alone leaves log 2 nats open.
  np.testing.assert_allclose(first["entropy"], [0, np.log(2) / 5], atol=1e-5)
  assert second["load"] == [[1, 0, 0, 0]] * 2  # ties go to the lower expert
  np.testing.assert_allclose(second["entropy"], np.log(4), atol=1e-5)


def test_uniform_load(model):
  report = analysis.routing(model, [some_set("en", [1, 2], [3, 4])])
  assert report["sites"]["first"]["load"] == [[0.25] * 4]


def test_takes_the_first_examples(model):
  report = analysis.routing(model, SETS, examples=1)
  load = report["sites"]["first"]["load"]
  np.testing.assert_allclose(load[0], [3 / 4, 1 / 4, 0, 0], atol=1e-5)


def test_no_router_no_report():
  model = Model()
  surgery.adapt(
    model, [surgery.Rule(".*", methods.lora(rank=1))], rngs=nnx.Rngs(0)
  )
  assert analysis.routing(model, SETS) is None
