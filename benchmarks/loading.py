# SPDX-License-Identifier: Apache-2.0
"""What memory it takes to load a large folder of safetensors, on 8 devices.

    python -m benchmarks.loading
    python -m benchmarks.loading --processes=2

Writes a decoder of random bfloat16 weights (2 GB, in several files) to a
temporary folder, and loads it in processes of their own onto fake CPU devices,
with every weight sharded over them (fsdp). Devices of a CPU live in the
process's memory, so it holds all that it loads; what it takes beyond that is
the reader's. Prints bytes read and resident memory, by process.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from sira_jax import sharding
from sira_jax.formats import huggingface, huggingface_writer
from sira_jax.models import decoder, outlines

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = 8
SHARD = 500_000_000
CONFIG = decoder.DecoderConfig(
  vocabulary_size=64_000,
  layers=16,
  d_model=2048,
  heads=16,
  kv_heads=8,
  head_dim=128,
  d_ff=6144,
  rope_theta=10_000.0,
  norm_epsilon=1e-5,
  tied_embeddings=False,
  max_length=2048,
)


def write(
  folder: pathlib.Path, config: decoder.DecoderConfig = CONFIG
) -> tuple[int, int, int]:
  """Writes the checkpoint; its bytes, files and the largest tensor's bytes."""
  model = outlines.outline(
    functools.partial(decoder.Decoder, config, dtype=jnp.bfloat16)
  )
  noise = np.random.default_rng(0).normal(size=2**20).astype(jnp.bfloat16)
  fill = lambda x: np.resize(noise, x.shape)  # noqa: E731
  nnx.update(model, jax.tree.map(fill, nnx.state(model)))
  source = folder / "source.gguf"  # a file: config.json is made
  source.touch()
  files = huggingface_writer.write(
    folder / "model",
    model,
    source=source,
    tokenizer=_words(),
    eos_id=1,
    shard=SHARD,
  )
  sizes = [leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model))]
  return sum(sizes), len(files), max(sizes)


def load(folder: pathlib.Path, coordinator: str | None, process: int) -> None:
  """Loads in this process, and prints what that took as JSON."""
  count = 1
  if coordinator is not None:
    count = 2
    jax.distributed.initialize(coordinator, count, process)
  mesh, rules = sharding.layout(data=1, fsdp=DEVICES)
  read, filled = [0], sharding.filled

  def counting(shapes, function):
    def counted(path, index):
      part = function(path, index)
      read[0] += part.nbytes
      return part

    return filled(shapes, counted)

  sharding.filled = counting
  start = resident("VmRSS")
  with sharding.use(mesh, rules):
    model = huggingface.load_model(folder, dtype=jnp.bfloat16)
    jax.block_until_ready(nnx.state(model))
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(nnx.state(model))
    for shard in leaf.addressable_shards
  )
  peak = resident("VmHWM") - start
  print(json.dumps({"read": read[0], "held": held, "peak": peak}), flush=True)


def resident(name: str) -> int:
  """Bytes of this process: VmRSS now, VmHWM at most so far."""
  text = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024


def _words():
  return tokenizers.Tokenizer(
    tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
  )


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
  parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.load:
    folder, coordinator, process = given.load
    return load(
      pathlib.Path(folder),
      None if coordinator == "-" else coordinator,
      int(process),
    )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    size, files, largest = write(folder)
    print(f"{size:,} bytes in {files} files; the largest tensor {largest:,}")
    for line in started(folder / "model", given.processes):
      found = json.loads(line)
      beyond = found["peak"] - size
      print(
        f"read {found['read']:,}, holds {found['held']:,}, resident at most"
        f" {found['peak']:,}: {beyond - largest:,} beyond size and largest"
      )


def started(folder: pathlib.Path, processes: int) -> list[str]:
  """What the processes that load say."""
  where = "-"
  if processes > 1:
    with socket.socket() as free:
      free.bind(("localhost", 0))
      where = f"localhost:{free.getsockname()[1]}"
  devices = DEVICES // processes
  flags = f"--xla_force_host_platform_device_count={devices}"
  children = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "benchmarks.loading"),
        *("--load", str(folder), where, str(process)),
      ],
      cwd=ROOT,
      env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
    )
    for process in range(processes)
  ]
  said = [child.communicate()[0].splitlines()[-1:] for child in children]
  return [line for lines in said for line in lines]


if __name__ == "__main__":
  main()
