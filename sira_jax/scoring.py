# SPDX-License-Identifier: Apache-2.0
"""A run's scores: before training, of its checkpoints and stages, and after."""

import contextlib
import json
import time

from flax import nnx

from sira_jax import (
  analysis,
  assembly,
  board,
  evaluation,
  kept_answers,
  pictures,
  progress,
  selection,
  stages,
  storage,
)
from sira_jax import predictions as predictions_lib


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
    storage.write(file, text)
    return read(text)
  results = storage.load(file, read)
  answers = workdir / "answers_before.jsonl"
  if results is None:
    run.program()  # for compiling may time kernels, best with nothing beside
    print("\nEvaluating before training ...", flush=True)
    begun = time.monotonic()
    results, _ = _score(
      run, config, answers, sets=run.data.sets, intervals=True
    )
    storage.write(file, evaluation.dumps(results))
    print(f"took {progress.duration(time.monotonic() - begun)}")
  storage.remove(answers)
  return results


def validate(run, config, chosen, state) -> float:
  """Scores a checkpoint if there is a choice of them; returns the seconds."""
  begun, step = time.monotonic(), int(state.step)
  if chosen.lacks(step):
    nnx.update(run.base.model, state.trainable, state.constants)
    answers = chosen.folder / "answers_validation.jsonl"
    found, _ = _score(run, config, answers, sets=run.data.validation)
    print(chosen.add(step, found), flush=True)
    storage.remove(answers)
    curves = board.Board(chosen.folder, "validation", step=step - 1)
    for one in [*found, *evaluation.means(found)]:
      where = f"{one.task}/{one.language}"
      curves.add(step, {f"{where}/{k}": x for k, x in one.scores.items()})
    curves.close()
  return time.monotonic() - begun


def take_best(run, workdir, stage, step) -> None:
  """Makes the model that of the stage's best checkpoint, if one was chosen."""
  best = selection.best(stages.folder(workdir, run.stages, stage))
  if best in (None, step):
    return
  taken = stages.restore_stage(
    run.base.model, workdir, run.stages, stage, base=run.base.fingerprint
  )
  print(f"\nTaking step {taken} of {step}.", flush=True)


def studied(run, config, workdir, stage):
  """What a stage of a sparsifying schedule shows, computed once in a run."""
  folder = stages.folder(workdir, run.stages, stage)
  file = folder / "study.json"
  answers = [folder / f"answers_{name}.jsonl" for name in ("memory", "test")]
  found = storage.load(file, json.loads)
  if found is None:
    print(f"\nEvaluating stage {stage.number} ...", flush=True)
    asked = (run.data.memory, run.data.sets)
    trained, tested = (
      _score(run, config, kept, sets=sets)[0]
      for kept, sets in zip(answers, asked, strict=True)
    )
    found = stages.measure(
      run.base.model,
      stage,
      trained=trained,
      tested=tested,
      metrics=folder / "metrics.jsonl",
    )
    storage.write(file, json.dumps(found, indent=1))
  for kept in answers:
    storage.remove(kept)
  return found


def keep_study(study, workdir) -> None:
  """Leaves what the stages show together, and says it."""
  table = stages.table(study)
  storage.write(workdir / "sparsity.json", json.dumps(study, indent=1))
  storage.write(workdir / "sparsity.md", table + "\n")
  pictures.leave(pictures.sparsity, study, workdir / "sparsity.png")
  print(f"\n{table}", flush=True)


def last_scores(run, config, workdir, before) -> None:
  """Evaluates the trained adapters and leaves the run's results."""
  print("\nEvaluating after training ...", flush=True)
  recorder = analysis.Recorder(run.data.sets)
  answers = workdir / "answers_after.jsonl"
  after, predictions = _score(
    run, config, answers, sets=run.data.sets, intervals=True, record=recorder
  )
  predictions_lib.save(
    workdir / "predictions.jsonl", run.data.sets, predictions
  )
  statistics = recorder.statistics()
  routing = analysis.summary(statistics)
  if routing is not None:
    analysis.save(statistics, workdir)
    storage.write(workdir / "routing.json", json.dumps(routing))
    pictures.leave(pictures.routing, routing, workdir / "routing.png")
  table = evaluation.table(before, after)
  storage.write(workdir / "results.md", table + "\n")
  # The last: it says that the run is finished.
  storage.write(
    workdir / "results.json",
    json.dumps(evaluation.as_json(before, after), indent=1),
  )
  storage.remove(answers)
  print(f"\n{table}\n\nLeft in {workdir}: {storage.listing(workdir)}")


def _score(run, config, file, *, sets, intervals=False, record=None):
  """`assembly.score`, which goes on from the answers that a file keeps."""
  key = kept_answers.key(
    run.base.model,
    sets,
    base=run.base.fingerprint,
    data=run.data.fingerprint,
    dtype=config.base.dtype,
    decoding=config.decoding.to_dict(),
    statistics=record is not None,
  )
  kept = kept_answers.KeptAnswers(file, key, recorder=record)
  with contextlib.closing(kept):
    return assembly.score(
      run,
      config,
      sets=sets,
      intervals=intervals,
      record=record and kept.record,
      kept=kept,
    )
