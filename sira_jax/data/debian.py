# SPDX-License-Identifier: Apache-2.0
"""Debian's package descriptions, from apt's indices to rows.

apt fetches and verifies them, from the sources that this machine's /etc/apt
names, into a folder of our own: neither root is needed, nor is the system's
state read or changed.
"""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
from typing import Any, NamedTuple
import unicodedata

from sira_jax.data import examples
from sira_jax.data.suites import debian as suite

LICENCE = (
  "a description is part of its package and under its terms; translations are"
  " by Debian's Description Translation Project, which states none of its own."
  " Use them; do not pass them on."
)

MINIMUM = 1000
"""Rows of each language, or an index was not whole."""

# Read after /etc/apt, so that its sources, keys and proxies are kept. Many
# images ask for no languages, and have hooks that only root may run.
_CONFIG = """\
#clear Acquire::Languages;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages {{ {languages} }};
Acquire::GzipIndexes "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Dir::State "{folder}/state";
Dir::State::lists "{folder}/state/lists";
Dir::Cache "{folder}/cache";
"""
_FIELDS = ("CREATED_BY", "ORIGIN", "COMPONENT", "CODENAME", "LANGUAGE")


class Index(NamedTuple):
  """One of apt's files.

  Attributes:
    kind: "Packages" or "Translations".
    release: its codename, such as bookworm.
    language: Debian's code; of packages, what apt says for none.
    file: where it is, as text.
  """

  kind: str
  release: str
  language: str
  file: pathlib.Path


def fetch(folder: pathlib.Path) -> list[Index]:
  """The indices of Debian's main, fetched into the folder by apt.

  What is there already is not fetched again.

  Raises:
    ValueError: there is no apt-get, no network, or no source of Debian.
  """
  if shutil.which("apt-get") is None:
    raise ValueError(
      "Debian's descriptions are fetched by apt-get, which is not here. Prepare"
      " them on Debian (or in a container of it), and copy the folder."
    )
  for part in ("state/lists/partial", "cache/archives/partial"):
    (folder / part).mkdir(parents=True, exist_ok=True)
  config = folder / "apt.conf"
  codes = "; ".join(f'"{code}"' for _, code in suite.LANGUAGES.values())
  config.write_text(_CONFIG.format(folder=folder, languages=f"{codes};"))
  _apt(config, "update")
  parts = "|".join(f"$({field})" for field in (*_FIELDS, "FILENAME"))
  listed = _apt(config, "indextargets", "--format", parts)
  found = []
  for line in listed.splitlines():
    kind, origin, component, release, language, file = line.split("|", 5)
    if (origin, component) == ("Debian", "main") and kind in (
      *("Packages", "Translations"),
    ):
      found.append(Index(kind, release, language, pathlib.Path(file)))
  if not found:
    raise ValueError(
      "apt's sources on this machine (/etc/apt/sources.list, sources.list.d)"
      " have no component main of Debian. Prepare the data on Debian (or in a"
      " container of it), and copy the folder."
    )
  return sorted(found)


def _apt(config: pathlib.Path, *words: str) -> str:
  done = subprocess.run(
    ["apt-get", "-c", str(config), *words],
    capture_output=True,
    text=True,
    env=os.environ | {"LC_ALL": "C.UTF-8"},
    check=False,
  )
  if done.returncode:
    lines = [x for x in done.stderr.splitlines() if x.startswith(("E:", "W:"))]
    raise ValueError(
      "apt-get could not fetch the indices (is there a network?):\n  "
      + "\n  ".join(lines[:5] or ["it says nothing of why"])
      + "\nThe same command goes on with what is fetched."
    )
  return done.stdout


class Description(NamedTuple):
  """A package's description in one language.

  Attributes:
    synopsis: one line.
    text: paragraphs, with an empty line between.
  """

  synopsis: str
  text: str


def rows(
  indices: Sequence[Index], *, minimum: int = MINIMUM
) -> tuple[dict[str, dict[str, list[dict[str, str]]]], dict[str, Any]]:
  """The rows of each language by split, and what is to be known of them.

  A package is read once, of the first release by name that has it. A row's
  split is its source package's. Rows that have the text of one before are left
  out, and so are those not translated: both are counted.

  Raises:
    ValueError: a file that cannot be read, or a language of fewer rows than
      `minimum`.
  """
  packages, texts = {}, {code: {} for _, code in suite.LANGUAGES.values()}
  for index in indices:
    if index.kind == "Packages":
      for stanza in _stanzas(index.file):
        packages.setdefault(stanza["Package"], stanza)
    elif index.language in texts:
      found = texts[index.language]
      for key, one in _descriptions(index.file, index.language):
        found.setdefault(key, one)
  made, notes = {}, []
  for language, (_, code) in suite.LANGUAGES.items():
    made[language], note = _rows(language, packages, texts["en"], texts[code])
    notes.append(note)
    count = sum(map(len, made[language].values()))
    if count < minimum:
      raise ValueError(
        f"Expected {minimum} rows at least in {language}, got {count}, of"
        f" {len(packages)} packages and {len(texts[code])} descriptions: the"
        " indices are not whole, or of another Debian than the code knows."
      )
  facts = {
    "notes": notes,
    "sections": sorted({one["Section"] for one in packages.values()}),
    "indices": [
      {
        "kind": one.kind,
        "release": one.release,
        "language": one.language if one.kind == "Translations" else "",
        "sha256": hashlib.sha256(one.file.read_bytes()).hexdigest(),
      }
      for one in indices
    ],
  }
  return made, facts


def _rows(
  language: str,
  packages: Mapping[str, Mapping[str, str]],
  english: Mapping[str, Description],
  own: Mapping[str, Description],
) -> tuple[dict[str, list[dict[str, str]]], str]:
  made = {split: [] for split in examples.SPLITS}
  seen, repeated, untranslated = set(), 0, 0
  for name, package in sorted(packages.items()):
    key = package.get("Description-md5")
    if key not in english or key not in own:
      continue
    one, original = own[key], english[key]
    text = one.text
    if language != "en":
      if one.synopsis == original.synopsis:
        untranslated += 1
        continue
      text = "" if one.text == original.text else one.text
    content = (original.synopsis, one.synopsis, text)
    if content in seen:
      repeated += 1
      continue
    seen.add(content)
    source = package.get("Source", name).partition(" ")[0]
    row = (name, source, package["Section"], language, *content)
    made[examples.split_of(source)].append(
      dict(zip(suite.COLUMNS, row, strict=True))
    )
  return made, (
    f"{language}: left out {repeated} rows whose text is there already,"
    f" {untranslated} that are not translated"
  )


def _stanzas(file: pathlib.Path) -> Iterator[dict[str, str]]:
  """The paragraphs of a control file: field -> value, lines kept.

  Raises:
    ValueError: if the file cannot be read.
  """
  try:
    content = file.read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise ValueError(f"{file} cannot be read: {error}.") from None
  for stanza in content.split("\n\n"):
    fields = re.findall(r"^([^\s:]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.M)
    if fields:
      yield dict(fields)


def _descriptions(
  file: pathlib.Path, code: str
) -> Iterator[tuple[str, Description]]:
  """Descriptions by the hash of the English one that each is of."""
  for stanza in _stanzas(file):
    value = stanza.get(f"Description-{code}", "")
    synopsis, _, body = value.partition("\n")
    synopsis = " ".join(synopsis.split())
    if synopsis and "Description-md5" in stanza:
      yield stanza["Description-md5"], Description(synopsis, _text(body))


def _text(body: str) -> str:
  """A description's lines as paragraphs; lists keep their lines.

  Debian Policy 5.6.13: a line begins with a space, one of two spaces is shown
  as it is, one of a full stop is empty.
  """
  text, joined = "", False
  for line in body.split("\n"):
    line = line.removeprefix(" ").rstrip()
    if line in ("", "."):
      text, joined = text.rstrip() + "\n\n", False
    elif line.startswith((" ", "\t")):
      text, joined = f"{text.rstrip(' ')}\n{line}", False
    elif joined:
      text += ("" if _unspaced(text[-1], line[0]) else " ") + line
    else:
      start = "\n" if text and not text.endswith("\n") else ""
      text, joined = text + start + line, True
  return re.sub(r"\n{3,}", "\n\n", text).strip()


def _unspaced(before: str, after: str) -> bool:
  """Whether a line ends within Chinese or Japanese, which have no spaces."""
  return all(
    unicodedata.east_asian_width(one) in "WF"
    and not unicodedata.name(one, "").startswith("HANGUL")
    for one in (before, after)
  )
