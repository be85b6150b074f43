# SPDX-License-Identifier: Apache-2.0
"""The command that fetches data which the tasks of a suite read.

    python -m sira_jax.data.prepare NAME [--out=FOLDER]

fetches what `SOURCES` has by that name, checks it and writes it as rows into
FOLDER, data/NAME unless given; `config.suites.NAME.folder` is then FOLDER. The
folder is there whole or not at all: all is done in a draft beside it, which the
same command goes on with, and which is moved in the end.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from absl import flags

from sira_jax import process, storage
from sira_jax.data import debian, examples

MANIFEST = "prepared.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Something to prepare.

  Attributes:
    what: it is, in a few words.
    licence: under which it is, and what that means for its user.
    size: of the download and of the folder, in words.
    fetch: (folder) -> what is in it now; goes on with what is there already.
    convert: (what `fetch` returned) -> rows by language, language -> split ->
      rows; and what is to be known of them.
  """

  what: str
  licence: str
  size: str
  fetch: Callable[[pathlib.Path], Any]
  convert: Callable[[Any], tuple[Mapping[str, Any], Mapping[str, Any]]]


SOURCES = {
  "debian": Source(
    what="descriptions of Debian's packages in 16 languages",
    licence=debian.LICENCE,
    size="30 MB to fetch, 150 MB to keep",
    fetch=debian.fetch,
    convert=debian.rows,
  ),
}


def define_flags() -> None:
  """The command's flags."""
  flags.DEFINE_string(
    "out", None, "The folder to write; data/NAME if not given."
  )


def main(argv: Sequence[str]) -> None:
  """Prepares what is named; a user's mistake ends with its message alone."""
  with process.user_errors():
    if len(argv) != 2 or argv[1] not in SOURCES:
      raise ValueError(
        f"Expected one of {', '.join(SOURCES)} after the command, got"
        f" {' '.join(argv[1:]) or 'nothing'}. Built-in tasks need no preparing."
      )
    name = argv[1]
    out = flags.FLAGS["out"].value or f"data/{name}"
    print(prepare(name, SOURCES[name], out, say=print))


def prepare(
  name: str, source: Source, out: str, *, say: Callable[[str], None]
) -> str:
  """Fetches, checks and writes a source; returns what there is to say.

  Raises:
    ValueError: the folder has something else, or is damaged; or as `fetch` and
      `convert`.
  """
  target = storage.on_disk(out, flag="--out").expanduser().absolute()
  if target.exists():
    manifest = check(target, name)
    return f"{target} is prepared already; it is left as it is.\n" + _table(
      manifest
    )
  draft = target.with_name(f".{target.name}.draft")
  draft.mkdir(parents=True, exist_ok=True)
  lock = storage.lock(draft, "prepares", flag="--out")
  try:
    say(f"{name}: {source.what}; {source.size}.\nLicence: {source.licence}")
    found = source.fetch(draft / "fetched")
    say("Fetched. Now the rows are made.")
    made = draft / "made"
    shutil.rmtree(made, ignore_errors=True)
    manifest = _write(made, name, source, found)
    made.rename(target)
  finally:
    os.close(lock)
  shutil.rmtree(draft)
  return (
    f"Wrote {target}, {_size(manifest) / 1e6:.0f} MB. A config reads it by"
    f' suites = dict({name}=dict(folder="{out}")).\n{_table(manifest)}'
  )


def check(target: pathlib.Path, name: str) -> dict[str, Any]:
  """The manifest of a prepared folder whose files are all as written.

  Raises:
    ValueError: if it is none, of something else, or damaged.
  """
  how = f"Remove {target}, or give another --out."
  try:
    manifest = json.loads((target / MANIFEST).read_text())
    known = manifest["format"], manifest["name"]
    files = manifest["files"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{target} is there and was not written by this command: its {MANIFEST}"
      f" cannot be read: {error!r}. {how}"
    ) from None
  if known != (_FORMAT, name):
    raise ValueError(
      f"{target} has {known[1]} in format {known[0]}, not {name} in format"
      f" {_FORMAT}. {how}"
    )
  for path, fact in files.items():
    if not (target / path).is_file() or _facts(target / path) != fact:
      raise ValueError(f"{target / path} is not as it was written. {how}")
  return manifest


def _write(
  folder: pathlib.Path, name: str, source: Source, found: Any
) -> dict[str, Any]:
  """Writes all files, the manifest last, and returns its content."""
  rows, facts = source.convert(found)
  for language, splits in rows.items():
    (folder / language).mkdir(parents=True)
    for split in examples.SPLITS:
      text = "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in splits[split]
      )
      storage.write(folder / language / f"{split}.jsonl", text)
  files = sorted(folder.glob("*/*.jsonl"))
  manifest = {
    "format": _FORMAT,
    "name": name,
    "licence": source.licence,
    "rows": {
      language: {split: len(splits[split]) for split in examples.SPLITS}
      for language, splits in rows.items()
    },
    **facts,
    "files": {
      file.relative_to(folder).as_posix(): _facts(file) for file in files
    },
  }
  storage.write(
    folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False)
  )
  return manifest


def _facts(file: pathlib.Path) -> dict[str, Any]:
  content = file.read_bytes()
  return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _size(manifest: Mapping[str, Any]) -> int:
  return sum(fact["size"] for fact in manifest["files"].values())


def _table(manifest: Mapping[str, Any]) -> str:
  lines = [f"{'language':9}" + "".join(f"{s:>12}" for s in examples.SPLITS)]
  for language, counts in manifest["rows"].items():
    cells = "".join(f"{counts[split]:12,}" for split in examples.SPLITS)
    lines.append(f"{language:9}{cells}")
  return "\n".join([*lines, *manifest.get("notes", ())])


if __name__ == "__main__":
  define_flags()
  process.start(main)
