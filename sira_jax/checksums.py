# SPDX-License-Identifier: Apache-2.0
"""Checksums of arrays, the same wherever an array lies and however it is split.

Orbax notices damage to its own indices only: a flipped bit in the numbers of a
larger array is restored without a word (seen with 0.12.8).
"""

from typing import Any

import jax
import jax.numpy as jnp


def of(tree: Any) -> dict[str, str]:
  """Each array's type, shape and checksum, by its path.

  The checksum is sum over i of mix(b_i xor mix(i)) modulo 2**32, with b_i the
  bits of element i, in rows, counted from 1. A change of one element of up to
  32 bits always changes it; any other does but once in 2**32. Whole numbers
  add up to the same in any order, so it is computed where the array is, and no
  order or device shows in it.

  Returns:
    path -> "float32[2,3] 9f02c41a".
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  sums = []
  for _, leaf in flat:
    sums.append(_sum(leaf))
    devices = sums[-1].devices()
    if len(devices) > 1 and next(iter(devices)).platform == "cpu":
      # One after another: several CPU devices, given many sums at once, take
      # them in different orders and wait for each other forever.
      sums[-1].block_until_ready()
  sums = jax.device_get(sums)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): (
      f"{kind(leaf)} {int(total):08x}"
    )
    for (path, leaf), total in zip(flat, sums, strict=True)
  }


def kinds(tree: Any) -> dict[str, str]:
  """Each array's type and shape alone: path -> "float32[2,3]"."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): kind(leaf)
    for path, leaf in flat
  }


def kind(leaf: Any) -> str:
  """An array's type and shape, as "float32[2,3]"."""
  return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


@jax.jit
def _sum(array):
  if array.dtype == bool:
    array = array.astype(jnp.uint8)
  width = min(array.dtype.itemsize, 4)
  bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * width}"))
  # Of the array's own shape: raveled, a split array would have to be moved.
  place, stride = jnp.uint32(0), 1
  for axis in reversed(range(bits.ndim)):
    shape = [1] * bits.ndim
    shape[axis] = bits.shape[axis]
    along = jnp.arange(bits.shape[axis], dtype=jnp.uint32).reshape(shape)
    place = place + along * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return _mix(bits.astype(jnp.uint32) ^ _mix(place + 1)).sum(dtype=jnp.uint32)


def _mix(x):
  """MurmurHash3's finalizer: one to one, and every bit depends on every bit."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
