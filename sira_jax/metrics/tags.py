# SPDX-License-Identifier: Apache-2.0
"""The metric of named entities that are tagged word by word, in percent."""

from collections.abc import Sequence

from sira_jax.metrics import libraries, references


def span_f1(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Micro F1 of entities, whose place and kind must both be right.

  A text is its words' tags with spaces between, "O B-PER I-PER O", of IOB2 or
  another scheme that seqeval reads. Tags that a prediction lacks are "O", those
  it has too many are left out. CoNLL's metric, by seqeval; 0 without entities.

  Raises:
    ValueError: if there are no targets, not one prediction for each, or a
      target is of several answers.
    ModuleNotFoundError: if seqeval is not installed.
  """
  references.check_single(targets, predictions)
  wanted = [target.split() for target in targets]
  found = [
    (prediction.split() + ["O"] * len(tags))[: len(tags)]
    for tags, prediction in zip(wanted, predictions, strict=True)
  ]
  # What is no tag is no entity; seqeval would warn, and guess a kind.
  known = {tag for tags in wanted for tag in tags}
  kinds = {tag[2:] for tag in known if tag[1:2] == "-"}
  found = [
    [tag if tag in known or tag[2:] in kinds else "O" for tag in tags]
    for tags in found
  ]
  library = libraries.load("seqeval.metrics")
  score = library.f1_score(wanted, found, zero_division=0)
  return {"span_f1": 100.0 * float(score)}
