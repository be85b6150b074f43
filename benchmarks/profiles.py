# SPDX-License-Identifier: Apache-2.0
"""Where a training step's time goes, by a profile of its operations.

    python -m benchmarks.profiles                    # SiRA, SmolLM2's shapes
    python -m benchmarks.profiles --preset=gpu --method=lora

Compiles the step of `train_step`, takes some under JAX's profiler, and adds up
the time of each operation of the compiled program by where in the code it was
traced, forward and backward apart. Operations that run at the same time share
it equally. A fusion counts where its last operation was traced, so that what is
small and stands beside something large may count there.

Columns are milliseconds of a step, as parts of its time without a profiler.
Prints one table, and writes JSON with --out.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import pathlib
import re
import statistics
import tempfile
import time
from typing import NamedTuple

import jax

from benchmarks import step_models, step_programs, step_table
from benchmarks.step_presets import PRESETS
from sira_jax import markdown

# A part of the step: where what belongs to it is traced, as "file function".
# The innermost place that matches any decides; logits and loss are all that
# the losses call.
PARTS: Mapping[str, str] = {
  "base: attention": r"models/attention\.py|models/layers\.py attention",
  "base: products": r"flax/nnx/nn/linear\.py",
  "base: the rest": r"models/",
  "adapters: products": r"adapters/(products|execution)\.py",
  "adapters: routing": r"adapters/(routers|top_k|groups|capacity|draws)\.py",
  "adapters: records": r"adapters/records\.py",
  "adapters: the rest": r"adapters/",
  "logits and loss": r"training/losses\.py",
  "optimizer": r"optax/|training/step\.py",
}
OTHER = "other"
_LOSS = "logits and loss"
_CONTROL = re.compile(r"(while|cond|conditional|call)(\.\d+)*$")


class Event(NamedTuple):
  """One run of an operation; nanoseconds."""

  name: str
  start: float
  duration: float


class Operation(NamedTuple):
  """What a compiled program says of one.

  Attributes:
    places: where it was traced, as "file function", the innermost first.
    backward: whether it belongs to the gradient.
  """

  places: tuple[str, ...]
  backward: bool

  @property
  def part(self) -> str:
    """A key of `PARTS`, or `OTHER`."""
    if any(re.search(PARTS[_LOSS], place) for place in self.places):
      return _LOSS
    for place in self.places:
      for part, pattern in PARTS.items():
        if re.search(pattern, place):
          return part
    return OTHER


def operations(program: str) -> dict[str, Operation]:
  """Name -> operation, of a compiled program's text."""
  files = _table(program, "FileNames", r'(\d+) "(.*)"')
  functions = _table(program, "FunctionNames", r'(\d+) "(.*)"')
  locations = _table(
    program,
    "FileLocations",
    r"(\d+) \{file_name_id=(\d+) function_name_id=(\d+)",
  )
  frames = _table(
    program,
    "StackFrames",
    r"(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
  )
  # The first frame has none around it; some versions number these from one.
  shift = int(frames["1"][1] or 0) if frames else 0

  def places(frame):
    while frame in frames:
      location, around = frames[frame]
      file, function = locations[location]
      yield f"{files[file][0]} {functions[function][0]}"
      frame = str(int(around or 0) - shift)

  found = {}
  for name, text in re.findall(
    r"^\s*(?:ROOT )?%?(\S+) = .*metadata=\{(.*?)\}", program, re.MULTILINE
  ):
    frame = re.search(r"stack_frame_id=(\d+)", text)
    traced = re.search(r'op_name="(.*?)"', text)
    found[name] = Operation(
      places=tuple(places(frame[1])) if frame else (),
      backward=bool(traced) and "transpose(" in traced[1],
    )
  return found


def _table(program, title, pattern) -> dict[str, tuple[str, ...]]:
  """First group -> the others, of the lines below a title."""
  _, found, rest = program.partition(f"\n{title}\n")
  lines = rest.split("\n\n")[0].splitlines() if found else []
  matches = (re.match(pattern, line) for line in lines)
  return {match[1]: match.groups()[1:] for match in matches if match}


def events(folder: pathlib.Path) -> Iterator[Event]:
  """Of the operations in a profile.

  Raises:
    ValueError: there is no profile in the folder.
  """
  files = sorted(folder.glob("**/*.xplane.pb"))
  if not files:
    raise ValueError(f"There is no profile in {folder}.")
  for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get("hlo_op")
        if name is None and line.name == "XLA Ops":  # as a TPU has them
          name = event.name.partition(" = ")[0].lstrip("%")
        if name is not None:
          yield Event(name, event.start_ns, event.duration_ns)


def parts(
  found: Iterable[Event], known: Mapping[str, Operation]
) -> dict[tuple[str, bool], float]:
  """(part, backward) -> its share of the time that operations take.

  Loops and branches are not counted: their own operations are there too.

  Raises:
    ValueError: no operation took any time.
  """
  taken = [e for e in found if not _CONTROL.fullmatch(e.name)]
  edges = [(e.start, number) for number, e in enumerate(taken)]
  edges += [(e.start + e.duration, number) for number, e in enumerate(taken)]
  keys = {name: (one.part, one.backward) for name, one in known.items()}
  times: dict[tuple[str, bool], float] = {}
  running: set[int] = set()
  last = 0.0
  for now, number in sorted(edges):
    for one in running:
      key = keys.get(taken[one].name, (OTHER, False))
      times[key] = times.get(key, 0.0) + (now - last) / len(running)
    running ^= {number}  # it begins, or ends
    last = now
  whole = sum(times.values())
  if not whole:
    raise ValueError("The profile has no operations of the step.")
  return {key: took / whole for key, took in times.items()}


def profiled(step: step_programs.Step, steps: int):
  """`parts` of so many steps, and the seconds of one without a profiler."""
  step()
  times = []
  for _ in range(max(steps, 3)):
    begun = time.perf_counter()
    step()
    times.append(time.perf_counter() - begun)
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      step(steps)
    known = operations(step.compiled.as_text())
    found = parts(events(pathlib.Path(folder)), known)
  return found, statistics.median(times)


def table(shares: Mapping[tuple[str, bool], float], seconds: float) -> str:
  """Markdown: a row a part, its milliseconds of a step, and their share."""
  rows = []
  for part in (*PARTS, OTHER):
    both = [shares.get((part, backward), 0.0) for backward in (False, True)]
    if any(both):
      forward, backward = (f"{1e3 * seconds * share:.1f}" for share in both)
      rows.append([part, forward, backward, f"{100 * sum(both):.1f} %"])
  sums = [
    sum(share for (_, found), share in shares.items() if found == backward)
    for backward in (False, True)
  ]
  rows.append(
    ["all", *(f"{1e3 * seconds * share:.1f}" for share in sums), "100 %"]
  )
  return markdown.table(["part", "forward", "backward", "share"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  methods = step_programs.ours(16, 64, ("lora", "sira", "molora", "sora"))
  parser.add_argument("--preset", choices=PRESETS, default="cpu")
  parser.add_argument("--method", choices=methods, default="sira")
  parser.add_argument("--steps", type=int, default=3, help="in the profile")
  parser.add_argument("--out", type=pathlib.Path, help="a JSON file")
  given = parser.parse_args(arguments)
  setting = PRESETS[given.preset].setting
  print(json.dumps(step_table.here()))
  step = step_programs.train(
    step_models.base(setting),
    jax.device_put(step_models.batch(setting)),
    pattern=setting.pattern,
    settings=methods[given.method],
  )
  shares, seconds = profiled(step, given.steps)
  print(f"\n{given.method}, {setting}: {1e3 * seconds:.0f} ms a step\n")
  print(table(shares, seconds))
  if given.out:
    rows = [
      {"part": part, "backward": backward, "share": share}
      for (part, backward), share in shares.items()
    ]
    text = json.dumps({"seconds": seconds, "parts": rows}, indent=1)
    given.out.write_text(text + "\n")


if __name__ == "__main__":
  main()
