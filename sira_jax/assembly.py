# SPDX-License-Identifier: Apache-2.0
"""Everything that a config names, put together; it knows every room."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re

from flax import nnx
import jax
import ml_collections

from sira_jax import configuration, evaluation
from sira_jax.adapters import surgery
from sira_jax.data import evaluation as evaluation_data
from sira_jax.data import lengths, mixtures, pipeline, vocabularies
from sira_jax.formats import bases
from sira_jax.training import optimizers


@dataclasses.dataclass(frozen=True)
class Assembly:
  """What a run works with.

  Attributes:
    base: the frozen model (adapted by now), its tokenizer and hash.
    sites: the adapted layers.
    mixture: of training tasks.
    sets: what is decoded and scored.
    data: fingerprint of the data and how it is batched.
  """

  base: bases.Base
  sites: tuple[surgery.Site, ...]
  mixture: mixtures.Mixture
  sets: Sequence[evaluation_data.EvaluationSet]
  data: str


def check(config: ml_collections.ConfigDict) -> None:
  """Checks all of a config that can be checked before anything is loaded.

  Raises:
    ValueError: a group that is missing or unknown, a field that the group's
      function does not have or does need, or a value that it refuses.
  """
  functions = {
    "base": bases.load,
    "mixture": mixtures.build,
    "batches": pipeline.batches,
    "optimizer": optimizers.adamw,
    "evaluation": evaluation_data.evaluation,
    "decoding": evaluation.evaluate,
  }
  groups = {*functions, "rules", "seed", "training"}
  if set(config) != groups:
    raise ValueError(
      f"The config must have the groups {sorted(groups)}; it lacks"
      f" {sorted(groups - set(config))} and has the unknown"
      f" {sorted(set(config) - groups)}."
    )
  given = {
    "batches": ("seed", "start"),
    "optimizer": ("steps",),
    "decoding": ("score", "text", "eos_id"),
  }
  for name, function in functions.items():
    configuration.check(name, function, config[name], given=given.get(name, ()))
  configuration.rules(config.rules)
  if config.seed is None:
    raise ValueError("config.seed must be a number, got none.")
  if set(config.training) != {"steps", "checkpoint_every"}:
    raise ValueError(
      "config.training must have steps and checkpoint_every, got"
      f" {sorted(config.training)}."
    )
  for group, name, least in (
    ("training", "steps", 1),
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
  optimizers.adamw(steps=config.training.steps, **config.optimizer)


def build(config: ml_collections.ConfigDict) -> Assembly:
  """Fetches, loads, adapts and reads what the config names.

  Raises:
    ValueError: what cannot be had or does not fit; see the functions of the
      config's groups.
  """
  base = bases.load(**config.base)
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
  rules = configuration.rules(config.rules)
  sites = surgery.adapt(base.model, rules, rngs=nnx.Rngs(config.seed))
  data = mixtures.fingerprint(
    mixture, seed=config.seed, **config.batches.to_dict()
  )
  return Assembly(base, sites, mixture, sets, data)


def describe(assembly: Assembly, config: ml_collections.ConfigDict) -> str:
  """What a run is, for its reader, before it starts."""
  frozen = nnx.state(assembly.base.model, nnx.Param)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(frozen))
  trained = sum(site.parameters for site in assembly.sites)
  mixture = assembly.mixture
  trained_in = list(dict.fromkeys(e.language for e in mixture.train))
  zero_shot = list(
    dict.fromkeys(e.language for e in mixture.evaluation if e.zero_shot)
  )
  decoded = sum(len(one.inputs) for one in assembly.sets)
  rows = lengths.report(mixture, length=config.batches.length)
  return "\n".join(
    [
      f"base      {assembly.base.uri}",
      f"          {parameters:,} parameters, frozen, {config.base.dtype}",
      f"adapters  {trained:,} parameters, trained:"
      f" {trained / parameters:.1%} of the base",
      *(f"          {line}" for line in _site_lines(assembly.sites)),
      f"data      trained in {', '.join(trained_in)}; zero-shot in"
      f" {', '.join(zero_shot) or 'none'}; {decoded} examples to decode",
      *(f"          {line}" for line in lengths.table(rows).splitlines()),
      f"training  {config.training.steps} steps of {config.batches.batch_size}"
      f" rows of {config.batches.length} tokens on"
      f" {jax.device_count()} {jax.devices()[0].platform} device(s)",
    ]
  )


def _site_lines(sites):
  """A line for all sites that differ in nothing but the layer's number."""
  groups = {}
  for site in sites:
    name = re.sub(r"\.\d+\.", ".*.", site.path)
    groups.setdefault((name, site.d, site.f, site.factory), []).append(site)
  for (name, d, f, factory), members in groups.items():
    mixture = ""
    if factory.router is not None:
      mixture = f"{factory.experts} experts, k {factory.router.k}, "
    total = sum(site.parameters for site in members)
    yield (
      f"{len(members):3} x {name}  {d} -> {f}  {factory.method}:"
      f" {mixture}rank {factory.rank}, {total:,} parameters"
    )


def score(
  assembly: Assembly, config: ml_collections.ConfigDict
) -> tuple[list[evaluation.Result], list[list[str]]]:
  """Decodes and scores the run's evaluation sets, with the model as it is."""
  vocabulary = assembly.mixture.vocabulary
  return evaluation.evaluate(
    assembly.base.model,
    assembly.sets,
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
