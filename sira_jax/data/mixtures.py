# SPDX-License-Identifier: Apache-2.0
"""Which tasks and languages a run trains on and which it is tested on."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
from typing import Any

import seqio

from sira_jax import run_data
from sira_jax.data import examples, quiet, vocabularies
from sira_jax.data import tasks as tasks_lib


@dataclasses.dataclass(frozen=True)
class Mixture:
  """What `build` made.

  Attributes:
    provider: the seqio Mixture of the training tasks.
    vocabulary: of inputs and targets alike.
    train: the entries trained on.
    evaluation: the entries tested on: those trained on, then the zero-shot.
    known: the definitions of all tasks there are, within their limits.
  """

  provider: seqio.Mixture
  vocabulary: vocabularies.TokenizerVocabulary
  train: tuple[run_data.Entry, ...]
  evaluation: tuple[run_data.Entry, ...]
  known: tasks_lib.Known

  def rows(
    self, entry: run_data.Entry, *, split: str
  ) -> tuple[examples.Example, ...]:
    """The examples of one split of an entry; see `tasks.rows`."""
    return tasks_lib.rows(
      entry.task, entry.language, split=split, known=self.known
    )


def build(
  vocabulary: vocabularies.TokenizerVocabulary,
  *,
  tasks: Sequence[str] = ("intents", "dates"),
  languages: Sequence[str] = ("en", "de", "fr", "es"),
  zero_shot: Sequence[str] = (),
  rates: Mapping[str, float] | None = None,
  temperature: float = 1.0,
  maximum: int | None = None,
  limits: Mapping[str, int | None] | None = None,
  known: tasks_lib.Known = tasks_lib.TASKS,
) -> Mixture:
  """Mixes every task in every language of `languages`.

  An entry's rate is proportional to `min(examples, maximum) ** (1 /
  temperature)`, as in seqio. With `rates`, a task's share of all examples is
  its rate over the sum of the rates, and the former divides it by language.

  Args:
    vocabulary: the base model's.
    tasks: keys of `known`.
    languages: the codes of the languages to train on.
    zero_shot: codes of languages to test only.
    rates: task -> positive number; one for each of `tasks`.
    temperature: 1 mixes in proportion to size, more evens out.
    maximum: examples above which a larger entry counts no more; None: no cap.
    limits: task -> at most so many examples of it to train on in each language,
      those of `examples.few`; None, or no number for a task: all.
    known: the tasks there are, such as those of `files.tasks`.

  Raises:
    ValueError: if there is no task or language, one is unknown or named twice,
      a language is both trained on and zero-shot, there is nothing to train or
      to test on in one, a number is not positive, or as `limited`.
  """
  _check_names(tasks, languages, zero_shot, known)
  _check_numbers(tasks, rates, temperature, maximum)
  known = limited(known, tasks, limits)
  providers = {
    (task, language): tasks_lib.register(
      task, language, vocabulary=vocabulary, known=known
    )
    for language in (*languages, *zero_shot)
    for task in tasks
  }
  _check_distinct(providers)

  def entry(
    task: str, language: str, split: str, rate: float
  ) -> run_data.Entry:
    splits = known[task].rows(language)
    if split == "test" and not splits.get("test") and splits.get("validation"):
      split = "validation"
    rows = tasks_lib.rows(task, language, split=split, known=known)
    name = providers[task, language].name
    return run_data.Entry(
      task, language, name, language in zero_shot, len(rows), rate
    )

  trained = [key for key in providers if key[1] not in zero_shot]
  for task, language in trained:  # none would have no rate
    tasks_lib.rows(task, language, split="train", known=known)
  # seqio warns of each Task that is not cached on disk.
  with quiet.logs():
    weights = {
      key: seqio.mixing_rate_num_examples(
        providers[key], maximum=maximum, temperature=temperature
      )
      for key in trained
    }
  shares = _normalize(weights, rates)
  return Mixture(
    provider=seqio.Mixture(
      "sira_jax", [(providers[key], shares[key]) for key in trained]
    ),
    vocabulary=vocabulary,
    train=tuple(entry(*key, "train", shares[key]) for key in trained),
    evaluation=tuple(
      entry(*key, "test", shares.get(key, 0.0)) for key in providers
    ),
    known=known,
  )


def limited(
  known: tasks_lib.Known,
  tasks: Sequence[str],
  limits: Mapping[str, int | None] | None,
) -> tasks_lib.Known:
  """The tasks that there are, some with fewer examples to train on.

  A limit of None is none, also of a task that the mixture does not have.

  Raises:
    ValueError: a limit of another task, or that is no whole number above 0.
  """
  given = {k: v for k, v in (limits or {}).items() if v is not None}
  others = sorted(set(given) - set(tasks))
  if others:
    raise ValueError(
      f"limits has {', '.join(others)}, which is no task of the mixture. There"
      f" are: {', '.join(tasks)}."
    )
  for task, limit in given.items():
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
      raise ValueError(
        f"Expected the limit of {task} to be a whole number of at least 1, or"
        f" None for all of its examples, got {limit!r}."
      )
  fewer = {k: tasks_lib.limited(known[k], given[k]) for k in given}
  return {**known, **fewer} if fewer else known


def targets(
  known: tasks_lib.Known,
  tasks: Sequence[str],
  languages: Sequence[str],
  *,
  limits: Mapping[str, int | None] | None = None,
) -> tuple[str, ...]:
  """Each target that there is to train on, once, in the order of texts.

  Raises:
    ValueError: a task or language that there is not, or without such rows; or
      as `limited`.
  """
  for task in tasks:
    for language in languages:
      tasks_lib.get(task, language, known=known)
  known = limited(known, tasks, limits)
  found = {
    row.targets
    for task in tasks
    for language in languages
    for row in tasks_lib.rows(task, language, split="train", known=known)
  }
  return tuple(sorted(found))


def only(mixture: Mixture, entry: run_data.Entry) -> Mixture:
  """The part of a mixture that trains on one of its entries."""
  (task,) = (t for t in mixture.provider.tasks if t.name == entry.name)
  return dataclasses.replace(
    mixture,
    provider=seqio.Mixture(f"{entry.name}_alone", [(task, 1.0)]),
    train=(entry,),
  )


def fingerprint(mixture: Mixture, **settings: Any) -> str:
  """Hash of the entries, their rates and rows, the vocabulary and `settings`.

  The same in every process. Resuming where it differs would continue with
  other data: give the arguments of `pipeline.batches` as `settings`.

  Raises:
    TypeError: if a setting is not JSON.
  """
  rows = hashlib.sha256()
  for entry in mixture.evaluation:
    splits = mixture.known[entry.task].rows(entry.language)
    for split in examples.SPLITS:
      rows.update(json.dumps(splits.get(split, ())).encode())
  content = {
    "train": [dataclasses.astuple(entry) for entry in mixture.train],
    "evaluation": [dataclasses.astuple(entry) for entry in mixture.evaluation],
    "vocabulary": mixture.vocabulary.fingerprint,
    "rows": rows.hexdigest(),
    "settings": settings,
  }
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _normalize(
  weights: Mapping[tuple[str, str], float], rates: Mapping[str, float] | None
) -> dict[tuple[str, str], float]:
  """Makes the weights sum to 1, by task to the tasks' shares if given."""
  if rates is None:
    whole = sum(weights.values())
    return {key: weight / whole for key, weight in weights.items()}
  by_task = dict.fromkeys(rates, 0.0)
  for (task, _), weight in weights.items():
    by_task[task] += weight
  whole = sum(rates.values())
  return {
    (task, language): rates[task] / whole * weight / by_task[task]
    for (task, language), weight in weights.items()
  }


def _check_distinct(providers: Mapping[tuple[str, str], seqio.Task]) -> None:
  names = [provider.name for provider in providers.values()]
  if len(set(names)) != len(names):
    raise ValueError(
      "Expected each task and language to make a name of its own, got"
      f" {sorted(names)}. Rename a task."
    )


def _check_names(
  tasks: Sequence[str],
  languages: Sequence[str],
  zero_shot: Sequence[str],
  known: tasks_lib.Known,
) -> None:
  for kind, names in (
    ("tasks", tasks),
    ("languages", languages),
    ("zero_shot", zero_shot),
  ):
    if isinstance(names, str):
      raise ValueError(f"Expected {kind} to be a sequence, got {names!r}.")
    if len(set(names)) != len(names):
      raise ValueError(f"Expected each of {kind} once, got {tuple(names)}.")
  if not tasks:
    names = ", ".join(known)
    raise ValueError(f"Expected a task at least, got none. There are: {names}.")
  if not languages:
    raise ValueError("Expected a language to train on at least, got none.")
  both = sorted(set(languages) & set(zero_shot))
  if both:
    raise ValueError(
      f"Expected zero-shot languages not to be trained on, got {both} in both."
      " Take them out of languages or of zero_shot."
    )
  for task in tasks:
    for language in (*languages, *zero_shot):
      tasks_lib.get(task, language, known=known)


def _check_numbers(
  tasks: Sequence[str],
  rates: Mapping[str, float] | None,
  temperature: float,
  maximum: int | None,
) -> None:
  if rates is not None and set(rates) != set(tasks):
    raise ValueError(
      f"Expected a rate for each of the tasks {tuple(tasks)}, got rates for"
      f" {tuple(rates)}."
    )
  for name, value in (
    *(rates or {}).items(),
    ("temperature", temperature),
    ("maximum", 1 if maximum is None else maximum),
  ):
    if not value > 0:
      raise ValueError(f"Expected a positive {name}, got {value}.")
