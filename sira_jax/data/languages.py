# SPDX-License-Identifier: Apache-2.0
"""The languages of the built-in tasks.

A language is here if `home-assistant-intents` has more than a hundred sentence
templates in it and `nouns` has its household words. Of the languages whose
nouns the `emoji` package has, Japanese, Turkish, Persian and Indonesian are
not: 19 to 67 templates are too few to be split by template.
"""

from typing import NamedTuple


class Language(NamedTuple):
  """A language's English name and its codes in the packages we read."""

  name: str
  intents: str
  locale: str


LANGUAGES = {
  "ar": Language("Arabic", "ar", "ar"),
  "cs": Language("Czech", "cs", "cs"),
  "da": Language("Danish", "da", "da"),
  "de": Language("German", "de", "de"),
  "el": Language("Greek", "el", "el"),
  "en": Language("English", "en", "en"),
  "es": Language("Spanish", "es", "es"),
  "fi": Language("Finnish", "fi", "fi"),
  "fr": Language("French", "fr", "fr"),
  "it": Language("Italian", "it", "it"),
  "ko": Language("Korean", "ko", "ko"),
  "nb": Language("Norwegian", "nb", "nb"),
  "nl": Language("Dutch", "nl", "nl"),
  "pl": Language("Polish", "pl", "pl"),
  # The nouns and dates of "pt" are Brazilian too.
  "pt": Language("Portuguese", "pt-BR", "pt"),
  "ru": Language("Russian", "ru", "ru"),
  "sv": Language("Swedish", "sv", "sv"),
  "uk": Language("Ukrainian", "uk", "uk"),
  "zh": Language("Chinese", "zh-CN", "zh_Hans"),
}


def get(code: str) -> Language:
  """The language with this code.

  Raises:
    ValueError: if there is none.
  """
  if code not in LANGUAGES:
    known = ", ".join(LANGUAGES)
    raise ValueError(f"Unknown language {code!r}. Available are: {known}.")
  return LANGUAGES[code]
