# SPDX-License-Identifier: Apache-2.0
"""A layer's random draws: from the step's key, its own seed and the position.

By a hash (two rounds of MurmurHash3's finalizer) instead of threefry: masks
over [tokens, experts] at every adapted layer would otherwise be a noticeable
part of the step, and most of its compilation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt
import numpy as np

from sira_jax import ambient

Seed = int | UInt[Array, ""]


def keep(shape: tuple[int, ...], rate: float, seed: Seed) -> Bool[Array, "..."]:
  """False with probability `rate`.

  Raises:
    ValueError: no `ambient.DROPOUT_KEY`.
  """
  return _bits(shape, seed) >= np.uint32(round(rate * 2**32))


def choice(n: int, count: int, seed: Seed) -> Int[Array, "count"]:
  """`count` independent numbers from 0 to n - 1.

  Raises:
    ValueError: no `ambient.DROPOUT_KEY`.
  """
  # The remainder of 32 random bits is uneven by less than n / 2**32.
  return (_bits((count,), seed) % np.uint32(n)).astype(jnp.int32)


def _bits(shape, seed) -> UInt[Array, "..."]:
  key = ambient.DROPOUT_KEY.get()
  if key is None:
    raise ValueError(
      "Dropout and random experts need a key in training: enter"
      " ambient.DROPOUT_KEY(key) around the forward pass, or call model.eval()."
    )
  words = jax.random.key_data(key).reshape(-1)
  strides = np.cumprod([1, *shape[:0:-1]])[::-1].astype(np.uint32)
  index = sum(
    jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    for axis, stride in enumerate(strides)
  )
  # Multiplied, so that a seed and a key that are neighbours do not collide.
  own = jnp.asarray(seed, jnp.uint32) * np.uint32(0x9E3779B1)
  return _mix(_mix(index + words[0]) ^ (words[-1] + own))


def _mix(bits):
  bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)
