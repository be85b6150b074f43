# SPDX-License-Identifier: Apache-2.0
"""A run's first step, compiled from its config before there is any number."""

import contextlib

import jax
import jax.numpy as jnp
import ml_collections

from sira_jax import adapted, assembly, process, sharding, stages, storage
from sira_jax import plan as plans
from sira_jax.formats import sources
from sira_jax.training import step as training


class FirstStep:
  """The program of a run's first step, compiled while its data are read.

  It is traced here and compiled in a thread, so that two threads never take
  turns in Python. Where the base is still to be fetched, or experts to be
  allocated, or nothing comes of it, the run compiles its step when it gets
  there; what was wrong is said there.

  Args:
    config: of the run; what it says of data need not be checked yet.
    workdir: of the run.
    mesh: of the run.
    rules: on it.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: storage.Path,
    *,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules,
  ):
    self._program, self._thread = None, None
    # A mistake is one of the run, too, and half of the config is unchecked.
    with contextlib.suppress(Exception):
      if _known(config, workdir):
        counts = adapted.allocated(workdir)
        made, lowered = _lowered(config, counts, mesh=mesh, rules=rules)
        self._program, self._thread = made, process.beside(lowered.compile)

  def program(self) -> training.Program | None:
    """For `training.step.make`; waits until it is compiled."""
    if self._thread is not None:
      self._thread.join()
    return self._program


def _known(config, workdir) -> bool:
  """Whether there is a first step, of shapes that are known here and now."""
  first, *later = trainings = adapted.stages(config)
  return (
    first.steps > 0
    # A stage that is begun has a model with fewer ranks.
    and not any(stages.folder(workdir, trainings, x).exists() for x in later)
    and ("allocation" not in config or adapted.allocated(workdir) is not None)
    and sources.at_hand(config.base.uri)
  )


def _lowered(config, counts, *, mesh, rules):
  """The first step's program, and what is to be compiled of it."""
  stage = adapted.stages(config)[0]
  model, batch = assembly.outline(config, counts)
  optimizer, _ = assembly.optimizer(config, stage)
  with sharding.use(mesh, rules):
    taken = plans.arguments(
      model, optimizer, batch=batch, mesh=mesh, rules=rules
    )
    made = training.program(
      model,
      optimizer,
      steps=stage.steps,
      microbatches=config.training.microbatches,
      places=jax.tree.map(lambda shape: shape.sharding, taken[0]),
    )
    return made, made.step.lower(*taken, _left_out(config, mesh))


def _left_out(config, mesh):
  """Of what `step_records.StepRecords` gives the first step."""
  if config.training.nonfinite != "stop":
    return None
  number = jax.ShapeDtypeStruct((), jnp.float32)
  return number.update(sharding=sharding.of(number, mesh))


def plan(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
) -> plans.Plan:
  """What the run's first step needs, compiled without a weight.

  Args:
    config: checked.
    mesh: to compile for.
    rules: on it.

  Raises:
    ValueError: experts are still to be allocated, or nothing is trained.
  """
  stage = adapted.stages(config)[0]
  if "allocation" in config or not stage.steps:
    raise ValueError(
      "There is no step to plan: experts are allocated from the weights, which"
      " a plan does not load, or config.training.steps is 0."
    )
  model, batch = assembly.outline(config)
  return plans.plan(
    model,
    assembly.optimizer(config, stage)[0],
    batch=batch,
    mesh=mesh,
    rules=rules,
    steps=stage.steps,
    microbatches=config.training.microbatches,
  )
