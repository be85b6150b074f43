"""Compiles training steps of large decoders for TPU slices, and tables them.

    python -m benchmarks.tpu_plans
    python -m benchmarks.tpu_plans --shapes=8b --methods=lora,sira --layers=2

Needs `pip install 'sira_jax[tpu]'` and no TPU: nothing is run, and no weight
exists. Each row is a step of adapters on the attention projections of a model
of a known one's shapes, its blocks in loops, compiled by `sira_jax.plan`; it
takes minutes. Rows are kept in OUT as they come; stop it whenever
you like, and the same command continues.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp

from benchmarks import step_models
from sira_jax import markdown, meshes, plan
from sira_jax.adapters import methods, surgery
from sira_jax.models import decoder, t5
from sira_jax.training import optimizers

SITES = r".*(self_attn\.[qkvo]_proj|attention\.[qkvo])"
_LLAMA_3 = dict(
  vocabulary_size=128256,
  kv_heads=8,
  head_dim=128,
  rope_theta=500_000.0,
  norm_epsilon=1e-5,
  tied_embeddings=False,
  max_length=8192,
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """A base model on a slice, and its batch.

  Attributes:
    config: of the model.
    topology: see `plan.devices`.
    mesh: see `meshes.mesh`.
    rows: of a batch, on the whole mesh.
    length: of a row, or of an encoder's.
    targets_length: of a decoder's row beside an encoder.
  """

  config: decoder.DecoderConfig | t5.T5Config
  topology: str
  mesh: Mapping[str, int]
  rows: int
  length: int
  targets_length: int | None = None

  def of_layers(self, layers: int) -> "Shape":
    """The same with fewer layers, on each side."""
    names = ["layers"]
    if isinstance(self.config, t5.T5Config):
      names = ["encoder_layers", "decoder_layers"]
    config = dataclasses.replace(self.config, **dict.fromkeys(names, layers))
    return dataclasses.replace(self, config=config)

  @property
  def layers(self) -> int:
    """Of each side."""
    if isinstance(self.config, t5.T5Config):
      return self.config.decoder_layers
    return self.config.layers


# Llama 3's and T5 1.1's, each row of a batch on a chip of its own.
SHAPES = {
  "8b": Shape(
    decoder.DecoderConfig(
      layers=32, d_model=4096, heads=32, d_ff=14336, **_LLAMA_3
    ),
    topology="v5e:4x4",
    mesh=dict(data=1, fsdp=16, tensor=1),
    rows=16,
    length=2048,
  ),
  "70b": Shape(
    decoder.DecoderConfig(
      layers=80, d_model=8192, heads=64, d_ff=28672, **_LLAMA_3
    ),
    topology="v5e:16x16",
    mesh=dict(data=1, fsdp=256, tensor=1),
    rows=256,
    length=2048,
  ),
  "t5-xxl": Shape(
    dataclasses.replace(
      step_models.T5_LARGE, d_model=4096, heads=64, d_ff=10240
    ),
    topology="v5e:4x4",
    mesh=dict(data=1, fsdp=16, tensor=1),
    rows=16,
    length=1024,
    targets_length=256,
  ),
}
# What the table calls it -> the method and its settings.
METHODS = {
  "lora": ("lora", dict(rank=64)),
  "sora": ("sora", dict(rank=64)),
  "sira": ("sira", {}),
  "sira-dispatch": (
    "sira",
    dict(execution="dispatch", capacity=1024, priority="position"),
  ),
  "sira-gather": (
    "sira",
    dict(execution="gather", capacity=1024, priority="position"),
  ),
}


def compiled(shape: Shape, method: str) -> plan.Plan:
  """The plan of one row: bfloat16 base, float32 adapters, AdamW, remat."""
  name, settings = METHODS[method]
  kind = t5.T5 if isinstance(shape.config, t5.T5Config) else decoder.Decoder

  def build():
    made = dict(rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    model = kind(shape.config, remat=True, scan=True, **made)
    rule = surgery.Rule(SITES, methods.create(name, **settings))
    surgery.adapt(model, [rule], rngs=nnx.Rngs(1))
    return model

  optimizer, _ = optimizers.create("adamw", steps=1000)
  return plan.plan(
    nnx.eval_shape(build),
    optimizer,
    batch=plan.batch(
      shape.rows, shape.length, targets_length=shape.targets_length
    ),
    mesh=meshes.mesh(**shape.mesh, devices=plan.devices(shape.topology)),
    steps=1000,
  )


def fill(
  wanted: Sequence[tuple[str, int, str]],
  file: pathlib.Path,
  compile: Callable[[str, int, str], plan.Plan],
) -> list[dict]:
  """The rows wanted, from `file` or compiled now and kept there.

  Args:
    wanted: (shape, layers, method) of each.
    file: JSON; made if there is none.
    compile: gives the plan of a row.
  """
  kept = json.loads(file.read_text()) if file.exists() else []
  found = {(row["shape"], row["layers"], row["method"]): row for row in kept}
  for key in wanted:
    if key in found:
      continue
    print(f"{key[0]} of {key[1]} layers, {key[2]} ...", flush=True)
    made = compile(*key)
    print(made.describe(), flush=True)
    names = dict(zip(("shape", "layers", "method"), key, strict=True))
    found[key] = names | dataclasses.asdict(made) | {"total": made.total}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(list(found.values()), indent=1))
  return [found[key] for key in wanted]


def table(rows: Sequence[Mapping]) -> str:
  """Markdown: a row per plan; memory and exchange are a chip's, in GiB."""
  header = ["base", "layers", "method", "chips", "trained", "weights"]
  header += ["trained + optimizer", "working", "program", "total", "of"]
  header += ["exchanged a step", "compiled in"]
  lines = []
  for row in rows:
    mesh = ", ".join(f"{k} {v}" for k, v in row["mesh"].items() if v > 1)
    line = [row["shape"], str(row["layers"]), row["method"]]
    line += [f"{row['device']}, {mesh}", f"{row['trained']:,}"]
    line += [_gib(row["weights"]), _gib(row["training"])]
    if row["refusal"]:
      line += ["", "", f"refused: {row['refusal']}", _gib(row["limit"]), ""]
    else:
      # Besides the weights and what is trained, all that is there at once.
      small = row["batch"] + row["padding"] + row["output"]
      line += [_gib(row["temporaries"] + small), _gib(row["program"])]
      line += [_gib(row["total"]), _gib(row["limit"])]
      line.append(
        "; ".join(
          f"{one['count']} {one['kind']}, {_gib(one['bytes'])}"
          for one in row["collectives"]
          if one["bytes"] >= plan.GIB / 200
        )
      )
    lines.append([*line, f"{row['seconds']:.0f} s"])
  return markdown.table(header, lines, words=4)


def _gib(size):
  return f"{size / plan.GIB:.2f}"


def main() -> None:
  """Reads the command line."""
  # No row is for a device of this machine.
  jax.config.update("jax_platforms", "cpu")
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shapes", default="8b", help=",".join(SHAPES))
  parser.add_argument("--methods", default=",".join(METHODS))
  parser.add_argument("--layers", help="instead of all, such as 2,4,8")
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/tpu_plans.json")
  )
  given = parser.parse_args()
  wanted = []
  for name in given.shapes.split(","):
    layers = [SHAPES[name].layers]
    if given.layers:
      layers = [int(number) for number in given.layers.split(",")]
    wanted += [(name, n, m) for n in layers for m in given.methods.split(",")]

  def compile(name, layers, method):
    return compiled(SHAPES[name].of_layers(layers), method)

  print(table(fill(wanted, given.out, compile)))


if __name__ == "__main__":
  main()
