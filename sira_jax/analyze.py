# SPDX-License-Identifier: Apache-2.0
"""Reports what the routers of a run do, by task and language.

    python -m sira_jax.analyze --workdir=runs/quickstart

It reads the statistics that the run's last evaluation left (routing.npz) and
the newest checkpoint, and writes report.html, which needs no other file, and
numbers.json. Where there are no statistics, or with --anew, the prompts of the
run's evaluation sets are read again. `docs/analysis.md` says how to read the
report.
"""

from collections.abc import Sequence
import dataclasses
import json

from absl import flags, logging
from flax import nnx
import ml_collections

from sira_jax import (
  adapted,
  analysis,
  assembly,
  configuration,
  decoding,
  evaluation,
  pictures,
  process,
  routing_numbers,
  routing_report,
  runs,
  sharding,
  stages,
  storage,
  validation,
)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """The command's flags."""
  own = {"flag_values": values}
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text("workdir", "runs/quickstart", "Of the run.", **own)
  text(
    "out", None, "The folder to write; WORKDIR/analysis if not given.", **own
  )
  flags.DEFINE_boolean(
    "anew", False, "Read the prompts again, with the newest checkpoint.", **own
  )
  number(
    "examples",
    None,
    "Of each evaluation set, where prompts are read; 64 or fewer if not given.",
    **own,
  )
  number("permutations", 1000, "Of labels, for the baselines.", **own)
  number("seed", 0, "Of the permutations.", **own)
  text("cache", None, "Instead of the run's config.cache.folder.", **own)
  for name in ("fsdp", "tensor"):
    meaning = f"Instead of the run's config.mesh.{name}, as for eval.py."
    number(name, None, meaning, **own)


def main(argv: Sequence[str]) -> None:
  """config -> statistics -> numbers -> report; a mistake ends with its text."""
  logging.set_verbosity(logging.WARNING)
  given = flags.FLAGS.flag_values_dict()
  process.prepare()
  with process.user_errors():
    process.refuse_arguments(argv)
    check(given)
    workdir = storage.place(given["workdir"])
    config = runs.load_config(workdir)
    adapted.lay_out_anew(config, fsdp=given["fsdp"], tensor=given["tensor"])
    if given["cache"] is not None:
      config.cache = dict(folder=given["cache"])
    adapted.check(config)
    routing_numbers.check(
      [rule.factory for rule in configuration.rules(config.rules)]
    )
    mesh, rules = adapted.layout(config)
    statistics = None
    if not given["anew"] and given["examples"] is None:
      statistics = analysis.load(workdir)
  with sharding.use(mesh, rules), process.user_errors():
    if statistics is None:
      model, statistics = read(config, workdir, examples=given["examples"])
    else:
      model = adapted.restore(config, workdir).base.model
    training = adapted.stages(config)
    last = [one for one in training if stages.saved(workdir, training, one)][-1]
    found = routing_numbers.numbers(
      model,
      statistics,
      permutations=given["permutations"],
      seed=given["seed"],
      metrics=stages.folder(workdir, training, last) / "metrics.jsonl",
    )
    folder = (
      storage.place(given["out"]) if given["out"] else workdir / "analysis"
    )
    write(found, folder, title=workdir.name)
  print("\n".join(routing_report.sentences(found)))
  print(f"\nLeft in {folder}: {storage.listing(folder)}")


def check(given: dict) -> None:
  """Checks the flags, and that pictures can be drawn.

  Raises:
    ValueError: a number out of range, or matplotlib is not installed.
  """
  for name, least in (
    *(("examples", 1), ("permutations", 1), ("seed", 0)),
    *(("fsdp", 1), ("tensor", 1)),
  ):
    if given[name] is not None and given[name] < least:
      raise ValueError(f"--{name} must be at least {least}: {given[name]}.")
  pictures.figures("a routing analysis")


def read(
  config: ml_collections.ConfigDict,
  workdir: storage.Path,
  *,
  examples: int | None = None,
) -> tuple[nnx.Module, analysis.Statistics]:
  """The restored model, and what its routers do with the run's prompts.

  Each prompt is read as evaluation reads it, and no answer is decoded.

  Args:
    config: of the run.
    workdir: of the run.
    examples: of each set.

  Raises:
    ValueError: as `assembly.build` and `stages.restore`.
  """
  validation.check(config)
  run = assembly.build(config, workdir)
  runs.check_data(workdir, run.data.fingerprint, keep=False)
  stages.restore(run.base.model, workdir, run.stages, base=run.base.fingerprint)
  examples = examples or analysis.most(len(run.data.sets))
  sets = [
    dataclasses.replace(one, inputs=one.inputs[:examples])
    for one in run.data.sets
  ]
  recorder = analysis.Recorder(sets, examples=examples)
  prompts = [prompt for one in sets for prompt in one.inputs]
  how = dict(batch_size=config.decoding.batch_size, record=recorder)
  labels = adapted.labels(config)
  if labels is not None:
    evaluation.label(run.base.model, prompts, labels=labels, **how)
  else:
    run.base.model.eval()
    decoding.greedy(
      run.base.model, prompts, max_new_tokens=1, eos_id=run.base.eos_id, **how
    )
  return run.base.model, recorder.statistics()


def write(
  found: routing_numbers.Numbers, folder: storage.Path, *, title: str
) -> None:
  """Writes report.html and numbers.json."""
  page = routing_report.page(found, title=title)
  folder.mkdir(parents=True, exist_ok=True)
  numbers = json.dumps(routing_numbers.plain(found), indent=1)
  storage.write(folder / "numbers.json", numbers)
  storage.write(folder / "report.html", page)


if __name__ == "__main__":
  define_flags()
  process.start(main)
