# SPDX-License-Identifier: Apache-2.0
"""What a kernel saves of a TPU's memory, in one layer's attention.

    python -m benchmarks.attention_memory

Compiles attention and its gradients, of Llama 3 8B's heads in bfloat16, for one
v5e chip: by `layers.attention`, and as `attention.attend` does it. Prints what
XLA plans for either beside queries, keys, values and their gradients; what it
keeps in the core's own memory of 128 MiB is not counted. Needs
`pip install 'sira_jax[tpu]'` and no TPU: nothing is run.
"""

import jax
import jax.numpy as jnp

from sira_jax import meshes, plan, sharding
from sira_jax.models import attention, layers

TOPOLOGY = "v5e:2x2"
LENGTHS = (1024, 2048, 4096, 8192)
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def plain(queries, keys, values, sight):
  """Without a kernel."""
  mask = sight.mask(queries.shape[1])
  return layers.attention(queries, keys, values, mask)


def temporaries(function, length: int) -> str:
  """MiB of a row's forward and backward pass, of packed examples."""
  mesh = meshes.mesh(devices=plan.devices(TOPOLOGY)[:1])
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def made(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  queries = made(1, length, HEADS, HEAD_DIM)
  keys = made(1, length, KV_HEADS, HEAD_DIM)
  ids = made(1, length, dtype=jnp.int32)

  def both(queries, keys, values, ids, back):
    sight = attention.Sight(ids)
    mixed, pull = jax.vjp(lambda *x: function(*x, sight), queries, keys, values)
    return mixed, pull(back)

  with sharding.use(mesh):
    lowered = jax.jit(both).lower(queries, keys, keys, ids, queries)
  try:
    memory = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return "refused"
  return f"{memory.temp_size_in_bytes / 2**20:.1f}"


def main() -> None:
  """Prints a line for each length."""
  jax.config.update("jax_platforms", "cpu")
  print("| length | plain, MiB | kernel, MiB |\n| ---: | ---: | ---: |")
  for length in LENGTHS:
    found = [temporaries(f, length) for f in (plain, attention.attend)]
    print(f"| {length} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
  main()
