# SPDX-License-Identifier: Apache-2.0
"""Scores the adapters of a run again, from its newest checkpoint.

python eval.py --workdir=runs/quickstart
"""

import pathlib

from absl import flags

from sira_jax import assembly, checkpoints, evaluation, runs

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Of the run.")


def main(argv):
  """config -> model -> adapters -> restore -> decode -> table."""
  workdir = pathlib.Path(_WORKDIR.value)
  runs.begin_process()
  with runs.user_errors():
    runs.refuse_arguments(argv)
    config = runs.load_config(workdir)
    assembly.check(config)
    run = assembly.build(config)
    folder = workdir / "checkpoints"
    with checkpoints.Checkpoints(folder, writable=False) as saved:
      step = saved.restore_adapter(run.base.model, base=run.base.fingerprint)
    before = evaluation.loads((workdir / "before.json").read_text())
  print(assembly.describe(run, config))
  print(f"workdir   {workdir}, step {step}\n", flush=True)
  after, _ = assembly.score(run, config)
  print(evaluation.table(before, after))


if __name__ == "__main__":
  runs.start(main)
