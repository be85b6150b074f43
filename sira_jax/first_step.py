# SPDX-License-Identifier: Apache-2.0
"""A run's first step, compiled from its config before there is any number."""

import jax
import jax.numpy as jnp
import ml_collections

from sira_jax import adapted, assembly, process, sharding, stages, storage
from sira_jax import plan as plans
from sira_jax.formats import sources
from sira_jax.training import step as training


class FirstStep:
  """The program of a run's first step, compiled while its data are read.

  In a thread of its own: weights, data and this have nothing to wait for from
  each other. Where the base is still to be fetched, or experts to be allocated,
  or it comes to nothing, the run compiles its step when it gets there; what was
  wrong is said there.

  Args:
    config: of the run; it need not be checked yet.
    workdir: of the run.
  """

  def __init__(self, config: ml_collections.ConfigDict, workdir: storage.Path):
    self._made: training.Program | None = None
    self._thread = process.beside(lambda: self._compile(config, workdir))

  def program(self) -> training.Program | None:
    """For `training.step.make`; waits until it is compiled."""
    self._thread.join()
    return self._made

  def _compile(self, config, workdir):
    counts, trainings = adapted.allocated(workdir), adapted.stages(config)
    if (
      not trainings[0].steps
      or ("allocation" in config and counts is None)
      or any(
        stages.folder(workdir, trainings, x).exists() for x in trainings[1:]
      )
      or not sources.at_hand(config.base.uri)  # the run itself fetches it
    ):
      return
    mesh, rules = adapted.layout(config)
    model, batch = assembly.outline(config, counts)
    optimizer, _ = assembly.optimizer(config, trainings[0])
    made = training.program(
      model,
      optimizer,
      steps=trainings[0].steps,
      microbatches=config.training.microbatches,
    )
    with sharding.use(mesh, rules):
      taken = plans.arguments(
        model, optimizer, batch=batch, mesh=mesh, rules=rules
      )
      made.step.lower(*taken, _left_out(config, mesh)).compile()
    self._made = made


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
