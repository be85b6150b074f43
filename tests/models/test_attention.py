"""Kernels against the plain attention."""

import dataclasses
import functools
import importlib.util
import math
import types
from typing import NamedTuple
from unittest import mock

from flax import nnx
import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import meshes, plan, sharding
from sira_jax.models import attention, decoder, layers
from tests import tiny

LENGTH = 256
# Segments of 100 and 120 tokens, and padding; one that ends within a block.
IDS = np.repeat([[1, 2, 0], [1, 1, 2]], [100, 120, 36], axis=1).astype(np.int32)
CASES = {
  "causal": dict(),
  "window": dict(window=70),
  "packed": dict(ids=IDS),
  "packed, window": dict(ids=IDS, window=40),
}


def inputs(heads, kv_heads, *, head_dim=16, dtype=jnp.float32):
  """Queries, keys, values, and what comes back to them in a gradient."""
  rng = np.random.default_rng(0)
  counts = (heads, kv_heads, kv_heads, heads)
  return [
    jnp.asarray(rng.normal(size=(2, LENGTH, n, head_dim)), dtype)
    for n in counts
  ]


def sight_of(case):
  return attention.Sight(**CASES[case])


def both(function, given):
  """A function's value, and the gradients of queries, keys and values."""
  *arrays, back = given
  value, pull = jax.vjp(function, *arrays)
  return [value, *pull(back)]


def assert_same(function, sight, given, *, tolerance=1e-4, **settings):
  mask = sight.mask(LENGTH)
  expected = both(
    lambda *x: layers.attention(*x, mask, **settings),
    given,
  )
  got = jax.jit(lambda *g: both(function, g))(*given)
  for wanted, found in zip(expected, got, strict=True):
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=tolerance)


def test_mask_by_hand():
  sight = attention.Sight(jnp.array([[1, 1, 1, 2, 2, 0]]), window=2)
  expected = """
    1.....
    11....
    .11...
    ...1..
    ...11.
    .....1
  """
  rows = [[c == "1" for c in row] for row in expected.split()]
  np.testing.assert_array_equal(sight.mask(6)[0], rows)
  assert attention.Sight().mask(3).shape == (1, 3, 3)


@pytest.mark.parametrize(
  "case, settings",
  [
    ("causal", {}),
    ("window", dict(scale=0.7, cap=2.0)),
    ("packed", {}),
    ("packed, window", {}),
  ],
)
def test_splash(case, settings):
  """Forward and backward, four query heads on two key heads."""
  sight = sight_of(case)

  def kernel(*x):
    return attention.splash(*x, sight, interpret=True, **settings)

  assert_same(kernel, sight, inputs(4, 2), **settings)


@pytest.mark.parametrize("case", CASES)
def test_what_cudnn_is_asked(case):
  """The same arguments, of XLA's implementation."""
  sight = sight_of(case)

  def kernel(*x):
    return attention.cudnn(*x, sight, scale=0.7, implementation="xla")

  assert_same(kernel, sight, inputs(4, 2), scale=0.7)


def test_cudnn_takes_it(monkeypatch):
  """As far as to its custom call: there is no GPU, whose version is asked."""
  for name, answer in [
    ("check_cudnn_version", 91000),
    ("check_compute_capability", True),
    ("is_cuda_compute_capability_equal", False),
  ]:
    asked = mock.Mock(return_value=answer)
    monkeypatch.setattr(fused_attention_stablehlo, name, asked)
  given = inputs(4, 2, dtype=jnp.bfloat16)
  sight = sight_of("packed, window")
  step = jax.jit(lambda *g: both(lambda *x: attention.cudnn(*x, sight), g))
  text = step.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
  for call in ("__cudnn$fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"):
    assert call in text
  # Two calls, whose quotes are escaped.
  said = text.replace("\\22", "")
  assert said.count("sliding_window_length: 40,") == 2
  assert said.count("mask_type: CAUSAL,") == 2


class Chip(NamedTuple):
  platform: str
  compute_capability: str = ""


@pytest.mark.parametrize(
  "chip, shape, settings, expected",
  [
    (Chip("tpu"), (1024, 8, 64), {}, attention.splash),
    (Chip("tpu"), (1024, 8, 64), dict(cap=30.0), attention.splash),
    (Chip("tpu"), (256, 8, 64), {}, None),
    (Chip("tpu"), (1000, 8, 64), {}, None),
    (Chip("tpu"), (1024, 8, 64), dict(dtype=jnp.float16), None),
    (Chip("gpu", "8.0"), (1024, 8, 64), {}, attention.cudnn),
    (Chip("gpu", "8.0"), (1024, 8, 256), {}, None),
    (Chip("gpu", "9.0"), (1024, 8, 256), {}, attention.cudnn),
    (Chip("gpu", "12.0"), (1024, 8, 256), {}, attention.cudnn),
    (Chip("gpu", "9.0"), (1024, 8, 60), {}, None),
    (Chip("gpu", "9.0"), (1023, 8, 64), {}, None),
    (Chip("gpu", "7.5"), (1024, 8, 64), {}, None),
    (Chip("gpu", "9.0"), (1024, 8, 64), dict(cap=30.0), None),
    (Chip("gpu", "9.0"), (1024, 8, 64), dict(dtype=jnp.float32), None),
    (Chip("cpu"), (1024, 8, 64), {}, None),
  ],
)
def test_which_kernel(chip, shape, settings, expected, monkeypatch):
  settings = dict(dtype=jnp.bfloat16, cap=None) | settings
  monkeypatch.setattr(sharding, "device", lambda: chip)
  backend = types.SimpleNamespace(platform_version="cuda 13")
  monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: backend)
  x = jax.ShapeDtypeStruct((2, *shape), settings["dtype"])
  assert attention._kernel(x, x, settings["cap"]) is expected


def test_a_gpu_without_cuda(monkeypatch):
  monkeypatch.setattr(sharding, "device", lambda: Chip("gpu"))
  x = jax.ShapeDtypeStruct((2, 1024, 8, 64), jnp.bfloat16)
  assert attention._kernel(x, x, None) is None


MESHES = {
  "rows": (dict(data=4), 2, {}, True),
  "rows and heads": (dict(data=2, tensor=2), 2, {}, True),
  "one key head": (dict(data=1, tensor=2), 1, {}, True),
  "key heads that do not divide": (dict(data=1, tensor=4), 2, {}, False),
  "key heads apart": (dict(data=1, tensor=2), 2, {"kv_heads": None}, False),
  "rows that do not divide": (dict(data=8), 2, {}, False),
  "divided length": (dict(data=1, tensor=2), 2, {"length": "tensor"}, False),
}


@pytest.mark.parametrize("name", MESHES)
def test_on_a_mesh(name, monkeypatch):
  """Each device's rows and heads by the kernel, if they are its own."""
  sizes, kv_heads, rules, expected = MESHES[name]
  calls = []

  def kernel(queries, keys, values, sight, *, scale):
    calls.append(queries.shape[2] // keys.shape[2])
    mask = sight.mask(queries.shape[1])
    return layers.attention(queries, keys, values, mask, scale=scale)

  monkeypatch.setattr(attention, "_kernel", lambda *args: kernel)
  given = [jnp.tile(x, (2, 1, 1, 1)) for x in inputs(4, kv_heads)]
  sight = attention.Sight(jnp.tile(IDS, (2, 1)), window=9)
  mask = sight.mask(LENGTH)
  wanted = jax.jit(lambda *g: both(lambda *x: layers.attention(*x, mask), g))
  wanted = wanted(*given)
  devices = jax.devices()[: math.prod(sizes.values())]
  with sharding.use(meshes.mesh(**sizes, devices=devices), rules):
    attend = lambda *x: attention.attend(*x, sight)  # noqa: E731
    found = jax.jit(lambda *g: both(attend, g))(*given)
  for one, other in zip(wanted, found, strict=True):
    np.testing.assert_allclose(other, one, atol=1e-4)
  assert bool(calls) == expected
  if name == "one key head":
    assert calls == [2]


def test_a_decoder_whose_kernel_runs(monkeypatch):
  """On a mesh, of rows of two examples each."""
  config = dataclasses.replace(
    tiny.CONFIG, layers=1, window=70, windowed=(True,), max_length=LENGTH
  )
  model = decoder.Decoder(config, rngs=nnx.Rngs(0))
  tokens = np.random.default_rng(0).integers(1, 64, (2, LENGTH))

  def run():
    return nnx.jit(lambda m: m.hidden(tokens, decoder_segment_ids=IDS))(model)

  wanted = run()
  splash = mock.Mock(
    side_effect=functools.partial(attention.splash, interpret=True)
  )
  monkeypatch.setattr(attention, "_kernel", lambda *args: splash)
  with sharding.use(meshes.mesh(data=2, devices=jax.devices()[:2])):
    found = run()
  (call,) = splash.call_args_list
  queries, _, _, sight = call.args
  assert (queries.shape[0], sight.ids.shape[0], sight.window) == (1, 1, 70)
  np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_cache_takes_no_kernel(monkeypatch):
  """Which would ask None, and fail."""
  monkeypatch.setattr(attention, "_kernel", None)
  queries, keys, values, _ = inputs(4, 2)
  at = jnp.array([[3], [200]])
  sight = attention.Sight(at=at)
  got = jax.jit(attention.attend)(queries[:, :1], keys, values, sight)
  for row, slots in enumerate([4, 201]):
    given = (queries[row, :1], keys[row, :slots], values[row, :slots])
    wanted = layers.attention(*(x[None] for x in given), np.ones((1, 1, slots)))
    np.testing.assert_allclose(got[row], wanted[0], atol=1e-6)


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="compiles for a TPU, and libtpu is not installed",
)
@pytest.mark.parametrize("sizes", [dict(data=4), dict(data=2, tensor=2)])
def test_compiles_for_a_tpu(sizes):
  mesh = meshes.mesh(**sizes, devices=plan.devices("v5e:2x2"))

  def function(x, keys, ids):
    sight = attention.Sight(ids, window=100)

    def loss(x, keys):
      return attention.attend(x, keys, keys, sight, cap=30.0).sum()

    return jax.grad(loss, (0, 1))(x, keys)

  with sharding.use(mesh):
    words = {"batch": 4, "length": 1024, "heads": 8, "kv_heads": 2}
    given = []
    for axes, dtype in [
      (("batch", "length", "heads", None), jnp.bfloat16),
      (("batch", "length", "kv_heads", None), jnp.bfloat16),
      (("batch", "length"), jnp.int32),
    ]:
      shape = [words.get(axis, 64) for axis in axes]
      where = jax.sharding.NamedSharding(mesh, sharding.spec(shape, *axes))
      given.append(jax.ShapeDtypeStruct(shape, dtype, sharding=where))
    program = jax.jit(function).lower(*given).compile()
  text = program.as_text()
  # Forward, and backward for queries and for keys and values.
  assert text.count('custom_call_target="tpu_custom_call"') == 3
  assert "all-gather" not in text
  # The scores of a row alone would be 8 MiB a head.
  assert program.memory_analysis().temp_size_in_bytes < 4 * 2**20
