# SPDX-License-Identifier: Apache-2.0
"""The languages of the built-in tasks.

A language is here if `home-assistant-intents` has so many sentence templates
in it that each split has more than fifty rows, and `nouns` has its household
words. Too few are those of Japanese, Turkish, Persian, Indonesian, Hindi,
Hebrew, Bengali, Urdu, Icelandic, Afrikaans, Estonian and nine more; the words
are missing in Luxembourgish and Cornish. The package's variants of a language,
such as Swiss German or European Portuguese, are left out.
"""

from typing import NamedTuple


class Language(NamedTuple):
  """A language's English name and its codes in the packages we read."""

  name: str
  intents: str
  locale: str


LANGUAGES = {
  "ar": Language("Arabic", "ar", "ar"),
  "bg": Language("Bulgarian", "bg", "bg"),
  "ca": Language("Catalan", "ca", "ca"),
  "cs": Language("Czech", "cs", "cs"),
  "cy": Language("Welsh", "cy", "cy"),
  "da": Language("Danish", "da", "da"),
  "de": Language("German", "de", "de"),
  "el": Language("Greek", "el", "el"),
  "en": Language("English", "en", "en"),
  "es": Language("Spanish", "es", "es"),
  "eu": Language("Basque", "eu", "eu"),
  "fi": Language("Finnish", "fi", "fi"),
  "fr": Language("French", "fr", "fr"),
  "ga": Language("Irish", "ga", "ga"),
  "gl": Language("Galician", "gl", "gl"),
  "hr": Language("Croatian", "hr", "hr"),
  "hu": Language("Hungarian", "hu", "hu"),
  "hy": Language("Armenian", "hy", "hy"),
  "it": Language("Italian", "it", "it"),
  "ko": Language("Korean", "ko", "ko"),
  "lt": Language("Lithuanian", "lt", "lt"),
  "lv": Language("Latvian", "lv", "lv"),
  "ml": Language("Malayalam", "ml", "ml"),
  "nb": Language("Norwegian", "nb", "nb"),
  "ne": Language("Nepali", "ne", "ne"),
  "nl": Language("Dutch", "nl", "nl"),
  "pl": Language("Polish", "pl", "pl"),
  # The nouns and dates of "pt" are Brazilian too.
  "pt": Language("Portuguese", "pt-BR", "pt"),
  "ro": Language("Romanian", "ro", "ro"),
  "ru": Language("Russian", "ru", "ru"),
  "sk": Language("Slovak", "sk", "sk"),
  "sl": Language("Slovenian", "sl", "sl"),
  "sr": Language("Serbian", "sr", "sr"),
  "sv": Language("Swedish", "sv", "sv"),
  "th": Language("Thai", "th", "th"),
  "uk": Language("Ukrainian", "uk", "uk"),
  "vi": Language("Vietnamese", "vi", "vi"),
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
