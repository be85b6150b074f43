# SPDX-License-Identifier: Apache-2.0
"""What a whole training step costs: ours, and the same in PyTorch.

    python -m benchmarks.train_step                     # of SmolLM2's shapes
    python -m benchmarks.train_step --preset=cpu-long   # 512 tokens, dispatch
    python -m benchmarks.train_step --preset=cpu --experts=4,8,16,32,64
    python -m benchmarks.train_step --preset=cpu --lengths=128,512,2048 --rows=1
    python -m benchmarks.train_step --preset=gpu        # a 1B shape, bfloat16
    python -m benchmarks.train_step --preset=gpu-t5     # T5-large's shapes
    python -m benchmarks.train_step --preset=gpu-t5 --programs=lora+loops+dense

Forward, loss, backward, clipping and AdamW of the adapters, on random weights
of the real shapes. Programs take turns, round by round; a time is a median, a
ratio the median of each round's, to LoRA of the mixture's total rank. "cores"
is the time of all cores (of the host), which other processes disturb less.

    forward   the base's loss, without a gradient
    frozen    a step that runs all of the base, forward and backward, and trains
              one rank of the first block's queries (of either side): what any
              adapters cost more is theirs ("added")
    lora, sira, molora, sora    methods of one total rank (16 x 4 by default)
    dispatch, gather            SiRA with that execution
    peft, "peft, compiled"      PEFT's LoRA of that rank, on transformers' Llama
                                or T5
    loops, dense                mixtures in PyTorch; see `torch_peers`

An encoder-decoder's adapters are in the encoder, in the decoder, and between
them; its tokens are those that either reads.

"utilisation" is of the FLOPs of the base's products alone (see
`step_flops.step_flops`), over those of a large product of the same dtype,
which takes its turn with the others; "with attention" adds attention's.
PyTorch computes logits at every position, and so does ours with `--share=1`.
Without PyTorch, transformers and PEFT their rows are left out, and so is one
that fails, such as for want of memory. All models stay to the end, since all
take turns; to see one alone, which also tells its own peak of the device, ask
for it alone: `--programs=lora`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import statistics
import time

import jax

from benchmarks import step_flops, step_models, step_programs, step_table
from benchmarks.step_models import Setting
from benchmarks.step_presets import PRESETS, Preset

REFERENCE = "lora"
TOTAL = 64
_PRODUCT = "product"
_PEERS = ("peft", "loops", "dense")


@dataclasses.dataclass
class Program:
  """One that takes its turn.

  Attributes:
    run: so many steps, to their end.
    compiling: seconds.
    temporary: XLA's bytes of temporaries, if it is ours.
    peak: bytes of the device at most, in the first step; None where the device
      does not say, or said more before.
    planned: bytes that `sira_jax.plan` says.
  """

  run: Callable[[int], object]
  compiling: float = 0.0
  temporary: int | None = None
  peak: int | None = None
  planned: int | None = None


def build(
  setting: Setting,
  settings: Mapping[str, Mapping],
  *,
  plan: bool = False,
  workers: int = 1,
) -> dict[str, Program]:
  """Our programs, compiled, by name; and each one's first step is taken.

  Args:
    setting: the model and the batch.
    settings: name -> a method's; empty for "forward" and "frozen".
    plan: whether to plan SiRA's step, too.
    workers: threads that compile.
  """
  model = step_models.base(setting)
  given = jax.device_put(step_models.batch(setting))

  def one(name):
    begun = time.perf_counter()
    if name == "forward":
      step = step_programs.forward(model, given)
    elif name == "frozen":
      step = step_programs.frozen(model, given, pattern=setting.PROBE)
    else:
      step = step_programs.train(
        model, given, pattern=setting.pattern, settings=settings[name]
      )
    took = time.perf_counter() - begun
    print(f"  {name}: compiled in {took:.0f} s", flush=True)
    return step, took

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    planned = None
    if plan and "sira" in settings:
      planned = pool.submit(step_programs.planned, setting, settings["sira"])
    found = dict(zip(settings, pool.map(one, settings), strict=True))
  programs = {
    name: Program(step, took, step.temporary, _peak(step))
    for name, (step, took) in found.items()
  }
  if planned is not None:
    programs["sira"].planned = planned.result().total
  return programs


def _peak(step) -> int | None:
  """The device's peak in a first step, less what is not the step's own."""
  before = jax.devices()[0].memory_stats()
  step()
  after = jax.devices()[0].memory_stats()
  if not after or after["peak_bytes_in_use"] == before["peak_bytes_in_use"]:
    return None
  others = before["bytes_in_use"] - step.arguments
  return after["peak_bytes_in_use"] - others


def peers(
  setting: Setting, names: Sequence[str], experts: int
) -> dict[str, Program]:
  """PyTorch's programs, by name; those that cannot be are said.

  A model stays as long as a program of it does: they take turns. What one that
  fails had of the device's memory is there for the next.
  """
  if not names:
    return {}
  try:
    from benchmarks import torch_peers
  except ImportError as error:
    print(f"  left out, {error}: {', '.join(names)}", flush=True)
    return {}
  device = "cuda" if torch_peers.gpu() else "cpu"
  given, found, models = step_models.batch(setting), {}, {}
  for name in names:
    kind, _, compiled = name.partition(", ")
    begun = time.perf_counter()
    try:
      if kind not in models:
        models[kind] = torch_peers.adapted(
          kind,
          torch_peers.base(setting.config, setting.dtype, device),
          modules=setting.modules,
          experts=experts,
          rank=TOTAL // experts,
          k=min(4, experts),
        )
      run = torch_peers.step(models[kind], given, compiled=bool(compiled))
      run()
      peak = torch_peers.memory(run, models[kind])
    except Exception as error:  # whatever a compiler says, the rest goes on
      print(f"  left out, {error!r:.300}: {name}", flush=True)
    else:
      took = time.perf_counter() - begun
      found[name] = Program(run, took, peak=peak)
      print(f"  {name}: made in {took:.0f} s", flush=True)
    if name not in found:
      # Here, where the error no longer holds what its frames held.
      run = None
      if not any(one.partition(", ")[0] == kind for one in found):
        models.pop(kind, None)
      torch_peers.release()
  return found


def turns(
  runs: Mapping[str, Callable[[int], object]], *, rounds: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Seconds of each run's step in each round: on the clock, and of all cores.

  The latter is what a machine that others use, too, can still tell.
  """
  clock, cores = ({name: [] for name in runs} for _ in range(2))
  for _ in range(rounds):
    for name, run in runs.items():
      begun, busy = time.perf_counter(), time.process_time()
      run(steps)
      clock[name].append((time.perf_counter() - begun) / steps)
      cores[name].append((time.process_time() - busy) / steps)
  return clock, cores


def measure(
  setting: Setting,
  programs: Mapping[str, Program],
  *,
  rounds: int,
  steps: int,
  side: int,
) -> list[dict]:
  """A row for each program."""
  product, flops = step_programs.matmul(setting.dtype, side, times=4)
  product()
  runs = {name: program.run for name, program in programs.items()}
  runs[_PRODUCT] = product
  times, cores = turns(runs, rounds=rounds, steps=steps)
  peak = flops / statistics.median(times.pop(_PRODUCT))
  base, frozen = step_flops.step_flops(setting), times.get("frozen")
  rows = []
  for name, own in times.items():
    row = dataclasses.asdict(setting) | {"program": name}
    program, seconds = programs[name], statistics.median(own)
    row |= {
      "seconds": seconds,
      "quartiles": statistics.quantiles(own, n=4) if len(own) > 1 else own,
      "tokens_a_second": setting.tokens / seconds,
      "ratio": _median(lambda a, b: a / b, own, times.get(REFERENCE)),
      "added_seconds": _median(lambda a, b: a - b, own, frozen),
      "core_seconds": statistics.median(cores[name]),
      "core_ratio": _median(
        lambda a, b: a / b, cores[name], cores.get(REFERENCE)
      ),
      "product_flops_a_second": peak,
    }
    if name != "forward":
      row["utilisation"] = base["matmuls"] / seconds / peak
      row["with_attention"] = sum(base.values()) / seconds / peak
    row |= {
      key: getattr(program, key)
      for key in ("compiling", "temporary", "peak", "planned")
    }
    rows.append(row)
  return rows


def _median(function, own, others):
  """Of the rounds; None where there are no others."""
  if others is None:
    return None
  return statistics.median(map(function, own, others))


def tables(
  preset: Preset, experts: Sequence[int], lengths: Sequence[int]
) -> list[tuple[Setting, dict[str, dict]]]:
  """(setting, name -> its method's settings), one for each table."""
  names = [n for n in preset.programs if n in ("forward", "frozen")]
  settings = {
    name: {} if name in names else found
    for name in preset.programs
    for found in [step_programs.ours(experts[0], TOTAL, [name]).get(name)]
    if name in names or found
  }
  if len(experts) > 1:
    settings = {n: s for n, s in settings.items() if n in (*names, REFERENCE)}
    for number in experts:
      made = step_programs.ours(number, TOTAL, ["sira"])["sira"]
      settings[f"sira, {number} experts"] = made
  return [
    (dataclasses.replace(preset.setting, share=share, length=length), settings)
    for length in lengths or [preset.setting.length]
    for share in preset.shares
  ]


def run(
  preset: Preset,
  experts: Sequence[int],
  lengths: Sequence[int],
  out: pathlib.Path,
) -> list[dict]:
  """All tables, printed as they come; the rows are in `out`, too."""
  rows, about = [], step_table.here()
  print(json.dumps(about))
  workers = min(4, max(1, os.cpu_count() // 2))
  for setting, settings in tables(preset, experts, lengths):
    print(f"\n{setting} ...", flush=True)
    programs = build(setting, settings, plan=preset.plan, workers=workers)
    others = [n for n in preset.programs if n.partition(",")[0] in _PEERS]
    if setting.share == 1.0 and len(experts) == 1:
      programs |= peers(setting, others, experts[0])
    found = measure(
      setting,
      programs,
      rounds=preset.rounds,
      steps=preset.steps,
      side=preset.side,
    )
    speed = found[0]["product_flops_a_second"] / 1e12
    print(f"\n{setting}; the large product: {speed:.3f} TFLOP/s\n")
    print(step_table.table(found), flush=True)
    rows += found
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows}, indent=1))
  return rows


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  many = lambda kind: lambda text: tuple(map(kind, text.split(",")))  # noqa: E731
  parser.add_argument("--preset", choices=PRESETS, default="cpu")
  parser.add_argument(
    "--quick", action="store_const", dest="preset", const="quick"
  )
  parser.add_argument("--experts", type=many(int), default=(16,))
  parser.add_argument("--lengths", type=many(int), default=())
  parser.add_argument("--shares", type=many(float))
  parser.add_argument(
    "--programs", type=lambda text: tuple(text.split("+")), help="joined by +"
  )
  for name in ("rounds", "steps", "rows", "layers"):
    parser.add_argument(f"--{name}", type=int)
  parser.add_argument("--modules", type=many(str))
  parser.add_argument("--scan", action=argparse.BooleanOptionalAction)
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/train_step.json")
  )
  given = vars(parser.parse_args(arguments))
  # PyTorch wants some of a GPU's memory, too.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  preset = PRESETS[given.pop("preset")]
  known = {name for one in PRESETS.values() for name in one.programs}
  unknown = sorted({*(given["programs"] or ())} - known)
  if unknown:
    parser.error(f"no programs {unknown}; there are: {sorted(known)}")
  places = {f.name for f in dataclasses.fields(Setting)}
  changed = {n: v for n, v in given.items() if n in places and v is not None}
  setting = dataclasses.replace(preset.setting, **changed)
  of_preset = {
    name: given[name]
    for name in ("shares", "programs", "rounds", "steps")
    if given[name] is not None
  }
  preset = dataclasses.replace(preset, setting=setting, **of_preset)
  run(preset, given["experts"], given["lengths"], given["out"])


if __name__ == "__main__":
  main()
