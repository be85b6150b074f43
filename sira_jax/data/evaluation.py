# SPDX-License-Identifier: Apache-2.0
"""Fixed sets of examples to decode, and the scores of what was decoded."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from sira_jax import texts
from sira_jax.data import examples as examples_lib
from sira_jax.data import mixtures


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
  """Examples of one task in one language.

  Attributes:
    task: its name.
    language: its code.
    zero_shot: True if no row in this language was trained on.
    inputs: token ids to decode from: 0, as first in training, then a prompt's;
      for an encoder-decoder, the prompt's and its end.
    targets: the texts to be decoded.
    prompts: the texts of the inputs.
    seen: examples left out since some training language has the same prompt.
    metric_fns: the task's.
  """

  task: str
  language: str
  zero_shot: bool
  inputs: tuple[list[int], ...]
  targets: tuple[str, ...]
  prompts: tuple[str, ...]
  seen: int
  metric_fns: tuple[Callable[..., dict[str, Any]], ...]


def evaluation(
  mixture: mixtures.Mixture,
  *,
  examples: int,
  split: str = "test",
  seed: int = 0,
  encoder: bool = False,
) -> list[EvaluationSet]:
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
  trained = {
    row.inputs
    for entry in mixture.train
    for row in mixture.rows(entry, split="train")
  }
  sets = []
  for entry in mixture.evaluation:
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
) -> list[EvaluationSet]:
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


def score(
  evaluation_set: EvaluationSet, predictions: Sequence[str]
) -> dict[str, float]:
  """The task's metrics, in percent.

  Raises:
    ValueError: if there is not one prediction for each target.
  """
  scores = {}
  for metric_fn in evaluation_set.metric_fns:
    scores |= metric_fn(evaluation_set.targets, list(predictions))
  return scores


def _set(mixture, entry, rows, *, encoder, seen=0):
  prompts, targets = zip(*rows, strict=True)
  vocabulary = mixture.vocabulary
  return EvaluationSet(
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
