# SPDX-License-Identifier: Apache-2.0
"""Scores the adapters of a run again, from its newest checkpoint.

python eval.py --workdir=runs/quickstart
"""

import pathlib

from absl import flags

from sira_jax import assembly, evaluation, process, runs, stages

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Of the run.")


def main(argv):
  """config -> model -> adapters -> restore -> decode -> table."""
  workdir = pathlib.Path(_WORKDIR.value)
  process.prepare()
  with process.user_errors():
    process.refuse_arguments(argv)
    config = runs.load_config(workdir)
    assembly.check(config)
    run = assembly.build(config, workdir)
    stage, step = stages.restore(
      run.base.model, workdir, run.stages, base=run.base.fingerprint
    )
    before = scores_before(workdir)
  print(assembly.describe(run, config))
  where = f"stage {stage.number}, " if len(run.stages) > 1 else ""
  print(f"workdir   {workdir}, {where}step {step}\n", flush=True)
  after, _ = assembly.score(run, config, sets=run.sets)
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
  process.start(main)
