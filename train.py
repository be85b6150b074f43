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
import json
import pathlib
import sys
import time

from absl import flags
from flax import nnx
import jax
from ml_collections import config_flags

from sira_jax import (
  adapted,
  analysis,
  assembly,
  checkpoints,
  configuration,
  distributed,
  evaluation,
  metrics_log,
  nonfinite,
  pictures,
  plan,
  process,
  progress,
  runs,
  sharding,
  stages,
  starting,
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
  config, workdir = (
    _CONFIG.value,
    pathlib.Path(_WORKDIR.value or default_workdir()),
  )
  process.prepare()
  with process.user_errors():
    process.refuse_arguments(argv)
    if _PLAN.value or _TOPOLOGY.value:
      return print(planned(config, _TOPOLOGY.value).describe())
    validation.check(config)
    mesh, rules = adapted.layout(config)
    validation.check_rows(config, mesh)
  try:
    with sharding.use(mesh, rules), runs.storage_errors(workdir):
      train_and_score(config, workdir)
  except nonfinite.Stop as stop:
    print(f"error: {stop}", file=sys.stderr, flush=True)
    sys.exit(nonfinite.EXIT)


def planned(config, topology) -> plan.Plan:
  """What the run's first step needs, here or on the chips of a topology."""
  validation.check(config)
  devices = None if topology is None else plan.devices(topology)
  mesh, rules = adapted.layout(config, devices)
  validation.check_rows(config, mesh)
  return assembly.plan(config, mesh, rules)


def train_and_score(config, workdir) -> None:
  """From whatever there is of the run to its results."""
  with process.user_errors():
    runs.check_workdir(workdir, config)
    table = runs.results(workdir)
    if table is not None:
      print(f"The run in {workdir} is finished; its results:\n\n{table}\n")
      return
    before = _BEFORE.value and runs.before(pathlib.Path(_BEFORE.value), config)
    run = assembly.build(config, workdir)
    begun = starting.begin(run.base.model, **config.get("start", {}))
    runs.check_data(workdir, run.data.fingerprint, keep=False)
    # Only now, so that a config that fails leaves nothing behind.
    runs.open_workdir(workdir, config)
    runs.check_data(workdir, run.data.fingerprint, keep=True)
    start = restore(run, config, workdir, run.stages[0])
  print(assembly.describe(run, config))
  if begun:
    print(f"start     {begun} layers as the adapters of config.start")
  print(f"workdir   {workdir}", flush=True)
  if run.counts is not None:
    keep_allocation(run, workdir)
  before = first_scores(run, config, workdir, before)
  study = []
  for stage in run.stages:
    if stage.number:
      if not pruning.prune(run.base.model, fold=False):
        print("No rank is left, so the stages that follow are left out.")
        break
      with process.user_errors():
        start = restore(run, config, workdir, stage)
    with process.stop_signals() as signals:
      state = fit(run, config, workdir, stage, start, signals)
    if signals or (state is not None and int(state.step) < stage.steps):
      print(f"\nStopped at step {int(state.step)}; saved in {workdir}.")
      print("The same command continues it.", flush=True)
      sys.exit(process.STOPPED)
    if state is not None:
      nnx.update(run.base.model, state.trainable, state.constants)
    if len(run.stages) > 1:
      study.append(studied(run, config, workdir, stage))
  if study:
    keep_study(study, workdir)
  last_scores(run, config, workdir, before)


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
  if not file.exists() and distributed.first():
    _draw(pictures.allocation, run.counts, workdir / "allocation.png")
    draft = file.with_name(".allocation.json")
    allocation.save(run.counts, draft)
    draft.replace(file)  # whole, for all later starts go by it


def first_scores(run, config, workdir, text) -> list[evaluation.Result]:
  """The scores before training: those given, or computed once in a run."""
  file = workdir / "before.json"

  def read(text):
    found = evaluation.loads(text)
    names = [(one.task, one.language) for one in found]
    if names != [(one.task, one.language) for one in run.data.sets]:
      raise ValueError("it has not the scores of this run's evaluation sets")
    return found

  if text is not None:
    runs.write(file, text)
    return read(text)
  results = runs.load(file, read)
  if results is None:
    print("\nEvaluating before training ...", flush=True)
    begun = time.monotonic()
    results, _ = assembly.score(run, config, sets=run.data.sets, intervals=True)
    runs.write(file, evaluation.dumps(results))
    print(f"took {progress.duration(time.monotonic() - begun)}")
  return results


def fit(run, config, workdir, stage, state, signals) -> training.TrainState:
  """Trains to a stage's end, or until there is a signal; saves either way."""
  first = 0 if state is None else int(state.step)
  if first == stage.steps:
    return state
  total, every = stage.steps, config.training.checkpoint_every
  action = config.training.nonfinite
  earlier = sum(one.steps for one in run.stages[: stage.number])
  optimizer, schedule = assembly.optimizer(config, stage)
  step = training.make(
    run.base.model,
    optimizer,
    steps=total,
    microbatches=config.training.microbatches,
  )
  # One batch a step: the position in the data is the number of the step.
  batches = run.data.batches(config.seed + stage.number, first)
  meta = {"base": run.base.fingerprint, "data": run.data.fingerprint}
  line = progress.Progress(total=total, start=first)
  print("\nTraining; the first step compiles ...", flush=True)
  folder = stages.folder(workdir, run.stages, stage)
  with (
    checkpoints.Checkpoints(folder / "checkpoints") as saved,
    contextlib.closing(
      metrics_log.MetricsLog(folder / "metrics.jsonl", step=first)
    ) as log,
  ):
    for number in range(first + 1, total + 1):
      begun = time.monotonic()
      batch = next(batches)
      state, metrics = step(state, sharding.rows(batch))
      metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
      metrics["examples"] = _examples(batch)
      # The optimizer does not count the steps that were left out.
      updates = number - 1 - len(log.skipped)
      metrics["learning_rate"] = float(schedule(updates))
      line.update(number, metrics)
      metrics["seconds"] = round(time.monotonic() - begun, 4)
      log.append({"step": number, **metrics})
      if metrics["skipped"]:
        stop = nonfinite.keep(
          folder, number, batch, metrics, skipped=log.skipped, action=action
        )
        if stop is not None:
          before = dataclasses.replace(state, step=state.step - 1)
          saved.save(before, step=number - 1, meta=meta)
          raise stop
      # Once, for a signal may arrive between the two questions.
      stopped = distributed.stopping(signals, earlier + number)
      if number % every == 0 or number == total or stopped:
        log.sync()  # a checkpoint never is on the disk before its metrics
        saved.save(state, step=number, meta=meta)
      if stopped:
        break
  if log.skipped:
    print(f"{len(log.skipped)} of {int(state.step)} steps were left out.")
  return state


def studied(run, config, workdir, stage):
  """What a stage of a sparsifying schedule shows, computed once in a run."""
  folder = stages.folder(workdir, run.stages, stage)
  file = folder / "study.json"
  found = runs.load(file, json.loads)
  if found is None:
    print(f"\nEvaluating stage {stage.number} ...", flush=True)
    trained, _ = assembly.score(run, config, sets=run.data.memory)
    tested, _ = assembly.score(run, config, sets=run.data.sets)
    found = stages.measure(
      run.base.model,
      stage,
      trained=trained,
      tested=tested,
      metrics=folder / "metrics.jsonl",
    )
    runs.write(file, json.dumps(found, indent=1))
  return found


def keep_study(study, workdir) -> None:
  """Leaves what the stages show together, and says it."""
  table = stages.table(study)
  runs.write(workdir / "sparsity.json", json.dumps(study, indent=1))
  runs.write(workdir / "sparsity.md", table + "\n")
  _draw(pictures.sparsity, study, workdir / "sparsity.png")
  print(f"\n{table}", flush=True)


def last_scores(run, config, workdir, before) -> None:
  """Evaluates the trained adapters and leaves the run's results."""
  print("\nEvaluating after training ...", flush=True)
  recorder = analysis.Recorder(run.data.sets)
  after, predictions = assembly.score(
    run, config, sets=run.data.sets, intervals=True, record=recorder
  )
  evaluation.save_predictions(
    workdir / "predictions.jsonl", run.data.sets, predictions
  )
  statistics = recorder.statistics()
  routing = analysis.summary(statistics)
  if routing is not None:
    analysis.save(statistics, workdir)
    runs.write(workdir / "routing.json", json.dumps(routing))
    _draw(pictures.routing, routing, workdir / "routing.png")
  table = evaluation.table(before, after)
  runs.write(workdir / "results.md", table + "\n")
  # The last: it says that the run is finished.
  runs.write(
    workdir / "results.json",
    json.dumps(evaluation.as_json(before, after), indent=1),
  )
  print(f"\n{table}\n\nLeft in {workdir}: {runs.listing(workdir)}")


def _draw(draw, what, file):
  if not distributed.first():
    return
  try:
    draw(what, file)
  except ValueError as error:  # no matplotlib: no reason to lose the results
    print(error)


def _examples(batch) -> int:
  """How many examples a batch holds: packed rows number theirs from 1."""
  if "decoder_input_tokens" not in batch:  # an encoder: texts with a label
    return int(batch["decoder_loss_weights"].sum())
  segments = batch.get("decoder_segment_ids")
  if segments is None:
    return len(batch["decoder_target_tokens"])
  return int(segments.max(axis=1).sum())


def default_workdir() -> str:
  """runs/quickstart for configs/quickstart.py, ...-lora for its :lora."""
  path, _, argument = flags.FLAGS["config"].config_filename.partition(":")
  name = pathlib.Path(path).stem
  return f"runs/{name}-{argument}" if argument else f"runs/{name}"


if __name__ == "__main__":
  process.start(process.together(main))
