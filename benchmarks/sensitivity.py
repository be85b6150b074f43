# SPDX-License-Identifier: Apache-2.0
"""What it costs to measure the sensitivity of every weight, and how exact.

    python -m benchmarks.sensitivity

The quickstart's model and rows, one and four at a time. The probe's scores are
compared with squares of gradients that `jax.grad` takes of the weights, one
row at a time; its memory with that of those gradients and of a LoRA step at
the same layers; its time with that of the step, in turn.
"""

import re
import statistics
import time

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import quickstart
from sira_jax.adapters import methods, sensitivity, surgery
from sira_jax.adapters.variables import Trainable
from sira_jax.data import mixtures, pipeline, vocabularies
from sira_jax.formats import bases
from sira_jax.training import probing
from sira_jax.training import step as training

SITES = r"layers\.\d+\..*_proj"
BATCHES, LENGTH, RANK, ROUNDS = (1, 4), 128, 8, 7


def rows(config, base):
  """Batches of the quickstart's rows, one example each."""
  vocabulary = vocabularies.TokenizerVocabulary(base.tokenizer, base.eos_id)
  mixture = mixtures.build(vocabulary, **config.mixture.to_dict())
  return [
    jax.device_put(
      next(
        pipeline.batches(
          mixture, batch_size=size, length=LENGTH, too_long="skip"
        )
      )
    )
    for size in BATCHES
  ]


def weight_gradients(model, batch):
  """The compiled gradient of every weight, and what it takes but the batch."""
  at_sites = lambda path, _: "layers" in path and "kernel" in path  # noqa: E731
  graph, weights, rest = nnx.split(model, at_sites, ...)

  def total(weights, rest, batch):
    merged = nnx.merge(graph, weights, rest, copy=True)
    return probing.per_example_loss(merged, batch)

  program = jax.jit(jax.grad(total)).lower(weights, rest, batch).compile()
  return program, (weights, rest)


def reference(model, batch):
  """path -> the sum over rows of the square of the weight's gradient."""
  scores = {}
  first = {name: values[:1] for name, values in batch.items()}
  program, arguments = weight_gradients(model, first)
  for row in range(rows_of(batch)):
    one = {name: values[row : row + 1] for name, values in batch.items()}
    for path, leaf in nnx.to_flat_state(program(*arguments, one)):
      name = ".".join(map(str, path[:-1]))
      square = np.square(np.asarray(leaf[...], np.float64)).sum()
      scores[name] = scores.get(name, 0.0) + float(square)
  return scores


def probe(model, batch, *, per_sample):
  """The compiled probe, and its arguments."""
  graph, state = nnx.split(model)
  paths = [p for p in surgery.linears(model) if re.fullmatch(SITES, p)]
  arguments = {path: jnp.zeros(2) for path in paths}, state, batch
  program = sensitivity._measure.lower(
    *arguments,
    graph=graph,
    loss=probing.per_example_loss,
    per_sample=per_sample,
  )
  return program.compile(), arguments


def adapt(model):
  """LoRA at the same layers."""
  rule = surgery.Rule(SITES, methods.lora(rank=RANK))
  surgery.adapt(model, [rule], rngs=nnx.Rngs(0))


def lora_step(model, batch):
  """A compiled step of an adapted model, and its arguments."""
  optimizer = optax.adamw(1e-3)
  graph, trainable, frozen = nnx.split(model, Trainable, ...)

  def step(trainable, moments, frozen, batch):
    def loss(trainable):
      merged = nnx.merge(graph, trainable, frozen, copy=True)
      return training.batch_loss(merged, batch)

    grads, _ = jax.grad(loss, has_aux=True)(trainable)
    updates, moments = optimizer.update(grads, moments, trainable)
    return optax.apply_updates(trainable, updates), moments

  arguments = trainable, optimizer.init(trainable), frozen, batch
  return jax.jit(step).lower(*arguments).compile(), arguments


def rows_of(batch):
  """How many rows a batch has."""
  return len(batch["decoder_target_tokens"])


def seconds(program, arguments):
  """How long one run takes."""
  begun = time.perf_counter()
  jax.block_until_ready(program(*arguments))
  return time.perf_counter() - begun


def report(batch, programs):
  """Prints memory, times in turn, and their ratios to the last program's."""
  times = {name: [] for name in programs}
  for _ in range(ROUNDS + 1):
    for name, program in programs.items():
      times[name].append(seconds(*program))
  print(f"\n{rows_of(batch)} row(s) of {LENGTH} tokens")
  step = list(times.values())[-1]
  for name, (program, _) in programs.items():
    stats = program.memory_analysis()
    memory = stats.temp_size_in_bytes + stats.output_size_in_bytes
    ratio = statistics.median(
      # The first run of all warms up.
      own / other
      for own, other in list(zip(times[name], step, strict=True))[1:]
    )
    print(
      f"{name:24} {memory / 2**20:6.0f} MiB beside the weights"
      f"  {statistics.median(times[name]):6.2f} s  {ratio:5.2f} x LoRA step",
      flush=True,
    )


def main():
  """Prints errors, memory, and ratios of times."""
  config = quickstart.get_config()
  base = bases.load(**config.base)
  model, batches = base.model, rows(config, base)
  batch = batches[-1]
  found = sensitivity.sensitivity(
    model, probing.per_example_loss, [batch], sites=SITES
  )
  expected = reference(model, batch)
  errors = [abs(found[path] / expected[path] - 1) for path in expected]
  print(
    f"{len(found)} weights, {rows_of(batch)} rows: relative error against"
    f" jax.grad at most {max(errors):.1e}, median"
    f" {statistics.median(errors):.1e}",
    flush=True,
  )
  programs = []
  for batch in batches:
    gradients, arguments = weight_gradients(model, batch)
    programs.append(
      {
        "jax.grad of the weights": (gradients, (*arguments, batch)),
        "probe of the batch": probe(model, batch, per_sample=False),
        "probe of each row": probe(model, batch, per_sample=True),
      }
    )
  # Last, for it changes the model.
  adapt(model)
  for batch, own in zip(batches, programs, strict=True):
    report(batch, own | {"LoRA step": lora_step(model, batch)})


if __name__ == "__main__":
  main()
