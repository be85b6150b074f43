# SPDX-License-Identifier: Apache-2.0
"""What can be refused of a config before anything is loaded."""

import jax
import ml_collections

from sira_jax import (
  adapted,
  assembly,
  configuration,
  evaluation,
  expert_budget,
  nonfinite,
  selection,
  sharding,
  starting,
)
from sira_jax.adapters import heads
from sira_jax.formats import bases
from sira_jax.training import optimizers, sparsifying

# What each group of a config configures, but for the optimizer, whose function
# is chosen by its kind, and for the data, which may be in a cache; and the
# arguments that are not the config's to give.
_FUNCTIONS = {
  "base": bases.load,
  "decoding": evaluation.evaluate,
  "sparsity": sparsifying.stages,
  "allocation": expert_budget.decide,
  "mesh": sharding.layout,
  "selection": selection.check,
  "start": starting.begin,
  "head": heads.HeadFactory,
}
_GIVEN = {
  "mixture": ("known",),
  "batches": ("seed", "start", "prefix", "only"),
  "evaluation": ("encoder",),
  "optimizer": ("steps", "gates"),
  "decoding": ("score", "text", "eos_id", "intervals", "record", "kept"),
  "sparsity": ("steps",),
  "allocation": ("costs",),
  "mesh": ("devices",),
  "start": ("model",),
}
# `files`, `suites` and `rules` are groups of groups.
_OPTIONAL = {"sparsity", "allocation", "files", "suites", "start", "head"}
_OPTIONAL |= {"cache", "selection"}
_DATA = ("mixture", "batches", "evaluation")
_TRAINING = ("steps", "checkpoint_every", "microbatches", "nonfinite")


def check(config: ml_collections.ConfigDict) -> None:
  """Checks all of a config that can be checked before anything is loaded.

  Raises:
    ValueError: a group that is missing or unknown, a field that the group's
      function does not have or does need, or a value that it refuses.
  """
  check_run(config)
  check_data(config)


def check_data(config: ml_collections.ConfigDict) -> None:
  """Checks what a config says of its data.

  TensorFlow is imported where there is no cache of them, which takes seconds.

  Raises:
    ValueError: as `check`.
  """
  _check_fields(config, _data_functions(config))
  if not adapted.cached(config):
    _check_sources(config)


def check_run(config: ml_collections.ConfigDict) -> None:
  """Checks all of a config but what `check_data` does.

  Raises:
    ValueError: as `check`.
  """
  _check_groups(config)
  kind = config.optimizer.get("kind")
  if kind not in optimizers.OPTIMIZERS:
    raise ValueError(
      f"config.optimizer.kind must be one of {sorted(optimizers.OPTIMIZERS)},"
      f" got {kind!r}."
    )
  functions = _FUNCTIONS | {"optimizer": optimizers.OPTIMIZERS[kind]}
  _check_fields(config, functions)
  rules = configuration.rules(config.rules)
  if config.seed is None:
    raise ValueError("config.seed must be a number, got none.")
  if set(config.training) != set(_TRAINING):
    raise ValueError(
      f"config.training must have {', '.join(_TRAINING)}; it has"
      f" {sorted(config.training)}."
    )
  if config.training.nonfinite not in nonfinite.ACTIONS:
    raise ValueError(
      f"config.training.nonfinite must be one of {list(nonfinite.ACTIONS)}, got"
      f" {config.training.nonfinite!r}."
    )
  for group, name, least in (
    ("training", "steps", 1 if rules or "head" in config else 0),
    ("training", "checkpoint_every", 1),
    ("training", "microbatches", 1),
    ("batches", "batch_size", 1),
    ("batches", "length", 2),
    ("evaluation", "examples", 1),
    ("decoding", "max_new_tokens", 1),
    ("decoding", "batch_size", 1),
  ):
    value = config[group][name]
    if value is None or value < least:
      raise ValueError(
        f"config.{group}.{name} must be at least {least}, got {value}."
      )
  _check_rules(config, rules)
  if "selection" in config:
    _check_selection(config)
  for stage in adapted.stages(config):
    if stage.steps:
      assembly.optimizer(config, stage)


def _check_fields(config, functions):
  """Checks each group that is there against its function's arguments."""
  for name, function in functions.items():
    if name in config:
      fields = {k: v for k, v in config[name].items() if k != "kind"}
      given = _GIVEN.get(name, ())
      configuration.check(name, function, fields, given=given)


def _check_groups(config):
  needed = {*_FUNCTIONS, *_DATA, "optimizer", "rules", "seed", "training"}
  needed -= _OPTIONAL
  lacking = sorted(needed - set(config))
  unknown = sorted(set(config) - needed - _OPTIONAL)
  if lacking or unknown:
    raise ValueError(
      f"The config must have the groups {sorted(needed)}, and may have"
      f" {sorted(_OPTIONAL)}; it lacks {lacking} and has the unknown {unknown}."
    )


def _data_functions(config):
  """What the data's groups configure: of a cache, how it is read.

  What it holds was made of the others, which are compared when it is opened.
  """
  if adapted.cached(config):
    from sira_jax.cached import reader  # which asks for grain

    return {"cache": reader.opened, "batches": reader.batches}
  from sira_jax.data import streaming  # which asks for TensorFlow

  return streaming.FUNCTIONS


def _check_sources(config):
  """What says where tasks are from: `files` and `suites`."""
  from sira_jax.data import files
  from sira_jax.data.suites import reading

  names = config.mixture.get("tasks", ())
  suites = config.get("suites", {})
  for name, fields in suites.items():
    configuration.check(f"suites.{name}", reading.Suite, fields)
  reading.check(suites, names)
  groups = config.get("files", {})
  for name, fields in groups.items():
    configuration.check(f"files.{name}", files.Source, fields)
  files.sources(groups)
  unused = sorted(set(groups) - set(names))
  if unused:
    raise ValueError(
      f"config.files has {', '.join(unused)}, which config.mixture.tasks does"
      " not name: add it there, or drop the files."
    )


def _check_selection(config):
  """What choosing a checkpoint asks of the other groups."""
  selection.check(**config.selection)
  trainings = [stage for stage in adapted.stages(config) if stage.steps]
  if len(trainings) != 1:
    raise ValueError(
      "config.selection chooses among the checkpoints of one training, and by"
      f" training.steps and sparsity.penalties there are {len(trainings)}: drop"
      " the group."
    )


def _check_rules(config, rules):
  """What the rules' methods ask of the other groups."""
  if not rules and config.training.steps and "head" not in config:
    raise ValueError(
      "config.rules is empty, so there is nothing to train: add a rule, or set"
      " config.training.steps to 0 to score the frozen base."
    )
  factories = [rule.factory for rule in rules]
  gated = any(getattr(factory, "gate", None) for factory in factories)
  if gated and "sparsity" not in config:
    raise ValueError(
      "The rules have gates, but the config has no group sparsity to say how"
      " they are trained: add config.sparsity with penalties."
    )
  if "sparsity" in config and not gated:
    raise ValueError(
      "config.sparsity is about gates, and no rule has any: take sora, or sira"
      " with a gate, or drop the group."
    )
  headed = "head" in config
  if any(_by_example(factory) for factory in factories) and not headed:
    raise ValueError(
      'level="example" routes by the mean of a whole example, and the runs of'
      ' this script decode token by token: use level="token".'
    )
  weights = {getattr(factory, "consistency", None) for factory in factories}
  if len(weights - {None}) > 1:
    raise ValueError(
      "The consistency loss is one of the whole model: give all rules the same"
      f" consistency, not {sorted(weights - {None})}."
    )
  if headed:
    _check_head(config, weights - {None})
  if "allocation" in config:
    settings = config.allocation.to_dict()
    # Whatever can be refused without the model's sensitivities.
    expert_budget.check(**settings)


def _check_head(config, consistencies):
  """What a head asks of the other groups."""
  factory = configuration.head(config.head)
  if "allocation" in config:
    raise ValueError(
      "config.allocation goes by how sensitive the loss is, which with a new"
      " head (config.head) is of no use: drop one of the groups."
    )
  if config.evaluation.get("rank"):
    raise ValueError(
      "config.evaluation.rank is of models that write: one with a head"
      " (config.head) chooses among its labels as it is. Drop one of them."
    )
  if not factory.labels and any(consistencies):
    raise ValueError(
      "AdaMix's consistency is of two distributions, and config.head without"
      " labels gives a number: name them, or give the rules consistency=0."
    )


def check_rows(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> None:
  """Checks that the mesh and the microbatches divide a batch's rows.

  Raises:
    ValueError: they do not.
  """
  with sharding.use(mesh):
    places = sharding.places()
  rows, parts = config.batches.batch_size, config.training.microbatches
  if rows % (parts * places):
    raise ValueError(
      f"config.batches.batch_size ({rows}) must be a multiple of"
      f" {parts * places}: training.microbatches ({parts}) times the"
      f" {places} devices that config.mesh puts rows on (data x fsdp)."
    )


def _by_example(factory):
  router = getattr(factory, "router", None)
  return router is not None and router.level == "example"
