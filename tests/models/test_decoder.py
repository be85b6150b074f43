# SPDX-License-Identifier: Apache-2.0
"""The decoder against Hugging Face's, and what its masks promise."""

import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.models import decoder, layers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIG = decoder.DecoderConfig(
  vocabulary_size=96,
  layers=2,
  d_model=32,
  heads=4,
  kv_heads=2,
  head_dim=16,
  d_ff=48,
  rope_theta=500.0,
  norm_epsilon=1e-3,
  tied_embeddings=False,
  max_length=64,
)


def load_golden(name: str, **options):
  """A tiny Hugging Face Llama as our Decoder, with its tokens and logits."""
  arrays = dict(np.load(GOLDEN / f"{name}.npz"))
  tokens, logits = arrays.pop("tokens"), arrays.pop("logits")
  tied = "lm_head.weight" not in arrays
  config = decoder.DecoderConfig(**(vars(CONFIG) | {"tied_embeddings": tied}))
  graph, state = nnx.split(
    nnx.eval_shape(lambda: decoder.Decoder(config, rngs=nnx.Rngs(0), **options))
  )
  parameters = dict(nnx.to_flat_state(state))
  for path, variable in parameters.items():
    *module, kind = map(str, path)
    prefix = [] if module == ["lm_head"] else ["model"]
    array = arrays.pop(".".join([*prefix, *module, "weight"]))
    array = array.T if kind == "kernel" else array
    assert array.shape == variable.shape
    parameters[path] = variable.replace(jnp.asarray(array, variable.dtype))
  assert not arrays
  model = nnx.merge(graph, nnx.from_flat_state(parameters))
  return model, tokens, logits


@pytest.fixture(scope="module")
def model():
  return load_golden("tiny_llama_untied")[0]


@nnx.jit
def forward(model, tokens, **features):
  return model(tokens, **features)


def tokens_of(*shape: int, seed: int = 0):
  return jax.random.randint(jax.random.key(seed), shape, 1, 96)


def error(got, expected) -> float:
  return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ["tiny_llama_tied", "tiny_llama_untied"])
def test_equals_hugging_face(name):
  model, tokens, logits = load_golden(name)
  assert error(forward(model, tokens), logits) < 1e-4


def test_no_later_token_is_seen(model):
  tokens, t = jnp.arange(1, 11)[None], 4
  one_logit = nnx.jit(nnx.grad(lambda model: model(tokens)[0, t].sum()))
  by_token = one_logit(model)["embed_tokens"]["embedding"][...][1:11]
  reached = np.abs(by_token).sum(-1) > 0
  assert reached.tolist() == [True] * (t + 1) + [False] * (9 - t)


@pytest.mark.parametrize("positions", [False, True])
def test_packed_equals_unpacked(model, positions):
  first, second = tokens_of(1, 5), tokens_of(1, 7, seed=1)
  packed = jnp.concatenate([first, second, jnp.zeros((1, 4), int)], axis=1)
  ids = jnp.array([[1] * 5 + [2] * 7 + [0] * 4])
  features = {"decoder_segment_ids": ids}
  if positions:
    counted = [*range(5), *range(7), *range(4)]
    features["decoder_positions"] = jnp.array([counted])
  logits = forward(model, packed, **features)
  assert np.isfinite(logits).all()
  assert error(logits[:, :5], forward(model, first)) < 1e-5
  assert error(logits[:, 5:12], forward(model, second)) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_influence(model, side):
  tokens = tokens_of(2, 6)
  real = slice(3, None) if side == "left" else slice(None, 6)
  targets = jnp.zeros((2, 9), int).at[:, real].set(1)
  padded = [
    forward(
      model,
      tokens_of(2, 9, seed=seed).at[:, real].set(tokens),
      decoder_target_tokens=targets,
    )
    for seed in (1, 2)
  ]
  assert np.isfinite(padded).all()
  np.testing.assert_array_equal(padded[0][:, real], padded[1][:, real])
  assert error(padded[0][:, real], forward(model, tokens)) < 1e-5


class Probe(nnx.Module):
  """Keeps the segments that a layer may ask for."""

  def __init__(self):
    self.seen = []

  def __call__(self, x):
    self.seen.append(ambient.SEGMENTS.get())
    return x


def told(call) -> tuple[bool, list] | None:
  """What the layers of a model see during call(model)."""
  config = decoder.DecoderConfig(**(vars(CONFIG) | {"layers": 1}))
  packed = []

  @jax.jit
  def ids():
    model = decoder.Decoder(config, rngs=nnx.Rngs(0))
    model.layers[0].mlp = probe = Probe()
    call(model)
    (seen,) = probe.seen
    packed.append(seen and seen.packed)
    return seen and seen.ids

  got = ids()
  return None if got is None else (packed[0], got.tolist())


def test_layers_are_told_the_segments():
  tokens, ids = tokens_of(1, 4), jnp.array([[1, 1, 2, 0]])
  positions = jnp.arange(4)[None]

  def nothing(model):
    # Nor are they told what somebody else said outside.
    with ambient.SEGMENTS(ambient.Segments(ids, packed=True)):
      model.hidden(tokens)

  def unpacked(model):
    model.hidden(tokens, decoder_target_tokens=ids)

  def packed(model):
    model.hidden(tokens, decoder_target_tokens=ids, decoder_segment_ids=ids)

  def prompt(model):
    model.extend(tokens, positions, model.init_cache(1, 4), real=ids > 0)

  def later(model):
    model.extend(tokens, positions, model.init_cache(1, 4))

  assert told(nothing) is None
  assert told(unpacked) == (False, [[1, 1, 1, 0]])
  assert told(packed) == (True, [[1, 1, 2, 0]])
  assert told(prompt) == (False, [[1, 1, 1, 0]])
  assert told(later) is None


def test_remat_changes_nothing_but_memory(model):
  tokens = tokens_of(2, 8)
  recomputing, _, _ = load_golden("tiny_llama_untied", remat=True)

  def loss(state, graph):
    logits = nnx.merge(graph, state)(tokens, decoder_target_tokens=tokens)
    return jnp.square(logits).mean()

  results = []
  for each in (model, recomputing):
    graph, state = nnx.split(each)
    grad = jax.value_and_grad(loss)
    results.append(jax.jit(grad, static_argnums=1)(state, graph))
    program = str(
      jax.make_jaxpr(jax.grad(loss), static_argnums=1)(state, graph)
    )
    assert ("remat" in program) == each.remat
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    *results,
  )


class Record(nnx.Intermediate):
  """What a layer leaves for `nnx.capture`."""


class Recording(nnx.Linear):
  """As a routed layer does: its class is swapped in, and it records."""

  def __call__(self, x):
    ids = ambient.SEGMENTS.get().ids
    self.sow(Record, "real", jnp.sum(ids))
    return super().__call__(x)


def test_remat_lets_records_out():
  model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(0), remat=True)
  for block in model.layers:
    block.mlp.up_proj.__class__ = Recording
  targets = jnp.array([[5, 6, 0]])

  @nnx.jit
  def records(model):
    run = lambda model: model.hidden(targets, decoder_target_tokens=targets)  # noqa: E731
    return nnx.capture(run, Record)(model)[1]

  assert [int(n) for n in jax.tree.leaves(records(model))] == [2, 2]


@nnx.jit
def extend(model, tokens, positions, cache, **real):
  return model.extend(tokens, positions, cache, **real)


def test_extend_equals_the_full_forward(model):
  lengths, total = jnp.array([3, 6, 1]), 9
  tokens = tokens_of(3, total)
  prompt = jnp.broadcast_to(jnp.arange(6), (3, 6))
  real = prompt < lengths[:, None]
  # 95 is in the padding only: were it seen, the numbers would differ.
  padded = jnp.where(real, tokens[:, :6], 95)
  hidden, cache = extend(
    model, padded, prompt, model.init_cache(3, total), real=real
  )
  expected = nnx.jit(lambda model: model.hidden(tokens))(model)
  assert error(hidden[real], expected[:, :6][real]) < 1e-5
  for step in range(3):
    at = (lengths + step)[:, None]
    token = jnp.take_along_axis(tokens, at, axis=1)
    hidden, cache = extend(model, token, at, cache)
    wanted = jnp.take_along_axis(expected, at[..., None], axis=1)
    assert error(hidden, wanted) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_made_of_shapes_with_the_promised_paths(tied):
  config = decoder.DecoderConfig(**(vars(CONFIG) | {"tied_embeddings": tied}))
  model = nnx.eval_shape(lambda: decoder.Decoder(config, rngs=nnx.Rngs(0)))
  parameters = dict(nnx.to_flat_state(nnx.state(model)))
  for variable in parameters.values():
    assert isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    assert len(variable.get_metadata("axes")) == len(variable.shape)
  linears = {
    ".".join(map(str, path))
    for path, module in nnx.iter_modules(model)
    if type(module) is nnx.Linear
  }
  expected = {
    f"layers.{i}.{name}_proj"
    for i in range(2)
    for name in [f"self_attn.{p}" for p in "qkvo"]
    + [f"mlp.{p}" for p in ("gate", "up", "down")]
  }
  assert linears == expected | (set() if tied else {"lm_head"})


def test_computes_in_the_dtype_of_its_parameters():
  model, tokens, logits = load_golden("tiny_llama_tied", dtype=jnp.bfloat16)
  assert model.hidden(tokens).dtype == jnp.bfloat16
  assert model.init_cache(1, 2).keys[0].dtype == jnp.bfloat16
  got = forward(model, tokens)
  assert got.dtype == jnp.float32
  assert error(got, logits) < 0.1


def test_refuses_what_cannot_be():
  with pytest.raises(ValueError, match="heads=4 and kv_heads=3"):
    decoder.DecoderConfig(**(vars(CONFIG) | {"kv_heads": 3}))
  with pytest.raises(ValueError, match="even"):
    decoder.DecoderConfig(**(vars(CONFIG) | {"head_dim": 15}))
  model = decoder.Decoder(CONFIG, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="max_length=64 tokens, got 65"):
    model(tokens_of(1, 65))


def test_attention_by_hand():
  # Two query heads share one key head; head_dim 4, so scores are halved.
  queries = jnp.array([[[[2.0, 0, 0, 0], [0, 2.0, 0, 0]]] * 2])
  keys = jnp.array([[[[1.0, 0, 0, 0]], [[0, 1.0, 0, 0]]]])
  values = jnp.array([[[[1.0, 0, 0, 0]], [[0, 1.0, 0, 0]]]])
  # The first query sees both slots, the second none.
  mask = jnp.array([[[True, True], [False, False]]])
  got = layers.attention(queries, keys, values, mask)
  high = np.e / (np.e + 1)
  np.testing.assert_allclose(
    got[0, 0, :, :2], [[high, 1 - high], [1 - high, high]], rtol=1e-6
  )
  np.testing.assert_allclose(got[0, 1, :, :2], np.full((2, 2), 0.5))


def back_through_tied_logits(rows, hidden, slope):
  def scores(rows, hidden):
    table = nnx.eval_shape(lambda: nnx.Embed(24, 16, rngs=nnx.Rngs(0)))
    table.embedding.set_value(rows)
    return layers.tied_logits(table, hidden)

  return jax.vjp(scores, rows, hidden)[1](slope)


@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [(jnp.float32, 1e-5), (jnp.float16, 5e-3), (jnp.bfloat16, 5e-2)],
)
def test_back_through_tied_logits(dtype, tolerance):
  rng = np.random.default_rng(0)
  rows, hidden, slope = (
    rng.normal(size=shape) for shape in ((24, 16), (2, 3, 16), (2, 3, 24))
  )
  given = jnp.asarray(rows, dtype), jnp.asarray(hidden, dtype)
  given = (*given, jnp.asarray(slope, jnp.float32))
  to_rows, to_hidden = back_through_tied_logits(*given)
  assert to_rows.dtype == to_hidden.dtype == dtype
  bounds = dict(rtol=tolerance, atol=tolerance)
  np.testing.assert_allclose(np.float64(to_hidden), slope @ rows, **bounds)
  expected = np.einsum("blv,bld->vd", slope, hidden)
  np.testing.assert_allclose(np.float64(to_rows), expected, **bounds)
  text = jax.jit(back_through_tied_logits).lower(*given).as_text()
  operands = [
    line[line.rindex(" : ") : line.rindex("->")]
    for line in text.splitlines()
    if "dot_general" in line
  ]
  # Small float16 numbers would be lost.
  kind = {jnp.bfloat16: "bf16>"}.get(dtype, "f32>")
  assert len(operands) == 2
  assert all(kind in one.split(", ")[0] for one in operands)
