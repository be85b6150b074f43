# SPDX-License-Identifier: Apache-2.0
"""Spoken commands to a home and what they mean.

    command: turn on the lights in the hotel
    HassTurnOn(area=hotel, domain=light)

The utterances follow templates that native speakers wrote for Home Assistant.
The splits share no template, so a test utterance is worded in a way that
training never saw.
"""

import collections
import dataclasses
import functools
import random
from typing import Any

from sira_jax.data import examples, languages, nouns, templates

SAMPLES = 4
"""Utterances drawn from each template, if it allows so many."""

_ATTEMPTS = 4 * SAMPLES


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of a language's templates.

  Attributes:
    templates: how many there are, each text counted once per intent.
    rows: examples in each split.
    repeated: utterances that several templates gave with the same meaning.
    ambiguous: utterances left out for another template gave them with another
      meaning before.
    leaked: utterances left out of validation or test for they occur in an
      earlier split.
    failed: templates that could not be sampled, with the reason.
  """

  templates: int
  rows: dict[str, int]
  repeated: int
  ambiguous: int
  leaked: int
  failed: tuple[tuple[str, str], ...]


def rows(language: str) -> examples.Rows:
  """The examples of a language by split, in random order.

  Raises:
    ValueError: if the language is unknown.
  """
  return _sample(language)[0]


def names(language: str) -> examples.Rows:
  """`rows`, whose targets are the intents' names alone: labels of the commands.

  Raises:
    ValueError: if the language is unknown.
  """
  return {
    split: tuple(
      examples.Example(row.inputs, row.targets.partition("(")[0])
      for row in found
    )
    for split, found in rows(language).items()
  }


def report(language: str) -> Report:
  """What became of a language's templates.

  Raises:
    ValueError: if the language is unknown.
  """
  return _sample(language)[1]


def target(intent: str, slots: dict[str, Any]) -> str:
  """The meaning in writing: `Intent(slot=value, ...)`, slots by name."""
  values = ", ".join(f"{slot}={slots[slot]}" for slot in sorted(slots))
  return f"{intent}({values})"


@functools.cache
def _sample(language: str) -> tuple[examples.Rows, Report]:
  code = languages.get(language).intents
  speaker = templates.Speaker(code, nouns.nouns(language))
  drawn = {split: [] for split in examples.SPLITS}
  failed = []
  count = 0
  for template in speaker.templates():
    count += 1
    try:
      drawn[examples.split_of(template.text)] += _utterances(
        speaker, template, language
      )
    # Whatever hassil may raise is kept and shown by the report.
    except Exception as error:
      failed.append((template.text, f"{type(error).__name__}: {error}"))
  kept, dropped = _separate(drawn)
  result = {split: examples.shuffled(kept[split]) for split in kept}
  return result, Report(
    templates=count,
    rows={split: len(result[split]) for split in result},
    failed=tuple(failed),
    **dropped,
  )


def _utterances(
  speaker: templates.Speaker, template: templates.Template, language: str
) -> list[examples.Example]:
  """Up to `SAMPLES` different utterances with their meanings."""
  generator = random.Random(f"{language}\n{template.intent}\n{template.text}")
  found = {}
  for _ in range(_ATTEMPTS):
    text, slots = speaker.say(template, generator)
    found.setdefault(f"command: {text}\n", target(template.intent, slots))
    if len(found) == SAMPLES:
      break
  return [examples.Example(*item) for item in found.items()]


def _separate(
  drawn: dict[str, list[examples.Example]],
) -> tuple[dict[str, list[examples.Example]], dict[str, int]]:
  """Keeps each utterance once, in the first split that has it."""
  kept = {split: [] for split in examples.SPLITS}
  dropped = collections.Counter(repeated=0, ambiguous=0, leaked=0)
  owner = {}
  for split in examples.SPLITS:
    for example in drawn[split]:
      # Case tells no two commands apart.
      key = example.inputs.casefold()
      if key not in owner:
        owner[key] = (split, example.targets)
        kept[split].append(example)
      elif owner[key][0] != split:
        dropped["leaked"] += 1
      elif owner[key][1] == example.targets:
        dropped["repeated"] += 1
      else:
        dropped["ambiguous"] += 1
  return kept, dict(dropped)
