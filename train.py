# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a base model with adapters, as a config says.

    python train.py                                    the quickstart
    python train.py --config=configs/FILE.py:ARGUMENT --workdir=DIRECTORY

config -> base model -> adapters -> data -> steps -> checkpoint -> scores. The
same command again continues a run that was stopped, however it was stopped,
or says that it is finished.
"""

import contextlib
import json
import pathlib
import sys
import time

from absl import flags
from flax import nnx
import jax
from ml_collections import config_flags

from sira_jax import (
  analysis,
  assembly,
  checkpoints,
  configuration,
  evaluation,
  progress,
  runs,
)
from sira_jax.data import pipeline
from sira_jax.training import optimizers
from sira_jax.training import step as training

configuration.let_flags_say_none()
# Where no --config is given, the flags of the default's fields are read here.
with runs.flag_errors():
  _CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/quickstart.py", "The config file.", lock_config=True
  )
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "The run's directory; runs/CONFIG or runs/CONFIG-ARGUMENT if not given.",
)


def main(argv):
  """Runs the config; a user's mistake ends with its message alone."""
  config, workdir = (
    _CONFIG.value,
    pathlib.Path(_WORKDIR.value or default_workdir()),
  )
  runs.begin_process()
  with runs.user_errors():
    runs.refuse_arguments(argv)
    assembly.check(config)
    runs.check_workdir(workdir, config)
    if (workdir / "results.json").exists():
      print(f"The run in {workdir} is finished; its results:\n")
      print((workdir / "results.md").read_text())
      return
    run = assembly.build(config)
    # Only now, so that a config that fails leaves nothing behind.
    runs.open_workdir(workdir, config)
    start = restore(run, config, workdir)
  print(assembly.describe(run, config))
  print(f"workdir   {workdir}", flush=True)
  before = first_scores(run, config, workdir)
  with runs.stop_signals() as signals:
    state = fit(run, config, workdir, start, signals)
  if signals:
    print(f"\nStopped at step {int(state.step)}; saved in {workdir}.")
    print("The same command continues it.", flush=True)
    sys.exit(runs.STOPPED)
  nnx.update(run.base.model, state.trainable)
  last_scores(run, config, workdir, before)


def restore(run, config, workdir) -> training.TrainState:
  """The state to start from: the newest checkpoint's, if there is one."""
  optimizer, _ = optimizers.adamw(
    steps=config.training.steps, **config.optimizer
  )
  state = training.init(run.base.model, optimizer, seed=config.seed)
  with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
    if saved.latest() is None:
      return state
    found = saved.restore(state, base=run.base.fingerprint, data=run.data)
  print(f"Continuing at step {int(found.step)} of {config.training.steps}.")
  return found


def first_scores(run, config, workdir) -> list[evaluation.Result]:
  """The scores before training, computed once in a run."""
  file = workdir / "before.json"
  if not file.exists():
    print("\nEvaluating before training ...", flush=True)
    begun = time.monotonic()
    results, _ = assembly.score(run, config)
    runs.write(file, evaluation.dumps(results))
    print(f"took {progress.duration(time.monotonic() - begun)}")
  return evaluation.loads(file.read_text())


def fit(run, config, workdir, state, signals) -> training.TrainState:
  """Trains to the last step, or until there is a signal; saves either way."""
  total, every = config.training.steps, config.training.checkpoint_every
  optimizer, schedule = optimizers.adamw(steps=total, **config.optimizer)
  step = training.make(run.base.model, optimizer)
  first = int(state.step)
  if first == total:
    return state
  # One batch a step: the position in the data is the number of the step.
  batches = pipeline.batches(
    run.mixture, **config.batches, seed=config.seed, start=first
  )
  meta = {"base": run.base.fingerprint, "data": run.data}
  line = progress.Progress(total=total, start=first)
  print("\nTraining; the first step compiles ...", flush=True)
  with (
    checkpoints.Checkpoints(workdir / "checkpoints") as saved,
    contextlib.closing(
      runs.MetricsLog(workdir / "metrics.jsonl", step=first)
    ) as log,
  ):
    for number in range(first + 1, total + 1):
      batch = next(batches)
      state, metrics = step(state, jax.device_put(batch))
      metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
      metrics["examples"] = _examples(batch)
      metrics["learning_rate"] = float(schedule(number - 1))
      line.update(number, metrics)
      log.append({"step": number, **metrics})
      stopped = bool(signals)  # one may arrive between the two questions
      if number % every == 0 or number == total or stopped:
        saved.save(state, step=number, meta=meta)
      if stopped:
        break
  return state


def last_scores(run, config, workdir, before) -> None:
  """Evaluates the trained adapters and leaves the run's results."""
  print("\nEvaluating after training ...", flush=True)
  after, predictions = assembly.score(run, config)
  assembly.save_predictions(
    workdir / "predictions.jsonl", run.sets, predictions
  )
  routing = analysis.routing(run.base.model, run.sets)
  if routing is not None:
    runs.write(workdir / "routing.json", json.dumps(routing))
    try:
      analysis.draw(routing, workdir / "routing.png")
    except ValueError as error:  # no matplotlib: no reason to lose the scores
      print(error)
  table = evaluation.table(before, after)
  runs.write(workdir / "results.md", table + "\n")
  # The last: it says that the run is finished.
  runs.write(
    workdir / "results.json",
    json.dumps(evaluation.as_json(before, after), indent=1),
  )
  print(f"\n{table}\n\nLeft in {workdir}: {runs.listing(workdir)}")


def _examples(batch) -> int:
  """How many examples a batch holds: packed rows number theirs from 1."""
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
  runs.start(main)
