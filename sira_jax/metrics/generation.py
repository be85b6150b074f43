# SPDX-License-Identifier: Apache-2.0
"""Metrics of longer texts, such as translations and summaries, in percent."""

from collections.abc import Sequence

from sira_jax.metrics import libraries, references


def bleu(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus BLEU of sacrebleu, with its defaults: 13a tokens, exp smoothing.

  Post 2018. 13a splits at spaces and punctuation: do not take it for languages
  that write without spaces, such as Chinese, Japanese or Thai; `chrf` is for
  all. A target's several references count together, as BLEU has it.

  Raises:
    ValueError: if there are no targets, or not one prediction for each.
    ModuleNotFoundError: if sacrebleu is not installed.
  """
  streams = _streams(targets, predictions)
  found = libraries.load("sacrebleu").corpus_bleu(list(predictions), streams)
  return {"bleu": float(found.score)}


def chrf(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus chrF2 of sacrebleu, with its defaults: 6-grams of characters.

  Popovic 2015. Of a target's several references, the best counts.

  Raises:
    ValueError: as `bleu`.
    ModuleNotFoundError: if sacrebleu is not installed.
  """
  streams = _streams(targets, predictions)
  found = libraries.load("sacrebleu").corpus_chrf(list(predictions), streams)
  return {"chrf": float(found.score)}


def _streams(targets, predictions):
  """The first references of all targets, the second ...; None where there is
  none, as sacrebleu wants it."""
  references.check(targets, predictions)
  answers = [references.of(target) for target in targets]
  return [
    [own[i] if i < len(own) else None for own in answers]
    for i in range(max(map(len, answers)))
  ]


def rouge(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Means of ROUGE-1, ROUGE-2 and ROUGE-L, F measures, with Porter's stemmer.

  Lin 2004, by rouge-score. Its tokens are of a to z and 0 to 9 alone: it is for
  English. ROUGE-L is of a whole text, not of its sentences. Of a target's
  several references, the best counts.

  Raises:
    ValueError: as `bleu`.
    ModuleNotFoundError: if rouge-score is not installed.
  """
  references.check(targets, predictions)
  kinds = ["rouge1", "rouge2", "rougeL"]
  library = libraries.load("rouge_score.rouge_scorer")
  scorer = library.RougeScorer(kinds, use_stemmer=True)
  scores = [
    scorer.score_multi(references.of(target), prediction)
    for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {
    kind.lower(): 100.0 * sum(s[kind].fmeasure for s in scores) / len(scores)
    for kind in kinds
  }
