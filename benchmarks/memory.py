# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps in memory: each method, beside LoRA of its rank.

    python -m benchmarks.memory
    python -m benchmarks.memory --model=1b --dtype=bfloat16 --lengths=512,1024

Compiles the steps of our methods for a device that is here, on shapes alone:
nothing runs and no weight is made, so that any size that compiles can be asked
for. "temporaries" are XLA's: activations, gradients and workspace, at their
peak; the rest is what the step is given. `docs/scale.md` compares such numbers
with the memory that runs took. Prints a table for each length, and writes JSON
with --out.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from benchmarks import step_models, step_programs
from sira_jax import markdown
from sira_jax import plan as plans

METHODS = ("lora", "sira", "molora", "sora", "dispatch", "gather")
_MIB = 2**20


def measure(
  setting: step_models.Setting,
  names: Sequence[str],
  *,
  experts: int,
  total: int,
) -> list[dict[str, Any]]:
  """A row a method, LoRA first: bytes of each kind.

  Args:
    setting: the model and the batch.
    names: of `METHODS`.
    experts: of those that have any.
    total: rank of all experts together, and of LoRA.
  """
  chosen = step_programs.ours(experts, total, names)
  return [
    _row(name, step_programs.planned(setting, chosen[name])) for name in chosen
  ]


def _row(name: str, plan: plans.Plan) -> dict[str, Any]:
  return {
    "method": name,
    "trained": plan.trained,
    "weights": plan.weights,
    "training": plan.training,
    "temporaries": plan.temporaries,
    "total": plan.total,
  }


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Markdown: MiB, and the temporaries and the whole over the first row's."""
  header = ["method", "trained parameters", "weights, MiB"]
  header += ["trained and optimizer, MiB", "temporaries, MiB", "ratio"]
  header += ["total, MiB", "ratio"]
  lines = []
  for row in rows:
    cells = [row["method"], f"{row['trained']:,}"]
    cells += [f"{row[k] / _MIB:,.0f}" for k in ("weights", "training")]
    for kind in ("temporaries", "total"):
      cells.append(f"{row[kind] / _MIB:,.0f}")
      cells.append(f"{row[kind] / rows[0][kind]:.2f}")
    lines.append(cells)
  return markdown.table(header, lines)


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", default="135m", choices=step_models.CONFIGS)
  parser.add_argument("--layers", type=int, help="instead of the model's own")
  parser.add_argument("--rows", type=int, default=8)
  parser.add_argument("--lengths", default="64,512")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--experts", type=int, default=16)
  parser.add_argument("--rank", type=int, default=64, help="of all experts")
  parser.add_argument("--methods", default=",".join(METHODS))
  parser.add_argument("--out", type=pathlib.Path, help="a JSON file")
  given = parser.parse_args()
  names = given.methods.split(",")
  unknown = sorted(set(names) - set(METHODS))
  if unknown:
    parser.error(f"no methods {unknown}; there are: {', '.join(METHODS)}")
  found = []
  for length in map(int, given.lengths.split(",")):
    setting = step_models.Setting(
      given.model,
      rows=given.rows,
      length=length,
      layers=given.layers,
      dtype=given.dtype,
    )
    rows = measure(setting, names, experts=given.experts, total=given.rank)
    found.append({"setting": dataclasses.asdict(setting), "rows": rows})
    print(f"{setting}\n\n{table(rows)}\n", flush=True)
  if given.out:
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
