# SPDX-License-Identifier: Apache-2.0
"""Names of territories and languages, as they are called elsewhere.

    name: Németország
    Germany

The names are Unicode's, through Babel, from a language to English; of English
itself, they are to be repeated. The splits share no territory and no language,
in any language: what is tested was not seen in another language either.
"""

import functools

import babel

from sira_jax.data import examples, languages


@functools.cache
def rows(language: str) -> examples.Rows:
  """The examples of a language by split, in random order.

  A name that is of several is left out, for it has several answers.

  Raises:
    ValueError: if the language is unknown.
  """
  own, english = (
    _names(languages.get(code).locale) for code in (language, "en")
  )
  answers = {}
  for key in english:
    if key in own:
      answers.setdefault(own[key].casefold(), []).append(key)
  found = {split: [] for split in examples.SPLITS}
  for keys in answers.values():
    if len(keys) > 1:
      continue
    example = examples.Example(f"name: {own[keys[0]]}\n", english[keys[0]])
    found[examples.split_of(example.targets)].append(example)
  return {split: examples.shuffled(found[split]) for split in found}


def _names(locale: str) -> dict[tuple[str, str], str]:
  """("territory", "DE") -> "Germany", in the locale's own words."""
  data = babel.Locale.parse(locale)
  kinds = {"territory": data.territories, "language": data.languages}
  return {
    (kind, code): " ".join(name.split())
    for kind, names in kinds.items()
    for code, name in names.items()
  }
