# SPDX-License-Identifier: Apache-2.0
"""T5 against Hugging Face's, and what its masks promise."""

import dataclasses
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.models import relative, t5
from tests import tiny_t5
from tests.tiny_t5 import error, golden, tokens_of

NAMES = [
  "tiny_t5_relu",
  "tiny_t5_gated",
  "tiny_mt5",
  "tiny_byt5",
  "tiny_umt5",
]


@pytest.fixture(scope="module")
def model():
  return golden("tiny_t5_gated")[0]


@nnx.jit
def forward(model, inputs, outputs, **features):
  return model(inputs, outputs, **features)


@pytest.mark.parametrize("name", NAMES)
def test_equals_hugging_face(name):
  """One row is padded; distances go beyond the last bucket."""
  model, features, logits = golden(name)
  assert (features["encoder_input_tokens"] == 0).sum() == 7
  assert error(forward(model, *features.values()), logits) < 1e-4


def test_the_variants_differ():
  configs = {name: golden(name)[0].config for name in NAMES}
  said = {
    name: (c.activation, c.gated, c.tied_embeddings, c.scaled_logits)
    for name, c in configs.items()
  }
  untied = ("gelu", True, False, False)
  assert said == {name: untied for name in NAMES} | {
    "tiny_t5_relu": ("relu", False, True, True)
  }
  layers = [configs["tiny_byt5"].encoder_layers]
  assert [*layers, configs["tiny_byt5"].decoder_layers] == [3, 1]
  assert configs["tiny_umt5"].bias_by_layer


def test_buckets_equal_hugging_faces():
  for name, expected in np.load(
    tiny_t5.GOLDEN / "relative_buckets.npz"
  ).items():
    side, count, far = name.split("_")
    bias = relative.Bias(
      1,
      buckets=int(count),
      max_distance=int(far),
      causal=side == "before",
      rngs=nnx.Rngs(0),
      dtype=jnp.float32,
    )
    bias.embedding[...] = jnp.arange(int(count), dtype=jnp.float32)[:, None]
    # A query at 300 sees slots 0 to 600.
    got = bias(jnp.array([[300]]), jnp.arange(601)[None])[0, 0, 0]
    np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.parametrize(
  "buckets, max_distance", [(6, 128), (0, 128), (32, 16), (32, 2**30)]
)
def test_refuses_buckets(buckets, max_distance):
  with pytest.raises(ValueError, match=f"buckets={buckets} and max_distance"):
    dataclasses.replace(
      tiny_t5.CONFIG, buckets=buckets, max_distance=max_distance
    )


def test_who_is_seen(model):
  inputs, outputs, t = jnp.arange(1, 8)[None], jnp.arange(11, 20)[None], 4
  one_logit = nnx.jit(nnx.grad(lambda m: m(inputs, outputs)[0, t].sum()))
  rows = one_logit(model)["shared"]["embedding"][...]
  reached = (np.abs(rows).sum(-1) > 0).tolist()
  assert reached[1:8] == [True] * 7
  assert reached[11:20] == [True] * (t + 1) + [False] * (8 - t)


def test_the_encoder_sees_both_ways(model):
  inputs = jnp.arange(1, 8)[None]
  segments = ambient.Segments(jnp.ones_like(inputs), packed=False)
  one = nnx.jit(
    nnx.grad(lambda m: m._encode(inputs, segments, None)[0, 3].sum())
  )
  rows = one(model)["shared"]["embedding"][...][1:8]
  assert (np.abs(rows).sum(-1) > 0).all()


def test_padding_has_no_influence(model):
  inputs, outputs = tokens_of(2, 7), tokens_of(2, 5, seed=1)
  targets = np.pad(outputs, ((0, 0), (0, 3)))
  plain = forward(model, inputs, outputs)
  wide = np.pad(inputs, ((0, 0), (0, 4)))
  padded = [
    forward(
      model,
      wide,
      np.where(targets > 0, targets, filler),
      decoder_target_tokens=targets,
    )
    for filler in (0, 7)
  ]
  assert np.isfinite(padded).all()
  np.testing.assert_array_equal(padded[0][:, :5], padded[1][:, :5])
  assert error(padded[0][:, :5], plain) < 1e-5
  # Nor has it on the left: distances are relative.
  left = np.pad(inputs, ((0, 0), (4, 0)))
  assert error(forward(model, left, outputs), plain) < 1e-5


@pytest.mark.parametrize("positions", [False, True])
def test_packed_equals_unpacked(model, positions):
  """Three examples in a row, of which one has no target left."""
  sizes = [(5, 4), (3, 6), (2, 0)]
  inputs = [tokens_of(1, n, seed=n) for n, _ in sizes]
  outputs = [tokens_of(1, n, seed=n + 9) for _, n in sizes]
  pad = np.zeros((1, 3), np.int32)
  rows = [np.concatenate([*part, pad], axis=1) for part in (inputs, outputs)]
  ids = [
    np.repeat([1, 2, 3, 0], [*counts, 3])[None]
    for counts in zip(*sizes, strict=True)
  ]
  features = dict(encoder_segment_ids=ids[0], decoder_segment_ids=ids[1])
  if positions:
    for side, counts in zip(
      ("encoder", "decoder"), zip(*sizes, strict=True), strict=True
    ):
      counted = [i for n in (*counts, 3) for i in range(n)]
      features[f"{side}_positions"] = np.array([counted])
  logits = forward(model, *rows, **features)
  assert np.isfinite(logits).all()
  alone = [
    forward(model, *pair) for pair in zip(inputs[:2], outputs, strict=False)
  ]
  assert error(logits[:, :10], np.concatenate(alone, axis=1)) < 1e-5


def test_positions_are_used(model):
  """Counted in tens, the same tokens are far from one another."""
  inputs, outputs = tokens_of(1, 6), tokens_of(1, 6, seed=1)
  plain = forward(model, inputs, outputs)
  for side in ("encoder", "decoder"):
    tens = {f"{side}_positions": 10 * np.arange(6)[None]}
    assert error(forward(model, inputs, outputs, **tens), plain) > 1e-2


def test_both_sides_are_packed_or_none(model):
  ids = jnp.ones((1, 4), int)
  with pytest.raises(ValueError, match="together, or neither"):
    model(ids, ids, encoder_segment_ids=ids)


class Probe(nnx.Linear):
  """A layer that says where it is and which tokens it is told of."""

  def __call__(self, x):
    segments, decoding = ambient.SEGMENTS.get(), ambient.DECODING.get()
    ids = segments and (segments.packed, segments.ids)
    PROBED.append((self.name, x.shape[1], decoding, ids))
    return super().__call__(x)


PROBED = []


def told(call):
  """What the layers of the last blocks see during call(model)."""
  PROBED.clear()

  def run():
    model = tiny_t5.base()
    for path, module in nnx.iter_modules(model):
      if isinstance(module, nnx.Linear) and path[0] != "lm_head":
        module.__class__, module.name = Probe, ".".join(map(str, path))
    call(model)
    return [ids and ids[1] for *_, ids in PROBED]

  arrays = jax.jit(run)()
  return {
    name: (length, decoding, ids and (ids[0], array.tolist()))
    for (name, length, decoding, ids), array in zip(PROBED, arrays, strict=True)
  }


INNER = dict(k="cross_attention.k", v="cross_attention.v")


@pytest.mark.parametrize("packed", [False, True])
def test_layers_are_told_the_segments_of_what_they_read(packed):
  inputs, targets = jnp.array([[5, 6, 7, 0, 0]]), jnp.array([[1, 2, 3, 0]])
  features, read, written = {}, [[1, 1, 1, 0, 0]], [[1, 1, 1, 0]]
  if packed:
    read, written = [[1, 1, 2, 0, 0]], [[1, 2, 2, 0]]
    features = dict(
      encoder_segment_ids=jnp.array(read),
      decoder_segment_ids=jnp.array(written),
    )
  found = told(
    lambda model: model.hidden(
      inputs, targets, decoder_target_tokens=targets, **features
    )
  )
  assert len(found) == 2 * (4 + 3) + 2 * (8 + 3)
  for name, seen in found.items():
    of_encoder = re.search(r"encoder\.blocks|cross_attention\.[kv]$", name)
    expected = (5, None, (packed, read))
    assert seen == (expected if of_encoder else (4, None, (packed, written)))


def test_layers_are_told_when_decoding():
  prompts, lengths = jnp.array([[5, 6, 7], [5, 0, 0]]), jnp.array([3, 1])
  found = told(lambda model: model.start(prompts, lengths, room=2))
  assert len(found) == 2 * (4 + 3) + 2 * (8 + 3)
  for name, seen in found.items():
    of_encoder = re.search(r"encoder\.blocks|cross_attention\.[kv]$", name)
    ids = [[1, 1, 1], [1, 0, 0]]
    whole = (3, None, (False, ids))
    assert seen == (whole if of_encoder else (1, True, None)), name


@pytest.mark.parametrize("name", ["tiny_t5_gated", "tiny_umt5"])
def test_remat_changes_nothing_but_memory(name):
  batch = tiny_t5.batch()
  features = {k: batch[k] for k in t5.T5.FEATURES if k in batch}
  results = []

  def loss(state, graph):
    model = nnx.merge(graph, state)
    return jnp.square(model.logits(model.hidden(**features))).mean()

  for remat in (False, True):
    graph, state = nnx.split(golden(name, remat=remat)[0])
    grad = jax.value_and_grad(loss)
    results.append(jax.jit(grad, static_argnums=1)(state, graph))
    program = str(
      jax.make_jaxpr(jax.grad(loss), static_argnums=1)(state, graph)
    )
    assert ("remat" in program) == remat
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    *results,
  )


def test_made_of_shapes_with_the_promised_paths():
  model = nnx.eval_shape(tiny_t5.base)
  parameters = dict(nnx.to_flat_state(nnx.state(model)))
  for variable in parameters.values():
    assert isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    assert len(variable.get_metadata("axes")) == len(variable.shape)
  found = {
    ".".join(map(str, path))
    for path, module in nnx.iter_modules(model)
    if type(module) is nnx.Linear
  }
  expected = {"lm_head"}
  for stack, kinds in (
    ("encoder", ["attention"]),
    ("decoder", ["attention", "cross_attention"]),
  ):
    for i in range(2):
      block = f"{stack}.blocks.{i}"
      expected |= {f"{block}.{kind}.{p}" for kind in kinds for p in "qkvo"}
      expected |= {f"{block}.mlp.{p}" for p in ("wi_0", "wi_1", "wo")}
  assert found == expected
  biases = [p for p in parameters if "position_bias" in p]
  assert [p[:3] for p in biases] == [
    ("decoder", "blocks", 0),
    ("encoder", "blocks", 0),
  ]


def test_computes_in_the_dtype_of_its_parameters():
  model, features, logits = golden("tiny_t5_relu", dtype=jnp.bfloat16)
  assert model.hidden(**features).dtype == jnp.bfloat16
  got = forward(model, *features.values())
  assert got.dtype == jnp.float32
  assert 1e-4 < np.abs(got - logits).mean() / np.abs(logits).mean() < 0.05


def test_refuses_an_unknown_activation():
  with pytest.raises(ValueError, match="'tanh'; there are relu, gelu, silu"):
    dataclasses.replace(tiny_t5.CONFIG, activation="tanh")
