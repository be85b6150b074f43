# SPDX-License-Identifier: Apache-2.0
"""Everything that a config names, put together; it knows every room."""

from collections.abc import Sequence
import dataclasses
import itertools
import json
import pathlib
import re

from flax import nnx
import jax
import ml_collections
import optax

from sira_jax import (
  adapted,
  distributed,
  evaluation,
  expert_budget,
  sharding,
)
from sira_jax import plan as plans
from sira_jax.adapters import sensitivity, surgery
from sira_jax.adapters.variables import BaseParam
from sira_jax.data import evaluation as evaluation_data
from sira_jax.data import files, lengths, mixtures, pipeline, vocabularies
from sira_jax.data.suites import reading as suites
from sira_jax.formats import bases
from sira_jax.training import optimizers, probing, sparsifying


@dataclasses.dataclass(frozen=True)
class Assembly:
  """What a run works with.

  Attributes:
    base: the frozen model (adapted by now), its tokenizer and hash.
    sites: the adapted layers.
    counts: experts by layer where they were allocated; else None.
    mixture: of training tasks.
    sets: what is decoded and scored.
    memory: examples trained on, to be scored after each of several stages.
    data: fingerprint of the data and how it is batched.
    stages: of the training.
  """

  base: bases.Base
  sites: tuple[surgery.Site, ...]
  counts: dict[str, int] | None
  mixture: mixtures.Mixture
  sets: Sequence[evaluation_data.EvaluationSet]
  memory: Sequence[evaluation_data.EvaluationSet]
  data: str
  stages: tuple[sparsifying.Stage, ...]


def optimizer(
  config: ml_collections.ConfigDict, stage: sparsifying.Stage
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """A stage's optimizer and its learning rate schedule."""
  return optimizers.create(
    steps=stage.steps, gates=stage.gates, **config.optimizer
  )


def _lengths(config):
  return dict(
    length=config.batches.length, targets_length=config.batches.targets_length
  )


def _check_length(config, limit):
  if config.batches.length > limit:
    raise ValueError(
      f"config.batches.length ({config.batches.length}) must be within the"
      f" model's context of {limit} tokens."
    )


def _check_prompts(config, sets, limit):
  room = 0 if "head" in config else config.decoding.max_new_tokens
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


def _has_encoder(model, config) -> bool:
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


def _targets(config, known):
  """How a vocabulary reads targets: as texts, or as a head's labels."""
  labels = adapted.labels(config)
  if labels is None:
    return {}
  if labels:
    return {"labels": labels}
  mixture = config.mixture
  found = mixtures.targets(known, mixture.tasks, mixture.languages)
  return {"labels": found, "numbers": True}


def _counts(model, mixture, config, workdir):
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
      _samples(mixtures.only(mixture, entry), config),
      sites="|".join(map(re.escape, costs)),
    )
    for entry in mixture.train
  }
  return expert_budget.decide(scores, costs=costs, **config.allocation)


def _samples(mixture, config):
  """Training examples in batches of one each, so that none is left out."""
  batches = config.batches
  found = pipeline.batches(
    mixture,
    batch_size=1,
    **_lengths(config),
    too_long=batches.too_long,
    prefix=adapted.prefixed(config),
    seed=config.seed,
  )
  return itertools.islice(found, config.allocation.samples)


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Assembly:
  """Fetches, loads, adapts and reads what the config names.

  Where experts are to be allocated and `workdir` has no allocation yet, it is
  computed here.

  Raises:
    ValueError: what cannot be had or does not fit; see the functions of the
      config's groups.
  """
  # Before the weights, which take longer, for a row may be bad.
  known = suites.known(
    config.get("suites", {}),
    names=config.mixture.tasks,
    languages=config.mixture.languages,
    zero_shot=config.mixture.get("zero_shot", ()),
    split=config.evaluation.get("split", "test"),
    others=files.known(config.get("files", {})),
  )
  base = adapted.load(config)
  encoder = _has_encoder(base.model, config)
  limit = base.model.max_length
  _check_length(config, limit)
  vocabulary = vocabularies.TokenizerVocabulary(
    base.tokenizer,
    base.eos_id,
    first_id=base.first_id,
    **_targets(config, known),
  )
  settings = config.mixture.to_dict()
  mixture = mixtures.build(vocabulary, known=known, **settings)
  lengths.check(mixture, **_lengths(config), too_long=config.batches.too_long)
  sets = evaluation_data.evaluation(
    mixture, **config.evaluation, encoder=encoder
  )
  _check_prompts(config, sets, limit)
  training = adapted.stages(config)
  memory = ()
  if len(training) > 1:
    memory = evaluation_data.memorisation(
      mixture, examples=config.evaluation.examples, encoder=encoder
    )
  counts = None
  if "allocation" in config:
    counts = _counts(base.model, mixture, config, workdir)
  sites = adapted.adapt(base.model, config, counts)
  data = mixtures.fingerprint(
    mixture, seed=config.seed, **config.batches.to_dict()
  )
  return Assembly(base, sites, counts, mixture, sets, memory, data, training)


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
  stage, labels = adapted.stages(config)[0], adapted.labels(config)
  if "allocation" in config or not stage.steps:
    raise ValueError(
      "There is no step to plan: experts are allocated from the weights, which"
      " a plan does not load, or config.training.steps is 0."
    )

  def build():
    model = bases.shapes(**config.base)
    adapted.adapt(model, config, None)
    return model

  batches, model = config.batches, nnx.eval_shape(build)
  _has_encoder(model, config)
  _check_length(config, model.max_length)
  return plans.plan(
    model,
    optimizer(config, stage)[0],
    batch=plans.batch(
      batches.batch_size,
      **_lengths(config),
      packed=batches.pack,
      numbers=None if labels is None else not labels,
      prefix=adapted.prefixed(config),
    ),
    mesh=mesh,
    rules=rules,
    steps=stage.steps,
    microbatches=config.training.microbatches,
  )


def describe(assembly: Assembly, config: ml_collections.ConfigDict) -> str:
  """What a run is, for its reader, before it starts."""
  weights = nnx.state(assembly.base.model, nnx.Any(nnx.Param, BaseParam))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
  trained = sum(site.parameters for site in assembly.sites)
  mixture = assembly.mixture
  trained_in = list(dict.fromkeys(e.language for e in mixture.train))
  zero_shot = list(
    dict.fromkeys(e.language for e in mixture.evaluation if e.zero_shot)
  )
  decoded = sum(len(one.inputs) for one in assembly.sets)
  rows = lengths.report(mixture, **_lengths(config))
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
      *(f"          {note}" for note in _notes(mixture)),
      *(f"          {line}" for line in lengths.table(rows).splitlines()),
      f"training  {steps} steps of {config.batches.batch_size} rows"
      f" of {config.batches.length} tokens on"
      f" {_devices(adapted.layout(config)[0])}",
    ]
  )


def _notes(mixture):
  for task in dict.fromkeys(entry.task for entry in mixture.evaluation):
    for note in mixture.known[task].notes:
      yield f"{task} from {note}"


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
  sets: Sequence[evaluation_data.EvaluationSet],
) -> tuple[list[evaluation.Result], list[list[str]]]:
  """Answers and scores some of the run's sets, with the model as it is."""
  labels = adapted.labels(config)
  if labels is not None:
    return evaluation.classify(
      assembly.base.model,
      sets,
      score=evaluation_data.score,
      labels=labels,
      batch_size=config.decoding.batch_size,
    )
  vocabulary = assembly.mixture.vocabulary
  return evaluation.evaluate(
    assembly.base.model,
    sets,
    score=evaluation_data.score,
    text=vocabulary.decode,
    eos_id=vocabulary.eos_id,
    **config.decoding,
  )


def save_predictions(
  file: pathlib.Path,
  sets: Sequence[evaluation_data.EvaluationSet],
  predictions: Sequence[Sequence[str]],
) -> None:
  """JSONL: task, language, prompt, target and prediction of every example."""
  if not distributed.first():
    return
  with file.open("w") as stream:
    for one, answers in zip(sets, predictions, strict=True):
      for prompt, target, answer in zip(
        one.prompts, one.targets, answers, strict=True
      ):
        row = dict(
          task=one.task,
          language=one.language,
          prompt=prompt,
          target=target,
          prediction=answer,
        )
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
