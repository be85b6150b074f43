# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny archive of Debian, which apt reads as it reads the real one."""

import hashlib

from sira_jax.data.suites import debian as suite

GETTEXT = "966c7204112700e6dcb867375471b50b"
SOURCES = [f"tool{i}" for i in range(30)]
"""Sources of one package each, whose English synopsis is "the tool no. i"."""

_PACKAGES = f"""\
Package: gettext-doc
Source: gettext (0.21-12)
Architecture: all
Version: 1
Description: Documentation for GNU gettext
Description-md5: {GETTEXT}
Tag: devel::doc, devel::i18n,
 role::documentation
Section: doc
Filename: pool/a.deb
Size: 1
"""
_ENGLISH = """\
 This package contains the HTML documentation
 of GNU gettext.
 .
 Formats:
  * HTML
  * PostScript
"""
_OWN = {
  "en": ("Documentation for GNU gettext", _ENGLISH),
  "de": (
    "Dokumentation für  GNU gettext",
    " Dieses Paket enthält die Dokumentation\n zu GNU gettext in HTML.\n",
  ),
  "ja": ("GNU gettext のドキュメント", " 本パッケージには、\n 文書が。\n"),
  "ko": ("GNU gettext 문서", " 이 패키지는 HTML\n 문서를\n 포함합니다.\n"),
  # Of Danish, the synopsis alone is translated, and of Czech nothing is.
  "da": ("Dokumentation af GNU gettext", _ENGLISH),
  "cs": ("Documentation for GNU gettext", _ENGLISH),
}


def key(name):
  """The hash that a package's description is known by."""
  return hashlib.md5(name.encode()).hexdigest()


def _plain(name, language):
  word = "the tool" if language == "en" else f"das {language}"
  return f"{word} no. {name.removeprefix('tool')}"


def translation(language, code):
  """The content of a Translation index."""
  synopsis, body = _OWN.get(language, (f"gettext {language}", " Text.\n"))
  first = (
    f"Package: gettext-doc\nDescription-md5: {GETTEXT}\n"
    f"Description-{code}: {synopsis}\n{body}"
  )
  others = (
    f"Package: {name}\nDescription-md5: {key(name)}\n"
    f"Description-{code}: {_plain(name, language)}\n A text in {language}.\n"
    for name in SOURCES
  )
  return "\n".join([first, *others])


def write(folder, *, origin="Debian"):
  """An archive in the folder, and the apt.conf of a machine that has it."""
  plain = (
    f"Package: {name}\nArchitecture: all\nVersion: 1\n"
    f"Description: {_plain(name, 'en')}\nDescription-md5: {key(name)}\n"
    "Section: utils\nFilename: pool/b.deb\nSize: 1\n"
    for name in SOURCES
  )
  contents = {"main/binary-amd64/Packages": "\n".join([_PACKAGES, *plain])}
  for language, (_, code) in suite.LANGUAGES.items():
    contents[f"main/i18n/Translation-{code}"] = translation(language, code)
  lines = []
  for name, content in contents.items():
    file = folder / "dists" / "tiny" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode())
    digest = hashlib.sha256(content.encode()).hexdigest()
    lines.append(f" {digest} {len(content.encode())} {name}")
  (folder / "dists" / "tiny" / "Release").write_text(
    f"Origin: {origin}\nCodename: tiny\nSuite: tiny\nArchitectures: amd64\n"
    "Components: main\nDate: Fri, 03 Mar 2028 00:00:00 UTC\nSHA256:\n"
    + "\n".join(lines)
    + "\n"
  )
  return configure(folder, f"copy:{folder}")


def configure(folder, uri):
  """The apt.conf of a machine whose only source is an archive."""
  sources = folder / "sources.list"
  sources.write_text(f"deb [trusted=yes arch=amd64] {uri} tiny main\n")
  config = folder / "machine.conf"
  config.write_text(
    f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "/dev/null";\n'
    'Acquire::Languages "none";\nAcquire::Retries "0";\n'
  )
  return config
