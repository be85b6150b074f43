# SPDX-License-Identifier: Apache-2.0
"""Causal self-attention by the best kernel at hand.

`layers.attention` holds the scores of all pairs of a row's tokens. A kernel
holds those of a block at a time, forward and backward, and passes over blocks
that nobody sees: memory grows with the length, not with its square. It needs to
be told who sees whom in its own words, which `Sight` has:

    TPU   `splash`, in Pallas        rows of LONG tokens and more
    GPU   `cudnn`                    bfloat16 or float16, without a cap
    else  `layers.attention`         of the mask that `Sight.mask` gives

Which one is decided while tracing, for the devices in use
(`sharding.device`): a step compiled for TPUs that are not there has theirs.
The numbers are the same, but for the rounding of another order of sums.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sira_jax import sharding
from sira_jax.models import layers

# Rows of fewer tokens are left to XLA, which fuses their small scores well.
# Chosen, not measured.
LONG = 512
# Sides of a block of scores, of which `splash` takes the greatest that divides
# the length. The least is what the kernel can; 512 x 512 float32 are 1 MiB.
BLOCKS = (512, 256, 128)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["ids", "at", "prefix"],
  meta_fields=["window"],
)
@dataclasses.dataclass(frozen=True)
class Sight:
  """Whom tokens see: themselves and those before them, less what these leave.

  Attributes:
    ids: a number of each token of a row, which sees those with its own.
    window: how many it sees at most, itself included.
    at: which slots of a cache the tokens are in, which then has no ids; None if
      the tokens are all there is.
    prefix: which tokens see each other in both directions: those that come
      first, in a row, of an equal number, or in a cache.
  """

  ids: Int[Array, "batch length"] | None = None
  window: int | None = None
  at: Int[Array, "batch length"] | None = None
  prefix: Bool[Array, "batch length"] | None = None

  def mask(self, slots: int) -> Bool[Array, "#batch length slots"]:
    """The same as a mask: True where a query sees a slot."""
    at = jnp.arange(slots)[None] if self.at is None else self.at
    ago = at[:, :, None] - jnp.arange(slots)
    mask = ago >= 0
    if self.prefix is not None:
      later = slots - self.prefix.shape[1]
      seen = jnp.pad(self.prefix, ((0, 0), (0, later)))
      # What comes after a prefix sees it anyhow.
      mask |= seen[:, None]
    if self.window is not None:
      mask &= jnp.abs(ago) < self.window
    if self.ids is not None:
      mask &= self.ids[:, :, None] == self.ids[:, None, :]
    return mask


def attend(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch slots kv_heads head_dim"],
  values: Float[Array, "batch slots kv_heads head_dim"],
  sight: Sight,
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> Float[Array, "batch length heads head_dim"]:
  """`layers.attention` of `sight.mask`, by a kernel where one can."""
  kernel, specs = None, None
  # Kernels count on tokens that see no later one.
  if sight.at is None and sight.prefix is None:
    kernel, specs = _kernel(queries, keys, cap), _specs(queries, keys)
  if kernel is None or specs is None:
    mask = sight.mask(keys.shape[1])
    return layers.attention(queries, keys, values, mask, scale=scale, cap=cap)
  run = functools.partial(kernel, scale=scale)
  if cap is not None:
    run = functools.partial(run, cap=cap)
  one, many, ids = specs
  of_sight = dataclasses.replace(sight, ids=None if sight.ids is None else ids)
  return sharding.mapped(run, (one, many, many, of_sight), one)(
    queries, keys, values, sight
  )


def _kernel(queries, keys, cap) -> Callable | None:
  """The one for the devices in use, if it can do these shapes."""
  device = sharding.device()
  length, head_dim = queries.shape[1], queries.shape[-1]
  same = queries.dtype == keys.dtype
  if device.platform == "tpu":
    fitting = length >= LONG and length % BLOCKS[-1] == 0
    known = queries.dtype in (jnp.bfloat16, jnp.float32)
    return splash if fitting and known and same else None
  if device.platform == "gpu":
    # JAX asks the default backend the same, and raises.
    there = jax.extend.backend.get_backend().platform_version
    capability = float(device.compute_capability) if "cuda" in there else 0
    widest = 256 if capability >= 9 else 128
    fitting = head_dim % 8 == 0 and head_dim <= widest and length % 2 == 0
    known = queries.dtype in (jnp.bfloat16, jnp.float16) and cap is None
    return cudnn if capability >= 8 and fitting and known and same else None
  return None


def _specs(queries, keys):
  """Where queries, keys and ids are divided; None unless heads go with theirs.

  A device then has whole rows, and the key head of each of its query heads.
  """
  one = sharding.spec(queries.shape, "batch", "length", "heads", None)
  many = sharding.spec(keys.shape, "batch", "length", "kv_heads", None)
  ids = sharding.spec(queries.shape[:2], "batch", "length")
  if one is None or many is None or one[1] or ids is None:
    return None
  # A single key head is every query head's, wherever that is.
  together = one[0] == many[0] == ids[0]
  if not together or (keys.shape[2] > 1 and one[2] != many[2]):
    return None
  return one, many, ids


def splash(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch length kv_heads head_dim"],
  values: Float[Array, "batch length kv_heads head_dim"],
  sight: Sight,
  *,
  scale: float | None = None,
  cap: float | None = None,
  interpret: bool = False,
) -> Float[Array, "batch length heads head_dim"]:
  """JAX's splash attention, of Pallas for TPUs; `interpret` runs it anywhere.

  The length is a multiple of 128. The kernel has no scale: queries are
  multiplied before, which rounds them once more in bfloat16.
  """
  length, heads, head_dim = queries.shape[1:]
  block = next(size for size in BLOCKS if length % size == 0)
  names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute")
  names += ("q_dq", "kv_dq")
  square = (length, length)
  mask = splash_attention.CausalMask(square)
  if sight.window is not None:
    before = (sight.window - 1, 0)
    mask = splash_attention.LocalMask(square, before, offset=0)
  kernel = splash_attention.make_splash_mha_single_device(
    splash_attention.MultiHeadMask([mask] * heads),
    block_sizes=splash_attention.BlockSizes(
      **{f"block_{name}": block for name in names}
    ),
    attn_logits_soft_cap=cap,
    interpret=interpret,
  )
  scale = head_dim**-0.5 if scale is None else scale
  queries = (queries.astype(jnp.float32) * scale).astype(queries.dtype)
  heads_first = (x.transpose(0, 2, 1, 3) for x in (queries, keys, values))
  segments = None
  if sight.ids is not None:
    segments = splash_attention.SegmentIds(sight.ids, sight.ids)
  mixed = jax.vmap(kernel)(*heads_first, segments)
  return mixed.transpose(0, 2, 1, 3)


def cudnn(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch length kv_heads head_dim"],
  values: Float[Array, "batch length kv_heads head_dim"],
  sight: Sight,
  *,
  scale: float | None = None,
  implementation: str = "cudnn",
) -> Float[Array, "batch length heads head_dim"]:
  """cuDNN's attention, by `jax.nn.dot_product_attention`.

  Equal ids are a mask for it, one for all heads, in queries' dtype; causal and
  window it knows. Another `implementation` is for tests.
  """
  mask = None
  if sight.ids is not None:
    mask = (sight.ids[:, :, None] == sight.ids[:, None, :])[:, None]
  return jax.nn.dot_product_attention(
    queries,
    keys,
    values,
    mask=mask,
    scale=scale,
    is_causal=True,
    local_window_size=None if sight.window is None else (sight.window - 1, 0),
    implementation=implementation,
  )
