# SPDX-License-Identifier: Apache-2.0
"""What each execution of SiRA's mixture costs, beside LoRA of the same layer.

    python -m benchmarks.execution           # minutes
    python -m benchmarks.execution --quick
    python -m benchmarks.execution --large   # bfloat16, for an accelerator

One adapted layer d -> d: its forward pass, and that with the gradients of x
and of what is trained. LoRA has the mixture's total rank, and the rank that one
token uses. Programs take turns; a time is a median, and a ratio one of medians,
to LoRA of the total rank. FLOPs and temporary memory are XLA's numbers.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
import statistics
import time

from flax import nnx
import jax
import jax.numpy as jnp

from sira_jax import ambient, markdown
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import Trainable

REFERENCE = "lora, total rank"
PASSES = ("forward", "forward and backward")
# Of dispatch's one-hot tensor, which is skipped where it would be larger.
_MOST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Setting:
  """A layer, its mixture and a batch.

  Attributes:
    rows: of the batch.
    length: tokens of a row.
    d: features in and out.
    experts: of the mixture.
    rank: of each expert.
    k: experts a token is sent to.
    capacity_factor: see `routers.TopK`; None for no limit.
    dtype: of the frozen kernel and of x; adapters are float32.
  """

  rows: int
  length: int
  d: int
  experts: int
  rank: int
  k: int
  capacity_factor: float | None = 1.25
  dtype: str = "float32"

  def __str__(self):
    limit = self.capacity_factor or "no limit"
    return (
      f"{self.rows} x {self.length}, d {self.d}, {self.experts} experts of rank"
      f" {self.rank}, k {self.k}, {limit}, {self.dtype}"
    )


_MIDDLE = Setting(rows=8, length=256, d=512, experts=16, rank=4, k=4)
QUICK = (Setting(rows=2, length=16, d=32, experts=8, rank=4, k=2),)
SETTINGS = (
  _MIDDLE,
  *(dataclasses.replace(_MIDDLE, length=n) for n in (64, 1024)),
  *(dataclasses.replace(_MIDDLE, experts=n) for n in (8, 64)),
  *(dataclasses.replace(_MIDDLE, rank=n) for n in (16, 64)),
  *(dataclasses.replace(_MIDDLE, k=n) for n in (1, 2)),
  dataclasses.replace(_MIDDLE, experts=64, rank=16, k=2),
  dataclasses.replace(_MIDDLE, capacity_factor=None),
  dataclasses.replace(_MIDDLE, experts=64, rank=16, k=2, capacity_factor=None),
)

_LARGE = Setting(
  rows=16, length=1024, d=4096, experts=16, rank=4, k=4, dtype="bfloat16"
)
# Large enough that starting a program is no part of its time.
LARGE = (
  _LARGE,
  dataclasses.replace(_LARGE, capacity_factor=None),
  dataclasses.replace(_LARGE, experts=64, rank=16, k=2),
  dataclasses.replace(_LARGE, experts=8, rank=8, k=2, capacity_factor=None),
)


def factories(setting: Setting) -> Mapping[str, methods.Factory]:
  """What is compared, by name."""
  total, used = (n * setting.rank for n in (setting.experts, setting.k))
  found = {
    REFERENCE: methods.lora(rank=total),
    "lora, rank of a token": methods.lora(rank=used),
  }
  for name in ("rank_space", "dispatch", "gather"):
    found[name] = methods.sira(
      experts=setting.experts,
      rank=setting.rank,
      k=setting.k,
      capacity_factor=setting.capacity_factor,
      execution=name,
    )
  share = (setting.capacity_factor or setting.experts) * setting.k
  if 4 * setting.rows * setting.length**2 * share > _MOST_BYTES:
    del found["dispatch"]
  return found


def programs(
  setting: Setting, factory: methods.Factory
) -> Iterator[tuple[jax.stages.Compiled, tuple]]:
  """The compiled passes of one adapted layer, each with its arguments."""
  dtype, d = jnp.dtype(setting.dtype), setting.d
  layer = nnx.Linear(d, d, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
  model = nnx.List([layer])
  surgery.adapt(model, [surgery.Rule("0", factory)], rngs=nnx.Rngs(1))
  b = model[0].adapter.B
  b[...] = jax.random.normal(jax.random.key(2), b.shape)
  graph, trainable, rest = nnx.split(model, Trainable, ...)

  def forward(trainable, x, rest, key):
    with ambient.DROPOUT_KEY(key):
      return nnx.merge(graph, trainable, rest)[0](x)

  def both(trainable, x, rest, key, dy):
    y, back = jax.vjp(lambda *given: forward(*given, rest, key), trainable, x)
    return y, back(dy)

  shape = (setting.rows, setting.length, setting.d)
  x, dy = (jax.random.normal(jax.random.key(n), shape, dtype) for n in (3, 4))
  given = (trainable, x, rest, jax.random.key(5))
  for function, arguments in ((forward, given), (both, (*given, dy))):
    yield jax.jit(function).lower(*arguments).compile(), arguments


def medians(
  runs: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, float]:
  """Seconds of each run, all taking turns."""
  times = {name: [] for name in runs}
  for number in range(rounds + 1):
    for name, run in runs.items():
      begun = time.perf_counter()
      jax.block_until_ready(run())
      if number:
        times[name].append(time.perf_counter() - begun)
  return {name: statistics.median(found) for name, found in times.items()}


def measure(setting: Setting, *, rounds: int) -> list[dict]:
  """A row for each pass and program."""
  compiled = {
    name: tuple(programs(setting, factory))
    for name, factory in factories(setting).items()
  }
  rows = []
  for number, kind in enumerate(PASSES):
    found = {name: each[number] for name, each in compiled.items()}
    times = medians(
      {
        name: lambda program=program, given=given: program(*given)
        for name, (program, given) in found.items()
      },
      rounds=rounds,
    )
    for name, (program, _) in found.items():
      memory = program.memory_analysis().temp_size_in_bytes
      rows.append(
        dataclasses.asdict(setting)
        | {
          "pass": kind,
          "program": name,
          "milliseconds": 1e3 * times[name],
          "ratio": times[name] / times[REFERENCE],
          "gigaflop": program.cost_analysis()["flops"] / 1e9,
          "temporary_mib": memory / 2**20,
        }
      )
  return rows


def table(rows: Sequence[Mapping]) -> str:
  """Markdown: ratios of time to LoRA of the total rank, and XLA's numbers."""
  names = [f.name for f in dataclasses.fields(Setting)]
  header = ["setting", "program"]
  header += [f"{kind}: time" for kind in PASSES]
  header += ["GFLOP", "temporary MiB"]
  lines = []
  by_program = {}
  for row in rows:
    setting = Setting(**{name: row[name] for name in names})
    by_program.setdefault((setting, row["program"]), {})[row["pass"]] = row
  for (setting, program), found in by_program.items():
    line = [str(setting), program]
    line += [f"{found[kind]['ratio']:.2f}" for kind in PASSES]
    both = found[PASSES[1]]
    line += [f"{both['gigaflop']:.2f}", f"{both['temporary_mib']:.0f}"]
    lines.append(line)
  return markdown.table(header, lines, words=2)


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  sizes = parser.add_mutually_exclusive_group()
  sizes.add_argument(
    "--quick", action="store_true", help="one small setting, three rounds"
  )
  sizes.add_argument(
    "--large", action="store_true", help="for an accelerator, in bfloat16"
  )
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/execution.json")
  )
  given = parser.parse_args(arguments)
  rows = []
  settings = QUICK if given.quick else LARGE if given.large else SETTINGS
  for setting in settings:
    print(f"{setting} ...", flush=True)
    rows += measure(setting, rounds=3 if given.quick else given.rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rows, indent=1))
  device = jax.devices()[0]
  print(f"\n{device.device_kind} ({device.platform}):\n\n{table(rows)}")


if __name__ == "__main__":
  main()
