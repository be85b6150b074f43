# SPDX-License-Identifier: Apache-2.0
"""Fixed sets of examples to answer."""

from collections.abc import Sequence

from sira_jax import run_data, texts
from sira_jax.data import examples as examples_lib
from sira_jax.data import mixtures

MOST_CHOICES = 100
"""So many answers are ranked at most."""


def evaluation(
  mixture: mixtures.Mixture,
  *,
  examples: int,
  split: str = "test",
  rank: Sequence[str] = (),
  seed: int = 0,
  encoder: bool = False,
) -> list[run_data.EvaluationSet]:
  """At most `examples` of every entry that is evaluated.

  Which and in what order depends on their text and `seed` only, so a greater
  number adds to the end. `encoder` says for whom their inputs are. Close
  languages share some prompts; what the mixture
  trains on is left out, whichever its language. The answers to the tasks named
  in `rank` are not decoded, but the likeliest of the targets that the task is
  trained on.

  Raises:
    ValueError: if `examples` is not positive, `split` is "train" or does not
      exist, or nothing is left of an entry; if a task of `rank` is not the
      mixture's, or has too many different targets, or others to test.
  """
  if examples < 1:
    raise ValueError(f"Expected examples of at least 1, got {examples}.")
  if split not in ("validation", "test"):
    raise ValueError(
      f"Unknown split {split!r}. Available are: validation, test."
    )
  return _unseen(
    mixture,
    mixture.evaluation,
    examples=examples,
    split=split,
    rank=rank,
    seed=seed,
    encoder=encoder,
  )


def validation(
  mixture: mixtures.Mixture,
  *,
  examples: int,
  rank: Sequence[str] = (),
  seed: int = 0,
  encoder: bool = False,
) -> list[run_data.EvaluationSet]:
  """At most `examples` of the validation split of every entry trained on.

  As in `evaluation`, without what is trained on, and so ranked.

  Raises:
    ValueError: if an entry has no such split, or nothing is left of it.
  """
  entries = [entry for entry in mixture.evaluation if not entry.zero_shot]
  return _unseen(
    mixture,
    entries,
    examples=examples,
    split="validation",
    rank=rank,
    seed=seed,
    encoder=encoder,
  )


def _unseen(mixture, entries, *, examples, split, rank, seed, encoder):
  choices = _choices(mixture, rank)
  trained = {
    row.inputs
    for entry in mixture.train
    for row in mixture.rows(entry, split="train")
  }
  sets = []
  for entry in entries:
    rows = mixture.rows(entry, split=split)
    unseen = [row for row in rows if row.inputs not in trained]
    if not unseen:
      raise ValueError(
        f"All {len(rows)} examples of {entry.task} in {entry.language},"
        f" split {split!r}, are trained on in another language."
      )
    chosen = examples_lib.shuffled(unseen, seed=seed)[:examples]
    seen = len(rows) - len(unseen)
    how = dict(encoder=encoder, seen=seen, choices=choices.get(entry.task, ()))
    sets.append(_set(mixture, entry, chosen, **how))
  return sets


def _choices(mixture, rank):
  """Task -> the targets that it is trained on, in the order of texts."""
  known = list(dict.fromkeys(entry.task for entry in mixture.train))
  unknown = sorted(set(rank) - set(known))
  if unknown:
    raise ValueError(
      f"config.evaluation.rank has {', '.join(unknown)}, which is no task of"
      f" the mixture. There are: {', '.join(known)}."
    )
  found = {}
  for task in rank:
    rows = [
      mixture.rows(entry, split="train")
      for entry in mixture.train
      if entry.task == task
    ]
    found[task] = tuple(sorted({row.targets for some in rows for row in some}))
    if len(found[task]) > MOST_CHOICES:
      raise ValueError(
        f"config.evaluation.rank has {task}, which has {len(found[task])}"
        f" different targets to train on; expected at most {MOST_CHOICES}, for"
        " each is scored after each prompt. Leave it out, to decode it."
      )
  return found


def memorisation(
  mixture: mixtures.Mixture,
  *,
  examples: int,
  rank: Sequence[str] = (),
  seed: int = 0,
  encoder: bool = False,
) -> list[run_data.EvaluationSet]:
  """At most `examples` that are trained on, of every entry that is."""
  choices = _choices(mixture, rank)
  return [
    _set(
      mixture,
      entry,
      examples_lib.shuffled(rows, seed=seed)[:examples],
      encoder=encoder,
      choices=choices.get(entry.task, ()),
    )
    for entry in mixture.train
    for rows in [mixture.rows(entry, split="train")]
  ]


def _set(mixture, entry, rows, *, encoder, choices, seen=0):
  prompts, targets = zip(*rows, strict=True)
  vocabulary = mixture.vocabulary
  others = sorted(set(targets) - set(choices))
  if choices and others:
    raise ValueError(
      f"config.evaluation.rank has {entry.task}, whose answers are the"
      f" {len(choices)} targets that it is trained on. In {entry.language}"
      f" there are others to test, such as {others[0]!r:.100}: leave it out, to"
      " decode it."
    )
  return run_data.EvaluationSet(
    task=entry.task,
    language=entry.language,
    zero_shot=entry.zero_shot,
    inputs=tuple(
      texts.prompt(
        vocabulary.encode(prompt), eos_id=vocabulary.eos_id, encoder=encoder
      )
      for prompt in prompts
    ),
    targets=targets,
    prompts=prompts,
    seen=seen,
    metric_fns=mixture.known[entry.task].metric_fns,
    choices=choices,
    choice_ids=tuple(
      [*ids, vocabulary.eos_id] for ids in vocabulary.encode_targets(choices)
    ),
  )
