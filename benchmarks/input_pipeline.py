# SPDX-License-Identifier: Apache-2.0
"""How fast training batches come: streamed by TensorFlow, and from a cache.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --quick --out=runs/input_pipeline.json

The quickstart's mixture, in its base's tokens, in rows of 128. Writes the cache
to a temporary folder. The ways take turns; a rate is the median of the rounds.
"waiting" is the share of a step of `--step` seconds, in which this process
sleeps as it would for a device, that goes by until the next batch is there.
"on" is how long the first batch takes of a run that goes on after so many.
Tokens are those of examples, without padding.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import ml_collections

from configs import quickstart
from sira_jax import adapted, assembly, markdown, run_data
from sira_jax.data import cache

PACKED = {False: "unpacked", True: "packed"}


def open_both(
  config: ml_collections.ConfigDict, folder: pathlib.Path
) -> dict[str, Callable[[int], Iterator[run_data.Batch]]]:
  """A way's name -> the batches from a number on."""
  cache.write(config, str(folder / "cache"))
  base, found = adapted.outline(config), {}
  for pack, word in PACKED.items():
    for way, place in (("streaming", None), ("cached", folder / "cache")):
      own = ml_collections.ConfigDict(config.to_dict())
      own.batches.pack = pack
      own.cache = dict(folder=place and str(place))
      data = assembly.read(assembly.prepare(own), own, base)
      found[f"{way}, {word}"] = lambda start, of=data: of.batches(0, start)
  return found


def measure(
  ways: Mapping[str, Callable[[int], Iterator[run_data.Batch]]],
  *,
  batches: int,
  rounds: int,
  step: float,
  on: int,
) -> list[dict[str, Any]]:
  """A row of each way.

  Args:
    ways: see `open_both`.
    batches: of a round.
    rounds: of which a rate is the median.
    step: seconds of a training step.
    on: batches before those of a run that goes on.
  """
  rates: dict[str, list[tuple[float, float, float]]] = {}
  for _ in range(rounds):
    for name, make in ways.items():
      rates.setdefault(name, []).append(_round(make(0), batches, step))
  rows = []
  for name, found in rates.items():
    examples, tokens, waiting = map(statistics.median, zip(*found, strict=True))
    begun = time.perf_counter()
    next(ways[name](on))
    rows.append(
      {
        "way": name,
        "examples a second": round(examples),
        "tokens a second": round(tokens),
        "waiting": round(waiting, 4),
        "on": round(time.perf_counter() - begun, 2),
      }
    )
  return rows


def _round(found, batches, step):
  """Examples and tokens a second, and the share of steps that is waiting."""
  next(found)
  begun, examples, tokens = time.perf_counter(), 0, 0
  for _ in range(batches):
    one, two = _sizes(next(found))
    examples, tokens = examples + one, tokens + two
  took = time.perf_counter() - begun
  waited = 0.0
  steps = max(5, batches // 20)
  for _ in range(steps):
    time.sleep(step)
    begun = time.perf_counter()
    next(found)
    waited += time.perf_counter() - begun
  return examples / took, tokens / took, waited / (waited + steps * step)


def _sizes(batch):
  tokens = batch["decoder_target_tokens"]
  segments = batch.get("decoder_segment_ids")
  packed = segments is not None
  examples = segments.max(axis=1).sum() if packed else len(tokens)
  return int(examples), int((tokens != 0).sum())


def table(rows: list[dict[str, Any]], *, on: int) -> str:
  """Markdown."""
  header = ["", "examples/s", "tokens/s", "waiting"]
  cells = [
    [
      row["way"],
      f"{row['examples a second']:,}",
      f"{row['tokens a second']:,}",
      f"{row['waiting']:.1%}",
      str(row["on"]),
    ]
    for row in rows
  ]
  return markdown.table([*header, f"first after {on:,} batches, s"], cells)


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batches", type=int, default=200, help="of a round")
  parser.add_argument("--rows", type=int, default=32, help="of a batch")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--step", type=float, default=0.1, help="seconds")
  parser.add_argument("--on", type=int, default=1000, help="batches before")
  parser.add_argument("--quick", action="store_true", help="a few batches")
  parser.add_argument("--out", type=pathlib.Path, help="a file for the JSON")
  given = parser.parse_args()
  if given.quick:
    given.batches, given.rounds, given.step, given.on = 5, 1, 0.01, 5
  config = quickstart.get_config()
  config.batches.batch_size = given.rows
  with tempfile.TemporaryDirectory() as folder:
    ways = open_both(config, pathlib.Path(folder))
    rows = measure(
      ways,
      batches=given.batches,
      rounds=given.rounds,
      step=given.step,
      on=given.on,
    )
  print(table(rows, on=given.on))
  settings = {k: v for k, v in vars(given).items() if k != "out"}
  found = {"settings": settings, "cores": os.cpu_count(), "rows": rows}
  if given.out:
    given.out.write_text(json.dumps(found, indent=1))
  else:
    print(json.dumps(found))


if __name__ == "__main__":
  main()
