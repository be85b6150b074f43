# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a base model with adapters, as a config says.

    python train.py                                    the quickstart
    python train.py --config=configs/FILE.py:ARGUMENT --workdir=DIRECTORY
    python train.py --config=... --plan [--topology=v5e:4x4]   does it fit?

config -> base model -> adapters -> data -> steps -> checkpoint -> scores. The
same command again continues a run that was stopped, however it was stopped,
or says that it is finished. On several machines, each runs the same command
(see docs/scale.md).

Ends with 75 where it was stopped by a signal, with 65 where the loss or the
gradient was no finite number, and with 1 and a line "error: ..." otherwise.
"""

import contextlib
import dataclasses
import pathlib
import sys
import time

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from sira_jax import (
  adapted,
  ahead,
  assembly,
  checkpoints,
  configuration,
  distributed,
  first_step,
  metrics_log,
  nonfinite,
  pictures,
  plan,
  process,
  progress,
  provenance,
  runs,
  scoring,
  selection,
  sharding,
  stages,
  starting,
  step_records,
  storage,
  validation,
)
from sira_jax.adapters import allocation, pruning
from sira_jax.training import step as training

configuration.let_flags_say_none()
# Where no --config is given, the flags of the default's fields are read here.
with process.flag_errors():
  _CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/quickstart.py", "The config file.", lock_config=True
  )
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "The run's directory; runs/CONFIG or runs/CONFIG-ARGUMENT if not given.",
)
_BEFORE = flags.DEFINE_string(
  "before",
  None,
  "A run's directory, to take the scores before training from: the same base,"
  " scored the same way.",
)
_PLAN = flags.DEFINE_bool(
  "plan",
  False,
  "Compile the first step, say what it needs, and end; no weight is loaded.",
)
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "With --plan: TPU chips to compile for, such as v5e:4x4, which need not be"
  " here.",
)
distributed.define_flags()


def main(argv):
  """Runs the config; a user's mistake ends with its message alone."""
  config = _CONFIG.value
  process.prepare()
  with process.user_errors():
    process.refuse_arguments(argv)
    if _PLAN.value or _TOPOLOGY.value:
      return print(planned(config, _TOPOLOGY.value).describe())
    workdir = storage.place(_WORKDIR.value or default_workdir())
    validation.check_run(config)
    mesh, rules = adapted.layout(config)
    validation.check_rows(config, mesh)
    early = None
    if not (workdir / "results.json").exists():
      early = first_step.FirstStep(config, workdir, mesh=mesh, rules=rules)
    validation.check_data(config)
  try:
    with sharding.use(mesh, rules), storage.errors(workdir):
      train_and_score(config, workdir, early)
  except nonfinite.Stop as stop:
    print(f"error: {stop}", file=sys.stderr, flush=True)
    sys.exit(nonfinite.EXIT)


def planned(config, topology) -> plan.Plan:
  """What the run's first step needs, here or on the chips of a topology."""
  validation.check(config)
  devices = None if topology is None else plan.devices(topology)
  mesh, rules = adapted.layout(config, devices)
  validation.check_rows(config, mesh)
  return first_step.plan(config, mesh, rules)


def train_and_score(config, workdir, early) -> None:
  """From whatever there is of the run to its results.

  `early` is its FirstStep, under way; None where there need not be one.
  """
  with process.user_errors():
    runs.check_workdir(workdir, config)
    table = runs.results(workdir)
    if table is not None:
      print(f"The run in {workdir} is finished; its results:\n\n{table}\n")
      return
    before = _BEFORE.value and runs.before(storage.place(_BEFORE.value), config)
    run = assembly.build(config, workdir)
    if early is not None:
      run = dataclasses.replace(run, program=early.program)
    begun = starting.begin(run.base.model, **config.get("start", {}))
    runs.check_data(workdir, run.data.fingerprint, keep=False)
    # Only now, so that a config that fails leaves nothing behind.
    runs.open_workdir(workdir, config)
    runs.check_data(workdir, run.data.fingerprint, keep=True)
    start = restore(run, config, workdir, run.stages[0])
  provenance.note(workdir)
  print(assembly.describe(run, config))
  if begun:
    print(f"start     {begun} layers as the adapters of config.start")
  print(f"workdir   {workdir}", flush=True)
  if run.counts is not None:
    keep_allocation(run, workdir)
  before = scoring.first_scores(run, config, workdir, before)
  study = []
  for stage in run.stages:
    if stage.number:
      if not pruning.prune(run.base.model, fold=False):
        print("No rank is left, so the stages that follow are left out.")
        break
      with process.user_errors():
        start = restore(run, config, workdir, stage)
    with process.stop_signals() as signals:
      state, done = fit(run, config, workdir, stage, start, signals)
    if signals or not done:
      print(f"\nStopped at step {int(state.step)}; saved in {workdir}.")
      print("The same command continues it.", flush=True)
      sys.exit(process.STOPPED)
    if state is not None:
      nnx.update(run.base.model, state.trainable, state.constants)
      scoring.take_best(run, workdir, stage, int(state.step))
    if len(run.stages) > 1:
      study.append(scoring.studied(run, config, workdir, stage))
  if study:
    scoring.keep_study(study, workdir)
  scoring.last_scores(run, config, workdir, before)


def restore(run, config, workdir, stage) -> training.TrainState | None:
  """The state to start a stage from: its newest checkpoint's, if there is one.

  None where there is nothing to train.
  """
  if not stage.steps:
    return None
  optimizer, _ = assembly.optimizer(config, stage)
  state = training.init(
    run.base.model, optimizer, seed=config.seed + stage.number
  )
  folder = stages.folder(workdir, run.stages, stage)
  with checkpoints.Checkpoints(folder / "checkpoints") as saved:
    if saved.latest() is None:
      return state
    found = saved.restore(
      state,
      base=run.base.fingerprint,
      data=run.data.fingerprint,
      logged=int(
        distributed.agreed(str(metrics_log.logged(folder / "metrics.jsonl")))
      ),
    )
  print(f"Continuing at step {int(found.step)} of {stage.steps}.")
  return found


def keep_allocation(run, workdir) -> None:
  """Leaves which layers have how many experts, and says it."""
  print(f"\nExperts by layer:\n\n{allocation.table(run.counts)}\n", flush=True)
  file = workdir / "allocation.json"
  if not file.exists():
    pictures.leave(pictures.allocation, run.counts, workdir / "allocation.png")
    storage.write(file, allocation.dumps(run.counts))


def fit(run, config, workdir, stage, state, signals):
  """Trains to a stage's end, or until there is a signal; saves either way.

  Returns the state, and whether the stage is at its end.
  """
  first = 0 if state is None else int(state.step)
  folder = stages.folder(workdir, run.stages, stage)
  chosen = selection.Selection(folder, config.get("selection"), step=first)
  if due(config, stage, first):  # if it was stopped before it was scored
    scoring.validate(run, config, chosen, state)
  if first == stage.steps or chosen.exhausted:
    return state, True
  earlier = sum(one.steps for one in run.stages[: stage.number])
  # One batch a step: the position in the data is the number of the step.
  batches = ahead.Ahead(run.data.batches(config.seed + stage.number, first))
  meta = {"base": run.base.fingerprint, "data": run.data.fingerprint}
  line = progress.Progress(total=stage.steps, start=first)
  print("\nTraining; the first step compiles ...", flush=True)
  step, rates = learner(run, config, stage)
  with (
    checkpoints.Checkpoints(
      folder / "checkpoints", best=lambda: chosen.best
    ) as saved,
    contextlib.closing(
      metrics_log.MetricsLog(folder / "metrics.jsonl", step=first)
    ) as log,
  ):
    records = step_records.StepRecords(
      folder,
      log=log,
      line=line,
      rates=rates,
      action=config.training.nonfinite,
    )
    for number in range(first + 1, stage.steps + 1):
      begun, batch = time.monotonic(), batches.batch
      state, metrics = step(state, batches.rows, records.left_out)
      waiting = batches.read(metrics) if number < stage.steps else 0.0
      records.add(step_records.Sent(number, batch, metrics, waiting, begun))
      # Once, for a signal may arrive between the two questions.
      stopped = distributed.stopping(signals, earlier + number)
      if due(config, stage, number) or stopped:
        records.settle()
      if records.stop is not None:
        good = records.stop.good  # no step after it changed anything
        before = dataclasses.replace(state, step=state.step - (number - good))
        saved.save(before, step=good, meta=meta)
        raise records.stop
      if due(config, stage, number) or stopped:
        log.sync()  # a checkpoint never is on the disk before its metrics
        saved.save(state, step=number, meta=meta)
      if due(config, stage, number) and not stopped:
        line.pause(scoring.validate(run, config, chosen, state))
      if stopped or chosen.exhausted:
        break
  print(line.data(), log.left_out(), sep="", flush=True)
  return state, number == stage.steps or chosen.exhausted


def learner(run, config, stage):
  """A stage's jitted step, and its learning rates by the number of updates."""
  optimizer, schedule = assembly.optimizer(config, stage)
  step = training.make(
    run.base.model,
    optimizer,
    steps=stage.steps,
    microbatches=config.training.microbatches,
    made=None if stage.number else run.program(),
  )
  return step, np.asarray(jax.vmap(schedule)(jnp.arange(stage.steps)))


def due(config, stage, number) -> bool:
  """Whether a checkpoint is, after so many steps."""
  every = config.training.checkpoint_every
  return number > 0 and (number % every == 0 or number == stage.steps)


def default_workdir() -> str:
  """runs/quickstart for configs/quickstart.py, ...-lora for its :lora."""
  path, _, argument = flags.FLAGS["config"].config_filename.partition(":")
  name = pathlib.Path(path).stem
  return f"runs/{name}-{argument}" if argument else f"runs/{name}"


if __name__ == "__main__":
  process.start(process.together(main))
