# SPDX-License-Identifier: Apache-2.0
"""The model that a config names, its base and adapters; it knows no data."""

from collections.abc import Mapping, Sequence
import dataclasses

from flax import nnx
import jax
import ml_collections

from sira_jax import configuration, expert_budget, sharding, storage
from sira_jax import stages as stages_lib
from sira_jax.adapters import allocation, heads, surgery
from sira_jax.formats import bases
from sira_jax.training import sparsifying


@dataclasses.dataclass(frozen=True)
class Adapted:
  """The trained model of a run.

  Attributes:
    base: its model is adapted and restored, in evaluation mode.
    stage: the newest that was saved.
    step: of it.
    stages: how many the run has.
  """

  base: bases.Base
  stage: int
  step: int
  stages: int


def check(config: ml_collections.ConfigDict) -> None:
  """Checks what a config says of the model; `validation` checks all of it.

  Raises:
    ValueError: a group that is missing, a field of the base or the mesh that
      is unknown or missing, or a rule that is refused.
  """
  groups = {"base", "decoding", "mesh", "rules", "seed", "training"}
  lacking = sorted(groups - set(config))
  if lacking:
    raise ValueError(f"The config lacks the groups {lacking}.")
  configuration.check("base", bases.load, config.base)
  configuration.check("mesh", sharding.layout, config.mesh, given=("devices",))
  configuration.rules(config.rules)
  if "head" in config:
    configuration.head(config.head)


def layout(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> tuple[jax.sharding.Mesh, sharding.Rules]:
  """The config's mesh and rules, of all devices there are or of those given.

  Raises:
    ValueError: it does not fit the devices.
  """
  try:
    return sharding.layout(**config.mesh, devices=devices)
  except ValueError as error:
    raise ValueError(f"config.mesh: {error}") from None


def lay_out_anew(
  config: ml_collections.ConfigDict, *, fsdp: int | None, tensor: int | None
) -> None:
  """Another mesh for a config, if any size is given; data has what is left."""
  given = {"fsdp": fsdp, "tensor": tensor}
  given = {name: size for name, size in given.items() if size}
  if given:
    config.mesh.update(data=-1, slices=1, **given)


def stages(config: ml_collections.ConfigDict) -> tuple[sparsifying.Stage, ...]:
  """The stages of its training.

  Raises:
    ValueError: config.sparsity cannot be.
  """
  steps = config.training.steps
  if "sparsity" not in config:
    return (sparsifying.Stage(0, steps),)
  try:
    return sparsifying.stages(steps=steps, **config.sparsity)
  except ValueError as error:
    raise ValueError(f"config.sparsity: {error}") from None


def load(config: ml_collections.ConfigDict) -> bases.Base:
  """The base model, on the mesh in use.

  Raises:
    ValueError: it cannot be had.
  """
  base = bases.load(**config.base)
  sharding.place(base.model)
  return base


def outline(config: ml_collections.ConfigDict) -> bases.Base:
  """The base model without its numbers, for what they do not matter to.

  Raises:
    ValueError: as `load`.
  """
  return bases.outline(**config.base)


def has_encoder(model: nnx.Module) -> bool:
  """Whether it is an encoder-decoder."""
  return "encoder_input_tokens" in model.FEATURES


def labels(config: ml_collections.ConfigDict) -> tuple[str, ...] | None:
  """What the outputs of its head mean; none for a number; None without one."""
  return tuple(config.head.labels) if "head" in config else None


def cached(config: ml_collections.ConfigDict) -> str | None:
  """The folder of the cache that its data are read from, if it names one."""
  return config.get("cache", {}).get("folder") or None


def prefixed(config: ml_collections.ConfigDict) -> bool:
  """Whether its decoder is a prefix LM."""
  return config.base.get("prefix", False)


def allocated(workdir: storage.Path) -> dict[str, int] | None:
  """Experts by layer of the run in `workdir`; None if it has none yet.

  Raises:
    ValueError: as `allocation.load`.
  """
  file = workdir / "allocation.json"
  return allocation.load(file) if file.exists() else None


def adapt(
  model: nnx.Module,
  config: ml_collections.ConfigDict,
  counts: Mapping[str, int] | None,
) -> tuple[surgery.Site, ...]:
  """Puts the config's adapters into its base model, and its head on it.

  Args:
    model: plain.
    config: whose rules are followed.
    counts: experts by layer, where they were allocated.

  Raises:
    ValueError: rules that do not fit the model.
  """
  # The head first, so that rules find its own one, which they leave alone.
  attach_head(model, config)
  rules = configuration.rules(config.rules)
  if counts is not None:
    rules = expert_budget.rules(model, config.rules, counts)
  if rules:
    surgery.adapt(model, rules, rngs=nnx.Rngs(config.seed))
  return surgery.sites(model)


def attach_head(model: nnx.Module, config: ml_collections.ConfigDict) -> None:
  """Puts the config's head on the model, if it says of one.

  Raises:
    ValueError: the model takes none, or not this one.
  """
  if "head" in config:
    factory = configuration.head(config.head)
    try:
      heads.attach(model, factory, rngs=nnx.Rngs(config.seed))
    except ValueError as error:
      raise ValueError(f"config.head: {error}") from None


def restore(
  config: ml_collections.ConfigDict, workdir: storage.Path
) -> Adapted:
  """The base and the newest adapters of a run, as `eval.py` scores them.

  What can be missed of the run is missed before the base is loaded.

  Raises:
    ValueError: the base cannot be had, the run has no good checkpoint or
      allocation yet, or they do not fit each other.
  """
  training, counts = stages(config), allocated(workdir)
  if "allocation" in config and counts is None:
    raise ValueError(
      f"The run in {workdir} has no allocation.json, which says how many"
      " experts each layer has. Train it, or put a copy of the file back."
    )
  first = training[0]
  if first.steps and not stages_lib.saved(workdir, training, first):
    raise ValueError(
      f"The run in {workdir} has no checkpoint yet. Train it, or wait for its"
      f" step {config.training.checkpoint_every}."
    )
  base = load(config)
  adapt(base.model, config, counts)
  stage, step = stages_lib.restore(
    base.model, workdir, training, base=base.fingerprint
  )
  base.model.eval()
  return Adapted(base, stage.number, step, len(training))
