# SPDX-License-Identifier: Apache-2.0
"""Debian's package descriptions, in the languages that they are translated to.

    section: Dokumentation für GNU gettext. Dieses Paket ...  ->  doc
    summarize: Dieses Paket ...  ->  Dokumentation für GNU gettext
    translate to German: Documentation for GNU gettext  ->  Dokumentation ...

People wrote and translated them. Files are those of `python -m
sira_jax.data.prepare debian`. The splits share no source package, so that what
is tested is of no package that training saw a part of.
"""

from collections.abc import Callable, Sequence

from sira_jax.data import examples
from sira_jax.data.suites import forms

LANGUAGES = {
  "en": ("English", "en"),
  "cs": ("Czech", "cs"),
  "da": ("Danish", "da"),
  "de": ("German", "de"),
  "es": ("Spanish", "es"),
  "fr": ("French", "fr"),
  "it": ("Italian", "it"),
  "ja": ("Japanese", "ja"),
  "ko": ("Korean", "ko"),
  "pl": ("Polish", "pl"),
  "pt": ("Portuguese", "pt"),
  "pt-BR": ("Brazilian Portuguese", "pt_BR"),
  "ru": ("Russian", "ru"),
  "sk": ("Slovak", "sk"),
  "uk": ("Ukrainian", "uk"),
  "zh": ("Chinese", "zh_CN"),
}
"""Code -> English name, Debian's code: those of a thousand translations."""

COLUMNS = (
  *("package", "source", "section"),
  *("language", "english", "synopsis", "description"),
)
"""`description` is "" where only the synopsis is translated."""

LONGEST = 1000
"""Characters of a description that is to be summarized; 1 to 4 % have more,
which mostly are lists."""


def _section(row: forms.Row, training: bool) -> list[examples.Example]:
  """Of the synopsis and the description's first paragraph."""
  del training
  paragraph = forms.text(row, "description").partition("\n\n")[0]
  parts = [forms.text(row, "synopsis"), *([paragraph] if paragraph else [])]
  inputs = f"section: {'. '.join(parts)}"
  return [examples.Example(inputs, forms.text(row, "section"))]


def _synopsis(row: forms.Row, training: bool) -> list[examples.Example]:
  """Of descriptions that are twice as long as their synopsis, at least."""
  del training
  description, synopsis = (
    forms.text(row, column) for column in ("description", "synopsis")
  )
  if not 2 * len(synopsis) <= len(description) <= LONGEST:
    return []
  return [examples.Example(f"summarize: {description}", synopsis)]


def _translation(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  code = forms.text(row, "language")
  if code not in LANGUAGES:
    raise ValueError(
      f"expected column 'language' to be one of {', '.join(LANGUAGES)}, got"
      f" {code!r:.100}"
    )
  name, _ = LANGUAGES[code]
  inputs = f"translate to {name}: {forms.text(row, 'english')}"
  return [examples.Example(inputs, forms.text(row, "synopsis"))]


def _task(
  convert: Callable[[forms.Row, bool], list[examples.Example]],
  metrics: Sequence[str],
  languages: Sequence[str] = tuple(LANGUAGES),
) -> forms.Task:
  return forms.Task(
    examples=convert,
    columns=COLUMNS,
    metrics=metrics,
    places=("{language}",),
    get="python -m sira_jax.data.prepare debian --out={folder}",
    splits=forms.ALL_THREE,
    languages=languages,
  )


TASKS = {
  "debian_section": _task(_section, ("accuracy", "macro_f1")),
  "debian_synopsis": _task(_synopsis, ("chrf",)),
  "debian_translation": _task(
    _translation,
    ("chrf", "exact_match"),
    tuple(code for code in LANGUAGES if code != "en"),
  ),
}
