# SPDX-License-Identifier: Apache-2.0
"""Fixed sets of examples to decode."""

from sira_jax import run_data, texts
from sira_jax.data import examples as examples_lib
from sira_jax.data import mixtures


def evaluation(
  mixture: mixtures.Mixture,
  *,
  examples: int,
  split: str = "test",
  seed: int = 0,
  encoder: bool = False,
) -> list[run_data.EvaluationSet]:
  """At most `examples` of every entry that is evaluated.

  Which and in what order depends on their text and `seed` only, so a greater
  number adds to the end. `encoder` says for whom their inputs are. Close
  languages share some prompts; what the mixture
  trains on is left out, whichever its language.

  Raises:
    ValueError: if `examples` is not positive, `split` is "train" or does not
      exist, or nothing is left of an entry.
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
    seed=seed,
    encoder=encoder,
  )


def validation(
  mixture: mixtures.Mixture,
  *,
  examples: int,
  seed: int = 0,
  encoder: bool = False,
) -> list[run_data.EvaluationSet]:
  """At most `examples` of the validation split of every entry trained on.

  As in `evaluation`, without what is trained on.

  Raises:
    ValueError: if an entry has no such split, or nothing is left of it.
  """
  entries = [entry for entry in mixture.evaluation if not entry.zero_shot]
  return _unseen(
    mixture,
    entries,
    examples=examples,
    split="validation",
    seed=seed,
    encoder=encoder,
  )


def _unseen(mixture, entries, *, examples, split, seed, encoder):
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
    sets.append(_set(mixture, entry, chosen, encoder=encoder, seen=seen))
  return sets


def memorisation(
  mixture: mixtures.Mixture,
  *,
  examples: int,
  seed: int = 0,
  encoder: bool = False,
) -> list[run_data.EvaluationSet]:
  """At most `examples` that are trained on, of every entry that is."""
  return [
    _set(
      mixture,
      entry,
      examples_lib.shuffled(rows, seed=seed)[:examples],
      encoder=encoder,
    )
    for entry in mixture.train
    for rows in [mixture.rows(entry, split="train")]
  ]


def _set(mixture, entry, rows, *, encoder, seen=0):
  prompts, targets = zip(*rows, strict=True)
  vocabulary = mixture.vocabulary
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
  )
