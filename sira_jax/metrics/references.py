# SPDX-License-Identifier: Apache-2.0
"""Several right answers of one example as one text.

A target is one text everywhere: in a row, a cache, predictions.jsonl. Where an
evaluation set has more than one right answer, they are joined by ASCII's unit
separator, which no text of ours has, and metrics take the best of them.
"""

from collections.abc import Sequence

SEPARATOR = "\x1f"


def join(answers: Sequence[str]) -> str:
  """Each answer once, as one text; `of` is the inverse.

  Raises:
    ValueError: if there is none, or one contains the separator.
  """
  distinct = list(dict.fromkeys(answers))
  if not distinct or any(SEPARATOR in answer for answer in distinct):
    raise ValueError(
      f"Expected an answer at least, and none with {SEPARATOR!r}, which is to"
      f" separate them; got {distinct!r:.200}."
    )
  return SEPARATOR.join(distinct)


def of(target: str) -> list[str]:
  """The answers of a target, any of which is right."""
  return target.split(SEPARATOR)


def check(targets: Sequence[str], predictions: Sequence[str]) -> None:
  """Checks that there is a prediction for each target.

  Raises:
    ValueError: if there are no targets, or not one prediction for each.
  """
  if not len(targets) or len(targets) != len(predictions):
    raise ValueError(
      "Expected at least one target and a prediction for each, got"
      f" {len(targets)} targets and {len(predictions)} predictions."
    )


def check_single(targets: Sequence[str], predictions: Sequence[str]) -> None:
  """As `check`, and that each target is one answer.

  Raises:
    ValueError: if there are no targets, not one prediction for each, or a
      target is of several answers, which the metric cannot take.
  """
  check(targets, predictions)
  for target in targets:
    if SEPARATOR in target:
      raise ValueError(
        "Expected targets of one answer for this metric, got one of"
        f" {len(of(target))}: {of(target)!r:.200}. exact_match, accuracy,"
        " token_f1, squad, bleu, chrf and rouge take several."
      )
