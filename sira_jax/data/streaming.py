# SPDX-License-Identifier: Apache-2.0
"""A run's data as they are made of its mixture, text by text."""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any

from sira_jax import run_data
from sira_jax.data import (
  evaluation,
  files,
  lengths,
  mixtures,
  pipeline,
  tasks,
  vocabularies,
)
from sira_jax.data.suites import reading

FUNCTIONS = {
  "mixture": mixtures.build,
  "batches": pipeline.batches,
  "evaluation": evaluation.evaluation,
}
"""What the data's groups of a config configure."""


def prepare(config: Mapping[str, Any]) -> Callable[..., run_data.Data]:
  """The data of a config, but for the base that is to read them.

  Returns:
    (base, encoder, prefix, memory) -> the data. `encoder` says for whom the
    prompts are, `prefix` whether batches say where inputs are, `memory`
    whether some of what is trained on is scored.

  Raises:
    ValueError: as `known`.
  """
  return functools.partial(_data, known(config), config)


def known(config: Mapping[str, Any]) -> tasks.Known:
  """The tasks that there are: built in, of files, and of suites.

  Raises:
    ValueError: as `files.known` and `suites.reading.known`.
  """
  mixture = config["mixture"]
  return reading.known(
    config.get("suites", {}),
    names=mixture["tasks"],
    languages=mixture["languages"],
    zero_shot=mixture.get("zero_shot", ()),
    split=config["evaluation"].get("split", "test"),
    others=files.known(config.get("files", {})),
  )


def mixed(
  known: tasks.Known, config: Mapping[str, Any], base: Any
) -> mixtures.Mixture:
  """The config's mixture in the base's tokens, whose lengths are checked.

  Raises:
    ValueError: as `mixtures.build` and `lengths.check`.
  """
  vocabulary = vocabularies.TokenizerVocabulary(
    base.tokenizer,
    base.eos_id,
    first_id=base.first_id,
    **_targets(known, config),
  )
  mixture = mixtures.build(vocabulary, known=known, **config["mixture"])
  too_long = config["batches"].get("too_long", "error")
  lengths.check(mixture, **_lengths(config), too_long=too_long)
  return mixture


def notes(mixture: mixtures.Mixture) -> list[str]:
  """Where the rows of the mixture's tasks are from."""
  return [
    f"{task} from {note}"
    for task in dict.fromkeys(entry.task for entry in mixture.evaluation)
    for note in mixture.known[task].notes
  ]


def _data(
  known: tasks.Known,
  config: Mapping[str, Any],
  base: Any,
  *,
  encoder: bool,
  prefix: bool,
  memory: bool,
) -> run_data.Data:
  mixture, settings = mixed(known, config, base), config["batches"]
  chosen = config["evaluation"]
  how = dict(rank=chosen.get("rank", ()), encoder=encoder)
  sets = evaluation.evaluation(mixture, **chosen, encoder=encoder)
  remembered = ()
  if memory:
    remembered = evaluation.memorisation(
      mixture, examples=chosen["examples"], **how
    )
  validation = ()
  if "selection" in config:
    validation = evaluation.validation(
      mixture, examples=config["selection"]["examples"], **how
    )

  def batches(seed: int, start: int) -> Iterator[run_data.Batch]:
    return pipeline.batches(
      mixture, **settings, prefix=prefix, seed=seed, start=start
    )

  def samples(entry: run_data.Entry) -> Iterator[run_data.Batch]:
    return pipeline.batches(
      mixtures.only(mixture, entry),
      batch_size=1,
      **_lengths(config),
      too_long=settings["too_long"],
      prefix=prefix,
      seed=config["seed"],
    )

  return run_data.Data(
    train=mixture.train,
    evaluation=mixture.evaluation,
    sets=sets,
    memory=remembered,
    validation=validation,
    lengths=lengths.report(mixture, **_lengths(config)),
    notes=notes(mixture),
    fingerprint=mixtures.fingerprint(mixture, seed=config["seed"], **settings),
    batches=batches,
    samples=samples,
  )


def _lengths(config):
  names = ("length", "targets_length")
  return {name: config["batches"].get(name) for name in names}


def _targets(known, config):
  """How a vocabulary reads targets: as texts, or as a head's labels."""
  if "head" not in config:
    return {}
  labels = tuple(config["head"]["labels"])
  if labels:
    return {"labels": labels}
  mixture = config["mixture"]
  found = mixtures.targets(
    known,
    mixture["tasks"],
    mixture["languages"],
    limits=mixture.get("limits"),
  )
  return {"labels": found, "numbers": True}
