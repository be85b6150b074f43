"""A router made by hand, whose every number is known; what is kept of runs."""

import types

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient, analysis, decoding, evaluation, routing_numbers
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import RoutingRecord
from sira_jax.formats import huggingface
from tests import tiny, tiny_t5


class Model(nnx.Module):
  """Token t is the one-hot vector t; two layers see it. It always answers 3."""

  SAME_INPUT = ("first", "second")
  max_length = 64

  def __init__(self):
    self.first = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    self.second = nnx.Linear(8, 4, rngs=nnx.Rngs(0))

  def start(self, prompts, lengths, *, room):
    real = jnp.arange(prompts.shape[1]) < lengths[:, None]
    with ambient.SEGMENTS(ambient.Segments(real.astype(int), packed=False)):
      hidden = self.hidden(prompts)
    return hidden[:, :1], lengths, lengths

  def extend(self, tokens, positions, cache):
    return self.hidden(tokens), cache

  def hidden(self, tokens):
    x = jnp.eye(8)[tokens]
    return self.first(x) + self.second(x)

  def logits(self, hidden):
    return 0 * hidden + jnp.arange(4.0)


def some_set(language, *inputs, zero_shot=False):
  return types.SimpleNamespace(
    task="task", language=language, zero_shot=zero_shot, inputs=inputs
  )


SETS = [
  some_set("en", [1, 2, 1, 1], [2, 1]),
  some_set("de", [3, 4, 5], [1, 1], zero_shot=True),
]


def adapted(method, **settings):
  model = Model()
  rule = surgery.Rule("first|second", methods.create(method, **settings))
  surgery.adapt(model, [rule], rngs=nnx.Rngs(0))
  model.eval()
  return model


@pytest.fixture
def model():
  """`first` sends token t to expert t - 1, surely; `second` is undecided.

  Expert dropout and capacity would show, were they on.
  """
  made = dict(experts=4, k=1, rank=1, capacity_factor=1.0, expert_dropout=0.5)
  model = adapted("sira", **made)
  kernel = np.zeros((8, 4), np.float32)
  kernel[1:5] = 100 * np.eye(4)
  kernel[5] = [100, 100, 0, 0]
  model.first.adapter.router.kernel[...] = jnp.asarray(kernel)
  model.second.adapter.router.kernel[...] = jnp.zeros((8, 4))
  return model


def gathered(model, sets=SETS, *, examples=None, batch_size=8):
  """What an evaluation keeps."""
  recorder = analysis.Recorder(sets, examples=examples)
  prompts = [prompt for one in sets for prompt in one.inputs]
  answers = decoding.greedy(
    model,
    prompts,
    max_new_tokens=5,
    eos_id=7,
    batch_size=batch_size,
    record=recorder,
  )
  assert answers == [[3] * 5] * len(prompts)
  return recorder.statistics()


@pytest.mark.parametrize("batch_size", [8, 3])
def test_by_set(model, batch_size):
  report = analysis.summary(gathered(model, batch_size=batch_size))
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
  # Each token's logits are 100 and 0, but for token 5's, 100 and 100.
  assert first["margin"] == [100, 80] and second["margin"] == [0, 0]


def test_every_number(model):
  """Of all examples together."""
  found = routing_numbers.numbers(model, gathered(model), permutations=3000)
  assert found.labels == {"task": ("task",), "language": ("en", "de")}
  assert found.tokens == {"task": (11,), "language": (6, 5)}
  assert found.zero_shot == ("de",) and found.examples == 4
  layer, undecided = found.layers["first"], found.layers["second"]
  np.testing.assert_allclose(layer.load, [7 / 11, 2 / 11, 1 / 11, 1 / 11])
  np.testing.assert_allclose(layer.entropy, np.log(2) / 11, atol=1e-6)
  np.testing.assert_allclose(undecided.entropy, np.log(4), atol=1e-6)
  np.testing.assert_allclose([layer.margin, undecided.margin], [1000 / 11, 0])
  # Places: ceil(tokens / 4) = 1. Experts of 1 2 1 1 are chosen 3 times and
  # once, of 2 1 and 3 4 5 once each, of 1 1 twice: 2 + 0 + 0 + 1 too many.
  np.testing.assert_allclose(layer.turned_away, 3 / 11)
  # All to expert 0: 3 + 1 + 2 + 1 too many.
  np.testing.assert_allclose(undecided.turned_away, 7 / 11)
  # en chooses 4 2 0 0, de 3 0 1 1:
  # 4/11 log(4 11 / 6 7) + 2/11 log(11 / 6) + 3/11 log(33 / 35) + 2/11 log(11/5)
  np.testing.assert_allclose(
    layer.information["language"]["nats"], 0.254431, atol=1e-6
  )
  # Of the three ways to halve the four examples, by hand: {1 2 | 3 4} is the
  # one above; {1 3 | 2 4} has 4 1 1 1 | 3 1 0 0 and {1 4 | 2 3} 5 1 0 0 |
  # 2 1 1 1.
  others = 0.094877, 0.182265
  np.testing.assert_allclose(
    layer.information["language"]["baseline"],
    (0.254431 + sum(others)) / 3,
    atol=5e-3,
  )
  np.testing.assert_allclose(
    [layer.information["language"][x] for x in ("p", "quantile")],
    [1 / 3, 0.254431],
    atol=0.03,
  )
  np.testing.assert_allclose(undecided.information["language"]["nats"], 0)
  np.testing.assert_allclose(undecided.information["language"]["p"], 1)
  assert layer.information["task"] is None  # there is one alone
  # 4/6 2/6 0 0 and 3/5 0 1/5 1/5: 2/5 go elsewhere; in `second`, none.
  clusters = found.clusters
  np.testing.assert_allclose(clusters.distances, [[0, 0.2], [0.2, 0]])
  assert clusters.languages == ("en", "de") and clusters.tasks == ("task",)


def test_the_first_examples_are_kept(model):
  statistics = gathered(model, examples=1)
  assert statistics.owners.tolist() == [0, 1]
  load = statistics.sites["first"]["load"]
  assert load.tolist() == [[3, 1, 0, 0], [1, 0, 1, 1]]
  assert [analysis.most(n) for n in (1, 16, 256, 10_000)] == [64, 64, 16, 1]


def test_save_and_load(model, tmp_path):
  assert analysis.load(tmp_path) is None
  statistics = gathered(model)
  analysis.save(statistics, tmp_path)
  loaded = analysis.load(tmp_path)
  assert loaded.sets == statistics.sets
  assert analysis.summary(loaded) == analysis.summary(statistics)
  file = tmp_path / "routing.npz"
  file.write_bytes(file.read_bytes()[:300])
  with pytest.raises(
    ValueError, match=r"routing.npz cannot be read.*Remove it"
  ):
    analysis.load(tmp_path)


def test_no_router_no_report():
  model = adapted("lora", rank=1)
  statistics = gathered(model)
  assert analysis.summary(statistics) is None
  with pytest.raises(ValueError, match="the run trains lora, which has no rou"):
    routing_numbers.numbers(model, statistics)


def test_statistics_of_other_layers(model):
  statistics = gathered(model)
  del statistics.sites["first"]
  with pytest.raises(
    ValueError, match="of 1 layers, and the model routes in 2"
  ):
    routing_numbers.numbers(model, statistics)


def alone(model, **features):
  """What each layer records of one text without padding, by `hidden`."""
  capture = nnx.capture(lambda m: m.hidden(**features), RoutingRecord)
  _, found = nnx.jit(lambda m: capture(m))(model)
  return {
    ".".join(map(str, path[:-2])): record.get_value()[-1]
    for path, record in nnx.to_flat_state(found)
  }


def agrees(statistics, expected):
  """Of each prompt, with what was recorded of it alone."""
  assert statistics.sites and set(statistics.sites) == set(expected[0])
  for site, fields in statistics.sites.items():
    for i, one in enumerate(expected):
      for name, values in fields.items():
        by_itself = getattr(one[site], name)[0]
        np.testing.assert_allclose(values[i], by_itself, rtol=2e-4, atol=1e-5)


PROMPTS = [[5, 3, 9, 8, 2], [7, 4]]


def recorded(model, read):
  recorder = analysis.Recorder([some_set("en", *PROMPTS)])
  model.eval()
  read(model, PROMPTS, record=recorder)
  return recorder.statistics()


def decode(model, prompts, **options):
  decoding.greedy(model, prompts, max_new_tokens=3, eos_id=63, **options)


@pytest.mark.parametrize("scan", [False, True])
def test_a_decoder_reads_each_prompt(scan):
  """Neither padding nor answers are counted, whatever the batch."""
  model = tiny.base(scan=scan)
  sira = methods.sira(experts=4, k=2, rank=2)
  rules = [surgery.Rule(tiny.SITES, sira)]
  surgery.adapt(model, rules, rngs=nnx.Rngs(1))
  tiny.randomize(model)
  statistics = recorded(model, decode)
  arrays = [np.array([prompt]) for prompt in PROMPTS]
  agrees(statistics, [alone(model, decoder_input_tokens=x) for x in arrays])


def test_an_encoder_decoder_reads_each_prompt():
  """And the decoder the beginning of its answer."""
  model = tiny_t5.base()
  tiny_t5.adapt(model, "sira", experts=4, k=2, rank=2)
  tiny.randomize(model)
  statistics = recorded(model, decode)
  first = {"decoder_input_tokens": np.zeros((1, 1), int)}
  arrays = [{"encoder_input_tokens": np.array([x])} for x in PROMPTS]
  agrees(statistics, [alone(model, **first, **one) for one in arrays])
  assert {name.split(".")[0] for name in statistics.sites} == {
    "encoder",
    "decoder",
  }


@pytest.mark.parametrize("level", ["token", "example"])
def test_an_encoder_reads_each_text(level):
  model = huggingface.load_model(
    tiny_t5.GOLDEN / "encoders" / "bert_classifier"
  )
  sira = methods.sira(experts=4, k=2, rank=2, level=level)
  rule = surgery.Rule(r".*attention\.q", sira)
  surgery.adapt(model, [rule], rngs=nnx.Rngs(1))
  statistics = recorded(
    model,
    lambda *args, record: evaluation.label(
      *args, labels=(), batch_size=8, record=record
    ),
  )
  arrays = [np.array([prompt]) for prompt in PROMPTS]
  agrees(statistics, [alone(model, encoder_input_tokens=x) for x in arrays])
  tokens = next(iter(statistics.sites.values()))["tokens"]
  assert tokens.tolist() == [5, 2]
