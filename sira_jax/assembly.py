# SPDX-License-Identifier: Apache-2.0
"""Everything that a config names, put together; it knows every room."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib
import re

from flax import nnx
import jax
import ml_collections
import optax

from sira_jax import (
  adapted,
  decoding,
  evaluation,
  expert_budget,
  kept_answers,
  lengths,
  run_data,
  selection,
  texts,
)
from sira_jax import plan as plans
from sira_jax.adapters import sensitivity, surgery
from sira_jax.adapters.variables import BaseParam
from sira_jax.formats import bases
from sira_jax.training import optimizers, probing, sparsifying, step


@dataclasses.dataclass(frozen=True)
class Assembly:
  """What a run works with.

  Attributes:
    base: the frozen model (adapted by now), its tokenizer and hash.
    sites: the adapted layers.
    counts: experts by layer where they were allocated; else None.
    data: what it is trained on and tested with.
    stages: of the training.
    program: waits for that of the first one's step, if it is being compiled.
  """

  base: bases.Base
  sites: tuple[surgery.Site, ...]
  counts: dict[str, int] | None
  data: run_data.Data
  stages: tuple[sparsifying.Stage, ...]
  program: Callable[[], step.Program | None] = lambda: None


def optimizer(
  config: ml_collections.ConfigDict, stage: sparsifying.Stage
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """A stage's optimizer and its learning rate schedule."""
  return optimizers.create(
    steps=stage.steps, gates=stage.gates, **config.optimizer
  )


def _check_length(config, limit):
  if config.batches.length > limit:
    raise ValueError(
      f"config.batches.length ({config.batches.length}) must be within the"
      f" model's context of {limit} tokens."
    )


def check_prompts(
  config: ml_collections.ConfigDict,
  sets: Sequence[run_data.EvaluationSet],
  limit: int,
) -> None:
  """Checks that every prompt leaves room for its answer.

  Args:
    config: of the run.
    sets: to be decoded.
    limit: the model's context in tokens.

  Raises:
    ValueError: one does not.
  """
  room = 0 if "head" in config else config.decoding.max_new_tokens
  room = max(room, *(len(ids) for one in sets for ids in one.choice_ids), 0)
  most, one, text = max(
    (
      (len(tokens), one, text)
      for one in sets
      for tokens, text in zip(one.inputs, one.prompts, strict=True)
    ),
    key=lambda found: found[0],
  )
  if most + room > limit:
    raise ValueError(
      f"config.decoding.max_new_tokens ({room}) must leave room for the longest"
      f" prompt, of {most} tokens, in the model's context of {limit} tokens."
      f" It is of {one.task} in {one.language} and begins with {text[:60]!r}."
    )


def has_encoder(model: nnx.Module, config: ml_collections.ConfigDict) -> bool:
  """Whether it is an encoder-decoder, and the config knows it.

  Raises:
    ValueError: it does not.
  """
  encoder = adapted.has_encoder(model)
  _check_head(model, config)
  if encoder != (config.batches.targets_length is not None):
    kind = "an encoder-decoder" if encoder else "a decoder"
    if "head" in config:
      kind = "an encoder"
    raise ValueError(
      f"config.base.uri is {kind},"
      " but config.batches.targets_length is"
      f" {config.batches.targets_length}. It is the tokens of a target beside"
      " an encoder, whose inputs have config.batches.length tokens, or the"
      " texts of a row of an encoder with a head; for a decoder alone, it is"
      " none."
    )
  return encoder


def _check_head(model, config):
  """That there is a head where the model writes nothing, and no room for more.

  Of texts, a row of an encoder has one, but where it is packed.
  """
  takes = hasattr(model, "pool_by")
  if takes != ("head" in config):
    raise ValueError(
      "config.base.uri is an encoder, which labels texts and writes none: say"
      ' of its head, config.head = dict(labels=("no", "yes"), pooling="mean").'
      if takes
      else "config.head is for an encoder such as BERT, and config.base.uri"
      f" is a {type(model).__name__}, which writes texts: drop the group."
    )
  batches = config.batches
  if takes and not batches.pack and batches.targets_length not in (1, None):
    raise ValueError(
      f"config.batches.targets_length is {batches.targets_length}, the texts of"
      " a row, of which there is one unless config.batches.pack is true."
    )


def _counts(model, data, config, workdir):
  """Experts by layer: of the run in `workdir`, or decided now."""
  counts = adapted.allocated(workdir)
  if counts is not None:
    return counts
  costs = expert_budget.costs(model, config.rules)
  print("Measuring the sensitivity of each layer ...", flush=True)
  scores = {
    entry.name: sensitivity.sensitivity(
      model,
      probing.per_example_loss,
      itertools.islice(data.samples(entry), config.allocation.samples),
      sites="|".join(map(re.escape, costs)),
    )
    for entry in data.train
  }
  return expert_budget.decide(scores, costs=costs, **config.allocation)


def prepare(
  config: ml_collections.ConfigDict,
) -> Callable[..., run_data.Data]:
  """The config's data, but for the base that is to read them.

  TensorFlow is imported where there is no cache, and only there.

  Raises:
    ValueError: rows that cannot be used, or the cache that cannot.
  """
  settings = config.to_dict()
  if adapted.cached(config):
    # Neither is asked for the other's packages.
    from sira_jax.cached import reader

    return reader.prepare(settings)
  from sira_jax.data import streaming

  return streaming.prepare(settings)


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Assembly:
  """Fetches, loads, adapts and reads what the config names.

  Where experts are to be allocated and `workdir` has no allocation yet, it is
  computed here.

  Raises:
    ValueError: what cannot be had or does not fit; see the functions of the
      config's groups.
  """
  # Before the weights, which take longer, for a row may be bad.
  prepared = prepare(config)
  base = adapted.load(config)
  data = read(prepared, config, base)
  counts = None
  if "allocation" in config:
    counts = _counts(base.model, data, config, workdir)
  sites = adapted.adapt(base.model, config, counts)
  return Assembly(base, sites, counts, data, adapted.stages(config))


def read(
  prepared: Callable[..., run_data.Data],
  config: ml_collections.ConfigDict,
  base: bases.Base,
) -> run_data.Data:
  """The data that were prepared, as a base reads them.

  Args:
    prepared: by `prepare`.
    config: of the run.
    base: whose model may be without numbers.

  Raises:
    ValueError: they do not fit each other.
  """
  encoder = has_encoder(base.model, config)
  limit = base.model.max_length
  _check_length(config, limit)
  data = prepared(
    base,
    encoder=encoder,
    prefix=adapted.prefixed(config),
    memory=len(adapted.stages(config)) > 1,
  )
  tested = (*data.sets, *data.validation)
  check_prompts(config, tested, limit)
  for one in tested:
    _check_metrics(one)
  if "selection" in config:
    selection.check_metric(data.validation, config.selection.metric)
  return data


def _check_metrics(one):
  """That what its metrics need is there, before there is much to be lost."""
  try:
    run_data.score(one, one.targets)
  except ModuleNotFoundError as error:
    raise ValueError(f"The task {one.task} cannot be scored: {error}") from None


def outline(
  config: ml_collections.ConfigDict, counts: Mapping[str, int] | None = None
) -> tuple[nnx.Module, dict[str, jax.ShapeDtypeStruct]]:
  """The adapted model and a batch of the config's, without their numbers.

  Args:
    config: checked.
    counts: experts by layer, where they were allocated.

  Raises:
    ValueError: the base cannot be had, or does not fit the config.
  """

  def build():
    model = bases.shapes(**config.base)
    adapted.adapt(model, config, counts)
    return model

  model, labels = nnx.eval_shape(build), adapted.labels(config)
  has_encoder(model, config)
  _check_length(config, model.max_length)
  return model, plans.batch(
    config.batches.batch_size,
    length=config.batches.length,
    targets_length=config.batches.targets_length,
    packed=config.batches.pack,
    numbers=None if labels is None else not labels,
    prefix=adapted.prefixed(config),
  )


def describe(assembly: Assembly, config: ml_collections.ConfigDict) -> str:
  """What a run is, for its reader, before it starts."""
  weights = nnx.state(assembly.base.model, nnx.Any(nnx.Param, BaseParam))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
  trained = sum(site.parameters for site in assembly.sites)
  data = assembly.data
  trained_in = list(dict.fromkeys(e.language for e in data.train))
  zero_shot = list(
    dict.fromkeys(e.language for e in data.evaluation if e.zero_shot)
  )
  decoded = sum(len(one.inputs) for one in data.sets)
  steps = " + ".join(str(stage.steps) for stage in assembly.stages)
  return "\n".join(
    [
      f"base      {assembly.base.uri}",
      f"          {parameters:,} parameters, {config.base.dtype}",
      f"adapters  {trained:,} parameters, trained:"
      f" {trained / parameters:.1%} of the base",
      *(f"          {line}" for line in _site_lines(assembly.sites)),
      f"data      trained in {', '.join(trained_in)}; zero-shot in"
      f" {', '.join(zero_shot) or 'none'}; {decoded} examples to decode",
      *(f"          {note}" for note in data.notes),
      *(f"          {x}" for x in lengths.table(data.lengths).splitlines()),
      f"training  {steps} steps of {config.batches.batch_size} rows"
      f" of {_row_lengths(config.batches)} tokens on"
      f" {_devices(adapted.layout(config)[0])}",
    ]
  )


def _row_lengths(batches):
  *shorter, most = (*batches.get("buckets", ()), batches.length)
  return f"{', '.join(map(str, shorter))} or {most}" if shorter else str(most)


def _devices(mesh):
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
  kind = mesh.devices.flat[0].platform
  return f"{mesh.size} of {jax.device_count()} {kind} device(s): {axes}"


def _site_lines(sites):
  """A line for all sites that differ in the layer's number or experts alone."""
  groups = {}
  for site in sites:
    name = re.sub(r"\.\d+\.", ".*.", site.path)
    groups.setdefault((name, site.shape), []).append(site)
  for (name, shape), members in groups.items():
    total = sum(site.parameters for site in members)
    sizes = " -> ".join(map(str, shape))
    kinds = list(dict.fromkeys(site.factory.describe() for site in members))
    kind = kinds[0] if len(kinds) == 1 else f"{kinds[0]}, and {len(kinds) - 1}"
    more = " other settings" if len(kinds) > 1 else ""
    yield (
      f"{len(members):3} x {name}  {sizes}  {kind}{more}, {total:,} parameters"
    )


def score(
  assembly: Assembly,
  config: ml_collections.ConfigDict,
  *,
  sets: Sequence[run_data.EvaluationSet],
  intervals: bool = False,
  record: decoding.Record | None = None,
  kept: kept_answers.KeptAnswers | None = None,
) -> tuple[list[evaluation.Result], list[list[str]]]:
  """Answers and scores some of the run's sets, with the model as it is."""
  labels = adapted.labels(config)
  how = dict(score=run_data.score, intervals=intervals)
  how |= dict(record=record, kept=kept)
  if labels is not None:
    return evaluation.classify(
      assembly.base.model,
      sets,
      labels=labels,
      **how,
      batch_size=config.decoding.batch_size,
    )
  base = assembly.base
  return evaluation.evaluate(
    assembly.base.model,
    sets,
    **how,
    text=functools.partial(texts.decode, base.tokenizer, eos_id=base.eos_id),
    eos_id=base.eos_id,
    **config.decoding,
  )
