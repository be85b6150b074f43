"""Checksums of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import checksums

DTYPES = ["float32", "bfloat16", "int32", "uint32", "int8", "bool"]


def expected(array):
  """The docstring's sum, one element at a time in whole numbers of Python."""
  size = array.dtype.itemsize
  raw = np.ascontiguousarray(array).view(f"uint{8 * size}").ravel()
  total = sum(mix(bits ^ mix(i)) for i, bits in enumerate(raw.tolist(), 1))
  return f"{total % 2**32:08x}"


def mix(x):
  x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
  x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
  return x ^ x >> 16


def draw(dtype, shape=(8, 6)):
  numbers = np.random.default_rng(0).normal(size=shape) * 50
  return np.asarray(jnp.asarray(numbers).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum(dtype):
  array = draw(dtype)
  found = checksums.of({"a": {"b": jnp.asarray(array)}})
  assert found == {"a.b": f"{dtype}[8,6] {expected(array)}"}
  assert checksums.kinds({"a": {"b": array}}) == {"a.b": f"{dtype}[8,6]"}


def test_of_nothing():
  assert checksums.of({"a": jnp.zeros((0, 3)), "b": jnp.int32(0)}) == {
    "a": "float32[0,3] 00000000",
    "b": f"int32[] {mix(mix(1)):08x}",
  }


def test_every_bit_counts():
  array = draw("float32", (3, 5))
  sums = {expected(array)}
  for element in range(array.size):
    for bit in range(32):
      other = array.copy()
      other.view(np.uint32).ravel()[element] ^= np.uint32(1 << bit)
      sums.add(checksums.of({"a": other})["a"].split()[1])
  assert len(sums) == 1 + 15 * 32


def test_the_order_counts():
  """Also of floats whose lower bits are all 0."""
  ones = np.ones(64, np.float32)
  sums = set()
  for place in range(64):
    other = ones.copy()
    other[place] = -2.0
    sums.add(checksums.of({"a": other})["a"])
  assert len(sums) == 64


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_split_over_devices(axis, kind):
  array = draw("float32", (16, 24))
  kinds = (jax.sharding.AxisType[kind],)
  mesh = jax.make_mesh((8,), ("x",), axis_types=kinds)
  names = [None, None]
  if axis is not None:
    names[axis] = "x"
  spec = jax.sharding.PartitionSpec(*names)
  split = jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
  assert checksums.of({"a": split})["a"].split()[1] == expected(array)
