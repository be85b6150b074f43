# SPDX-License-Identifier: Apache-2.0
"""Debian's descriptions: from an archive through apt to rows and scores."""

import dataclasses
import functools
import json
import shutil

import pytest

from sira_jax.data import debian, examples, prepare
from sira_jax.data.suites import debian as suite
from tests.data import apt_archive
from tests.data.suites import folders

needs_apt = pytest.mark.skipif(
  shutil.which("apt-get") is None, reason="there is no apt-get"
)


@pytest.fixture
def archive(tmp_path, monkeypatch):
  folder = tmp_path / "archive"
  folder.mkdir()
  config = apt_archive.write(folder)
  monkeypatch.setenv("APT_CONFIG", str(config))
  return folder


@pytest.fixture
def indices(archive):
  """As apt leaves them."""
  where = archive / "dists" / "tiny" / "main"
  found = [
    debian.Index("Packages", "tiny", "", where / "binary-amd64" / "Packages")
  ]
  for _, code in suite.LANGUAGES.values():
    file = where / "i18n" / f"Translation-{code}"
    found.append(debian.Index("Translations", "tiny", code, file))
  return found


TINY = dataclasses.replace(
  prepare.SOURCES["debian"],
  convert=functools.partial(debian.rows, minimum=1),
)


def of_gettext(rows, language):
  found = [r for split in rows[language].values() for r in split]
  return [row for row in found if row["package"] == "gettext-doc"]


def test_a_row(indices):
  """Lines are paragraphs, lists are lists, white space is one space."""
  rows, facts = debian.rows(indices, minimum=1)
  assert of_gettext(rows, "en") == [
    {
      "package": "gettext-doc",
      "source": "gettext",
      "section": "doc",
      "language": "en",
      "english": "Documentation for GNU gettext",
      "synopsis": "Documentation for GNU gettext",
      "description": (
        "This package contains the HTML documentation of GNU gettext.\n\n"
        "Formats:\n * HTML\n * PostScript"
      ),
    }
  ]
  (german,) = of_gettext(rows, "de")
  assert german["synopsis"] == "Dokumentation für GNU gettext"
  assert german["description"] == (
    "Dieses Paket enthält die Dokumentation zu GNU gettext in HTML."
  )
  (japanese,), (korean,) = of_gettext(rows, "ja"), of_gettext(rows, "ko")
  assert japanese["description"] == "本パッケージには、文書が。"
  assert korean["description"] == "이 패키지는 HTML 문서를 포함합니다."
  (danish,) = of_gettext(rows, "da")
  assert danish["synopsis"] == "Dokumentation af GNU gettext"
  assert danish["description"] == ""
  assert of_gettext(rows, "cs") == []
  assert facts["sections"] == ["doc", "utils"]
  assert (
    "cs: left out 0 rows whose text is there already, 1 that are not tra"
    in ("\n".join(facts["notes"]))
  )


def test_a_family_of_packages_is_in_one_split(indices):
  """Packages of a source have its split in all languages; repeats are out."""
  file = indices[0].file
  twins = "".join(
    f"\nPackage: {name}-{part}\nSource: {name}\nDescription-md5: {key}\n"
    "Section: libs\n"
    for name in apt_archive.SOURCES
    for part, key in (("dev", f"{name}-dev"), ("dbg", apt_archive.key(name)))
  )
  file.write_text(file.read_text() + twins)
  for _, _, code, translation in indices[1:]:
    extra = "".join(
      f"\nDescription-md5: {name}-dev\nDescription-{code}: {code} {name}\n T\n"
      for name in apt_archive.SOURCES
    )
    translation.write_text(translation.read_text() + extra)
  rows, facts = debian.rows(indices, minimum=1)
  assert "de: left out 30 rows whose text is there already" in facts["notes"][3]
  split_of = {}
  for language, splits in rows.items():
    assert sum(map(len, splits.values())) >= 60
    for split, of_split in splits.items():
      assert of_split, (language, split)
      for row in of_split:
        assert split_of.setdefault(row["source"], split) == split
        assert examples.split_of(row["source"]) == split
  assert len(split_of) == 31


def test_too_few_rows_are_an_error(indices):
  with pytest.raises(
    ValueError, match="Expected 1000 rows at least in en, got"
  ):
    debian.rows(indices)
  indices[3].file.write_text("")
  with pytest.raises(
    ValueError, match="1 rows at least in da, got 0, of 31 pa"
  ):
    debian.rows(indices, minimum=1)


@needs_apt
def test_from_an_archive_to_scores(archive, tmp_path):
  """One command; then a config's suite, and answers that are half right."""
  out, said = tmp_path / "debian", []
  done = prepare.prepare("debian", TINY, str(out), say=said.append)
  assert "under its terms" in said[0] and "30 MB to fetch" in said[0]
  assert f"Wrote {out}" in done and "pt-BR" in done
  manifest = json.loads((out / "prepared.json").read_text())
  assert len(manifest["indices"]) == 17 and len(manifest["files"]) == 48
  assert [x["language"] for x in manifest["indices"]].count("") == 1

  settings = {"languages": ("en",), "zero_shot": ("de",), "split": "test"}
  found = folders.read("debian_section", out, **settings)
  test = found.rows("de")["test"]
  names = [n for n in apt_archive.SOURCES if examples.split_of(n) == "test"]
  assert {row.inputs for row in test} == {
    f"section: das de no. {name.removeprefix('tool')}. A text in de.\n"
    for name in names
  }
  answers = {row.inputs: ("utils", "doc")[i % 2] for i, row in enumerate(test)}
  right = 100 * len(names[::2]) / len(names)
  score = folders.score(found, answers, split="test", language="de")
  assert score["accuracy"] == pytest.approx(right)

  settings = {"languages": ("de",), "split": "test", "ending": ""}
  found = folders.read("debian_translation", out, **settings)
  test = dict(found.rows("de")["test"])
  assert test == {
    f"translate to German: the tool no. {name.removeprefix('tool')}": (
      f"das de no. {name.removeprefix('tool')}"
    )
    for name in names
  }
  score = folders.score(found, test, split="test", language="de")
  assert score == {"chrf": 100.0, "exact_match": 100.0}


def test_what_is_summarized(tmp_path):
  """Of descriptions from twice the synopsis' length to the longest, 1000."""

  def row(package, length):
    values = (package, package, "doc", "fr", "Ten chars.", "Dix signes")
    named = dict(zip(suite.COLUMNS, values, strict=False))
    return named | {"description": "x" * length}

  lengths = {"a": 0, "b": 19, "c": 20, "d": 1000, "e": 1001}
  rows = [row(*item) for item in lengths.items()]
  folders.write(tmp_path / "fr" / "train.jsonl", rows)
  folders.write(tmp_path / "fr" / "test.jsonl", [row("f", 50)])
  found = folders.read(
    "debian_synopsis", tmp_path, languages=("fr",), split="test"
  )
  assert set(found.rows("fr")["train"]) == {
    (f"summarize: {'x' * 20}\n", "Dix signes"),
    (f"summarize: {'x' * 1000}\n", "Dix signes"),
  }
  assert "2 examples; 3 rows are none of the task's" in found.notes[0]
  with pytest.raises(ValueError, match=r"no language 'en'\. It has: cs"):
    folders.read("debian_translation", tmp_path, languages=("en",))


@needs_apt
def test_an_interrupted_one_goes_on(archive, tmp_path):
  """What apt has is not fetched again: by then, the archive lacks a file."""

  def stop(found):
    raise KeyboardInterrupt

  out = tmp_path / "debian"
  stopped = dataclasses.replace(TINY, convert=stop)
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare("debian", stopped, str(out), say=print)
  assert not out.exists()
  (archive / "dists" / "tiny" / "main" / "i18n" / "Translation-de").unlink()
  prepare.prepare("debian", TINY, str(out), say=print)
  assert (out / "de" / "train.jsonl").read_text()
  assert [p.name for p in tmp_path.iterdir() if "debian" in p.name] == [
    "debian"
  ]


@needs_apt
def test_what_cannot_be_fetched(archive, tmp_path, monkeypatch):
  """No network, half an archive, another distribution: each in one sentence."""
  lost = archive / "dists" / "tiny" / "main" / "i18n" / "Translation-de"
  content = lost.read_bytes()
  lost.unlink()
  with pytest.raises(ValueError, match=r"could not fetch .*\n.*Translation-de"):
    debian.fetch(tmp_path / "one")
  lost.write_bytes(content)
  apt_archive.configure(archive, "http://127.0.0.1:9")
  with pytest.raises(
    ValueError, match=r"is there a network\?\):\n  [EW]: Fail"
  ):
    debian.fetch(tmp_path / "two")
  apt_archive.write(archive, origin="Another")
  with pytest.raises(ValueError, match="have no component main of Debian"):
    debian.fetch(tmp_path / "three")
  monkeypatch.setenv("PATH", "")
  with pytest.raises(ValueError, match="apt-get, which is not here"):
    debian.fetch(tmp_path / "four")
