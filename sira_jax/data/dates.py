# SPDX-License-Identifier: Apache-2.0
"""Dates as people write them and as ISO 8601 does.

    date: Freitag, 3. März 2028
    2028-03-03

The wording is Unicode's, through Babel. The splits share no date, in any
language: what is tested was not seen in another language either.
"""

import datetime
import functools
import random

from babel import dates as babel

from sira_jax.data import examples, languages

SAMPLES = 2000
"""Dates drawn in each language, each written in one way."""

_FIRST = datetime.date(1950, 1, 1).toordinal()
_LAST = datetime.date(2050, 12, 31).toordinal()

# The short format is left out: two digits do not tell the century.
_FORMATS = ("full", "long", "medium")
_SKELETONS = ("yMMMEd", "yMMMd")


@functools.cache
def rows(language: str) -> examples.Rows:
  """The examples of a language by split, in random order.

  Raises:
    ValueError: if the language is unknown.
  """
  locale = languages.get(language).locale
  generator = random.Random(f"dates\n{language}")
  found = {split: [] for split in examples.SPLITS}
  for ordinal in generator.sample(range(_FIRST, _LAST + 1), SAMPLES):
    date = datetime.date.fromordinal(ordinal)
    style = generator.choice(_FORMATS + _SKELETONS)
    text = write(date, style=style, locale=locale)
    example = examples.Example(f"date: {text}\n", date.isoformat())
    found[examples.split_of(example.targets)].append(example)
  return {split: examples.shuffled(found[split]) for split in found}


def write(date: datetime.date, *, style: str, locale: str) -> str:
  """The date in words: `style` is a CLDR format's name or a skeleton."""
  if style in _FORMATS:
    text = babel.format_date(date, style, locale=locale)
  else:
    text = babel.format_skeleton(style, date, locale=locale)
  # Some locales put no-break spaces, which speakers do not type.
  return " ".join(text.split())
