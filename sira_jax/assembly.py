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

from sira_jax import configuration, evaluation, expert_budget, nonfinite
from sira_jax.adapters import allocation, sensitivity, surgery
from sira_jax.adapters.variables import BaseParam
from sira_jax.data import evaluation as evaluation_data
from sira_jax.data import lengths, mixtures, pipeline, vocabularies
from sira_jax.formats import bases
from sira_jax.training import optimizers, probing, sparsifying

# What each group of a config configures, but for the optimizer, whose function
# is chosen by its kind; and the arguments that are not the config's to give.
_FUNCTIONS = {
  "base": bases.load,
  "mixture": mixtures.build,
  "batches": pipeline.batches,
  "evaluation": evaluation_data.evaluation,
  "decoding": evaluation.evaluate,
  "sparsity": sparsifying.stages,
  "allocation": expert_budget.decide,
}
_GIVEN = {
  "batches": ("seed", "start"),
  "optimizer": ("steps", "gates"),
  "decoding": ("score", "text", "eos_id"),
  "sparsity": ("steps",),
  "allocation": ("costs",),
}
_OPTIONAL = {"sparsity", "allocation"}


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


def check(config: ml_collections.ConfigDict) -> None:
  """Checks all of a config that can be checked before anything is loaded.

  Raises:
    ValueError: a group that is missing or unknown, a field that the group's
      function does not have or does need, or a value that it refuses.
  """
  _check_groups(config)
  kind = config.optimizer.get("kind")
  if kind not in optimizers.OPTIMIZERS:
    raise ValueError(
      f"config.optimizer.kind must be one of {sorted(optimizers.OPTIMIZERS)},"
      f" got {kind!r}."
    )
  functions = _FUNCTIONS | {"optimizer": optimizers.OPTIMIZERS[kind]}
  for name, function in functions.items():
    if name in config:
      fields = {k: v for k, v in config[name].items() if k != "kind"}
      given = _GIVEN.get(name, ())
      configuration.check(name, function, fields, given=given)
  rules = configuration.rules(config.rules)
  if config.seed is None:
    raise ValueError("config.seed must be a number, got none.")
  if set(config.training) != {"steps", "checkpoint_every", "nonfinite"}:
    raise ValueError(
      "config.training must have steps, checkpoint_every and nonfinite, got"
      f" {sorted(config.training)}."
    )
  if config.training.nonfinite not in nonfinite.ACTIONS:
    raise ValueError(
      f"config.training.nonfinite must be one of {list(nonfinite.ACTIONS)}, got"
      f" {config.training.nonfinite!r}."
    )
  for group, name, least in (
    ("training", "steps", 1 if rules else 0),
    ("training", "checkpoint_every", 1),
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
  for stage in _stages(config):
    if stage.steps:
      optimizer(config, stage)


def _check_groups(config):
  needed = {*_FUNCTIONS, "optimizer", "rules", "seed", "training"} - _OPTIONAL
  lacking = sorted(needed - set(config))
  unknown = sorted(set(config) - needed - _OPTIONAL)
  if lacking or unknown:
    raise ValueError(
      f"The config must have the groups {sorted(needed)}, and may have"
      f" {sorted(_OPTIONAL)}; it lacks {lacking} and has the unknown {unknown}."
    )


def _check_rules(config, rules):
  """What the rules' methods ask of the other groups."""
  if not rules and config.training.steps:
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
  if any(_by_example(factory) for factory in factories):
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
  if "allocation" in config:
    settings = config.allocation.to_dict()
    # Whatever can be refused without the model's sensitivities.
    expert_budget.check(**settings)


def _by_example(factory):
  router = getattr(factory, "router", None)
  return router is not None and router.level == "example"


def _stages(config):
  steps = config.training.steps
  if "sparsity" not in config:
    return (sparsifying.Stage(0, steps),)
  try:
    return sparsifying.stages(steps=steps, **config.sparsity)
  except ValueError as error:
    raise ValueError(f"config.sparsity: {error}") from None


def optimizer(
  config: ml_collections.ConfigDict, stage: sparsifying.Stage
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """A stage's optimizer and its learning rate schedule."""
  return optimizers.create(
    steps=stage.steps, gates=stage.gates, **config.optimizer
  )


def _counts(model, mixture, config, workdir):
  """Experts by layer: of the run in `workdir`, or decided now."""
  file = workdir / "allocation.json"
  if file.exists():
    return allocation.load(file)
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
    length=batches.length,
    too_long=batches.too_long,
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
  base = bases.load(**config.base)
  if "encoder_input_tokens" in base.model.FEATURES:
    raise ValueError(
      f"config.base.uri: {base.uri} is an encoder-decoder, and batches are made"
      " for decoders alone so far. Train it in your own code, with"
      " sira_jax.training.step and batches of its FEATURES."
    )
  limit = base.model.max_length
  if config.batches.length > limit:
    raise ValueError(
      f"config.batches.length ({config.batches.length}) must be within the"
      f" model's context of {limit} tokens."
    )
  vocabulary = vocabularies.TokenizerVocabulary(base.tokenizer, base.eos_id)
  settings = config.mixture.to_dict()
  mixture = mixtures.build(vocabulary, **settings)
  lengths.check(
    mixture, length=config.batches.length, too_long=config.batches.too_long
  )
  sets = evaluation_data.evaluation(mixture, **config.evaluation)
  prompt = max(len(prompt) for one in sets for prompt in one.inputs)
  if prompt + config.decoding.max_new_tokens > limit:
    raise ValueError(
      f"config.decoding.max_new_tokens ({config.decoding.max_new_tokens}) must"
      f" leave room for the longest prompt, of {prompt} tokens, in the model's"
      f" context of {limit} tokens."
    )
  stages = _stages(config)
  memory = ()
  if len(stages) > 1:
    memory = evaluation_data.memorisation(
      mixture, examples=config.evaluation.examples
    )
  rules, counts = configuration.rules(config.rules), None
  if "allocation" in config:
    counts = _counts(base.model, mixture, config, workdir)
    rules = expert_budget.rules(base.model, config.rules, counts)
  sites = ()
  if rules:
    sites = surgery.adapt(base.model, rules, rngs=nnx.Rngs(config.seed))
  data = mixtures.fingerprint(
    mixture, seed=config.seed, **config.batches.to_dict()
  )
  return Assembly(base, sites, counts, mixture, sets, memory, data, stages)


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
  rows = lengths.report(mixture, length=config.batches.length)
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
      *(f"          {line}" for line in lengths.table(rows).splitlines()),
      f"training  {steps} steps of {config.batches.batch_size} rows"
      f" of {config.batches.length} tokens on"
      f" {jax.device_count()} {jax.devices()[0].platform} device(s)",
    ]
  )


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
  """Decodes and scores some of the run's sets, with the model as it is."""
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
