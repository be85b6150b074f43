# SPDX-License-Identifier: Apache-2.0
"""How fast adapted models decode, beside their base.

    python -m benchmarks.decode
    python -m benchmarks.decode --tokens=16 --rounds=3 --batches=1,8

Greedy decoding of random prompts with a cache, on SmolLM2-135M's shapes and
random float32 weights; all its projections are adapted. "merged" is the base
alone, as it is with LoRA's weights merged in. Models take turns; a time is a
median, and a ratio the median of each round's, to "merged". Reading the prompt
is part of the time.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

from flax import nnx
import jax
import numpy as np

from benchmarks import step_models
from sira_jax import decoding, markdown
from sira_jax.adapters import methods, surgery
from sira_jax.models import decoder

CONFIG = dataclasses.replace(step_models.SMOLLM2_135M, max_length=2048)
PROMPT = 64
SITES = r".*_proj"
REFERENCE = "merged"
ADAPTERS = {
  "lora, rank 64": dict(method="lora", rank=64),
  "lora, rank 16": dict(method="lora", rank=16),
  "sira, 16 experts, rank 4, k 4": dict(method="sira", experts=16, rank=4, k=4),
  "molora, 16 experts, rank 4": dict(method="molora", experts=16, rank=4),
}


def models(config: decoder.DecoderConfig = CONFIG) -> dict[str, nnx.Module]:
  """Name -> model in evaluation mode; all have the same base."""
  found = {}
  for name, settings in {REFERENCE: {}, **ADAPTERS}.items():
    model = decoder.Decoder(config, rngs=nnx.Rngs(0))
    if settings:
      factory = methods.create(**settings)
      rules = [surgery.Rule(SITES, factory)]
      surgery.adapt(model, rules, rngs=nnx.Rngs(1))
    model.eval()
    found[name] = model
  return found


def measure(
  found: dict[str, nnx.Module], *, batch: int, tokens: int, rounds: int
) -> list[dict[str, float]]:
  """A row for each model: seconds, tokens a second, ratio to the reference."""
  rng = np.random.default_rng(0)
  size = next(iter(found.values())).config.vocabulary_size
  prompts = rng.integers(1, size, (batch, PROMPT)).tolist()
  times = {name: [] for name in found}
  for number in range(rounds + 1):
    for name, model in found.items():
      begun = time.perf_counter()
      decoding.greedy(
        model,
        prompts,
        max_new_tokens=tokens,
        eos_id=size,  # which never comes
        batch_size=batch,
      )
      if number:  # the first compiles
        times[name].append(time.perf_counter() - begun)
  rows = []
  for name, own in times.items():
    pairs = zip(own, times[REFERENCE], strict=True)
    rows.append(
      {
        "model": name,
        "batch": batch,
        "seconds": statistics.median(own),
        "tokens a second": batch * tokens / statistics.median(own),
        "ratio": statistics.median(one / other for one, other in pairs),
      }
    )
  return rows


def table(rows: list[dict[str, float]]) -> str:
  """Markdown."""
  header = ["model", "batch", "tokens a second", "time / merged"]
  cells = [
    [
      row["model"],
      str(row["batch"]),
      f"{row['tokens a second']:.1f}",
      f"{row['ratio']:.2f}",
    ]
    for row in rows
  ]
  return markdown.table(header, cells)


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tokens", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--batches", default="1,32")
  parser.add_argument("--json", type=pathlib.Path, help="a file for the rows")
  given = parser.parse_args()
  found, rows = models(), []
  for batch in map(int, given.batches.split(",")):
    rows += measure(
      found, batch=batch, tokens=given.tokens, rounds=given.rounds
    )
  device = jax.devices()[0]
  print(f"{device.device_kind}, {given.tokens} tokens, {given.rounds} rounds\n")
  print(table(rows))
  if given.json:
    given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
  main()
