# SPDX-License-Identifier: Apache-2.0
"""Scores the adapters of a run again, from its newest checkpoint.

python eval.py --workdir=runs/quickstart
"""

from absl import flags

from sira_jax import (
  adapted,
  assembly,
  distributed,
  evaluation,
  process,
  runs,
  sharding,
  stages,
  storage,
  validation,
)

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Of the run.")
_FSDP = flags.DEFINE_integer(
  "fsdp",
  None,
  "Instead of the run's config.mesh.fsdp; data then has all that is left.",
)
_TENSOR = flags.DEFINE_integer(
  "tensor",
  None,
  "Instead of the run's config.mesh.tensor; data then has all that is left.",
)
_CACHE = flags.DEFINE_string(
  "cache", None, "Instead of the run's config.cache.folder."
)
distributed.define_flags()


def main(argv):
  """Scores on the run's mesh, or on another that is asked for."""
  process.prepare()
  with process.user_errors():
    process.refuse_arguments(argv)
    workdir = storage.place(_WORKDIR.value)
    config = runs.load_config(workdir)
    adapted.lay_out_anew(config, fsdp=_FSDP.value, tensor=_TENSOR.value)
    if _CACHE.value is not None:
      config.cache = dict(folder=_CACHE.value)
    validation.check(config)
    mesh, rules = adapted.layout(config)
  with sharding.use(mesh, rules):
    score(config, workdir)


def score(config, workdir):
  """config -> model -> adapters -> restore -> decode -> table."""
  with process.user_errors():
    run = assembly.build(config, workdir)
    runs.check_data(workdir, run.data.fingerprint, keep=False)
    stage, step = stages.restore(
      run.base.model, workdir, run.stages, base=run.base.fingerprint
    )
    before = scores_before(workdir)
  print(assembly.describe(run, config))
  where = f"stage {stage.number}, " if len(run.stages) > 1 else ""
  print(f"workdir   {workdir}, {where}step {step}\n", flush=True)
  after, _ = assembly.score(run, config, sets=run.data.sets)
  print(evaluation.table(before, after))


def scores_before(workdir):
  """Those that train.py left.

  Raises:
    ValueError: they are not there or damaged.
  """
  file = workdir / "before.json"
  try:
    return evaluation.loads(file.read_text())
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(
      f"{file} cannot be read: {error}. train.py writes it anew: give its"
      " command again."
    ) from None


if __name__ == "__main__":
  process.start(process.together(main))
