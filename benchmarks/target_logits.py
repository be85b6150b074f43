# SPDX-License-Identifier: Apache-2.0
"""What it saves to compute logits at the targets alone.

    python -m benchmarks.target_logits

Two losses and their gradients in the hidden states, in turn: logits at every
position, and at the targets. Shapes are SmolLM2-135M's head; the share of
positions that are targets is the quickstart's.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from sira_jax.training import losses

BATCH, LENGTH, D, VOCABULARY = 8, 96, 576, 49152
SHARE, ROUNDS = 0.43, 15


def programs():
  """name -> (compiled, arguments) of loss and gradient."""
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (BATCH, LENGTH, D))
  table = 0.02 * jax.random.normal(keys[1], (VOCABULARY, D))
  targets = jax.random.randint(keys[2], (BATCH, LENGTH), 0, VOCABULARY)
  chosen = jax.random.uniform(keys[3], (BATCH, LENGTH)) < SHARE
  arguments = hidden, table, targets, chosen.astype(jnp.float32)

  def compiled(loss):
    def total(hidden, table, targets, weights):
      logits = lambda h: h @ table.T  # noqa: E731
      return loss(logits, hidden, targets=targets, weights=weights)[0]

    return jax.jit(jax.value_and_grad(total)).lower(*arguments).compile()

  return {
    "every position": compiled(losses.cross_entropy),
    "targets alone": compiled(losses.cross_entropy_at_targets),
  }, arguments


def main():
  """Prints time, temporary memory, and the ratio of the times."""
  found, arguments = programs()
  times = {name: [] for name in found}
  for _ in range(ROUNDS):
    for name, program in found.items():
      begun = time.perf_counter()
      jax.block_until_ready(program(*arguments))
      times[name].append(time.perf_counter() - begun)
  for name, program in found.items():
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    median = statistics.median(times[name])
    print(f"{name:15} {1e3 * median:7.0f} ms  {memory:6.0f} MiB temporary")
  ratios = [b / a for a, b in zip(*times.values(), strict=True)]
  print(f"ratio of times, median of {ROUNDS}: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
  main()
