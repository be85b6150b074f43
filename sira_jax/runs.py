# SPDX-License-Identifier: Apache-2.0
"""A run's directory: its config, what is in it, and no second run."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import sys
from typing import TypeVar

from absl import logging
import ml_collections

from sira_jax import configuration, distributed, evaluation

T = TypeVar("T")

_LOCK = ".lock"
# What may be changed on the way: no step that was taken depends on it, but for
# the order in which devices add up.
_FREE = {
  "training": {"nonfinite"},
  "mesh": {"data", "fsdp", "tensor", "slices", "experts"},
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_workdir(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> int | None:
  """Makes or reopens a run's directory, for this run alone.

  Returns:
    The descriptor of its lock, which holds until it is closed or the process
    ends, however that ends. Of several processes of one run, the first has it,
    and the others None.

  Raises:
    ValueError: as `check_workdir`, or another process is training there.
  """
  check_workdir(workdir, config)
  locks = [None]
  distributed.once(lambda: locks.append(_open(workdir, config)))
  return locks[-1]


def check_workdir(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks that a run of this config may use `workdir`; changes nothing.

  Raises:
    ValueError: it cannot be written, holds a run of another config (with the
      fields that differ), or holds files of something else.
  """
  file = workdir / "config.json"
  if file.exists():
    new = json.loads(configuration.as_json(config))
    changed = configuration.differences(_fixed(_read(file)), _fixed(new))
    if changed:
      raise ValueError(
        f"{workdir} holds a run of another config; there and here:\n  "
        + "\n  ".join(changed)
        + "\nGive another --workdir, or the config of that run."
      )
  there = workdir.absolute()
  while not there.exists():
    there = there.parent
  if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
    what = "cannot be written" if there.is_dir() else "is no folder"
    raise ValueError(f"The workdir {workdir} cannot be used: {there} {what}.")
  # What `open_workdir` leaves if it is killed is not something else.
  known = (_LOCK, f".{file.name}")
  foreign = (p for p in workdir.glob("*") if not p.name.startswith(known))
  if not file.exists() and any(foreign):
    raise ValueError(
      f"{workdir} is not empty and holds no run (no config.json). Give"
      " another --workdir."
    )


def load_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """The resolved config of the run in `workdir`.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  file = workdir / "config.json"
  if not file.exists():
    raise ValueError(
      f"There is no run in {workdir} (no config.json). Train first, or name"
      " its --workdir."
    )
  return ml_collections.ConfigDict(_read(file))


def before(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> str:
  """before.json of another run, whose base is scored as this config's would be.

  Raises:
    ValueError: it has none, or scored another base, or otherwise.
  """
  file = workdir / "before.json"
  other = load_config(workdir).to_dict()
  own = json.loads(configuration.as_json(config))
  groups = ("base", "files", "suites", "mixture", "evaluation", "decoding")
  groups += ("start", "head")
  one, two = ({k: of.get(k) for k in groups} for of in (other, own))
  changed = configuration.differences(one, two)
  if changed or not file.exists():
    raise ValueError(
      f"The scores before training cannot be those of {workdir}: "
      + ("\n  ".join(["", *changed]) if changed else "it has none.")
    )
  text = file.read_text()
  try:
    evaluation.loads(text)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{file} cannot be read: {error}") from None
  return text


def check_data(workdir: pathlib.Path, data: str, *, keep: bool) -> None:
  """Checks that a run's data, by their fingerprint, are those it began with.

  With `keep`, notes them where none are noted.

  Raises:
    ValueError: they are others, so that no score of before is of them.
  """
  file = workdir / "data.json"
  known = load(file, lambda text: json.loads(text)["data"])
  if known not in (None, data):
    raise ValueError(
      f"The run in {workdir} was begun with other data: their fingerprint was"
      f" {str(known)[:12]}, now it is {data[:12]}. Has a file or a data package"
      " changed? Restore it, or give another --workdir."
    )
  if keep and known is None:
    write(file, json.dumps({"data": data}))


@contextlib.contextmanager
def storage_errors(workdir: pathlib.Path) -> Iterator[None]:
  """Ends the program with a message where a file cannot be written or read.

  All that a run leaves is written whole or not at all, so that nothing needs
  repair. With `$SIRA_JAX_TRACEBACK` set, the traceback is shown.
  """
  try:
    yield
  except OSError as error:
    if os.environ.get("SIRA_JAX_TRACEBACK"):
      raise
    what = str(error)
    if error.errno in _FULL:
      what = f"There is no space left for the run in {workdir} ({error}): free"
      what += " some, or move the folder and give its new place as --workdir"
    elif isinstance(error, FileNotFoundError):
      what = f"A file has gone while the run needed it ({error}): put it back"
    elif isinstance(error, PermissionError):
      what = f"The system allows no access ({error}): allow it"
    sys.exit(
      f"error: {what}. What was saved is whole, and the same command goes on"
      " from there."
    )


def load(file: pathlib.Path, read: Callable[[str], T]) -> T | None:
  """What a file of a run holds, or None where that has to be computed anew.

  A damaged file is moved aside, and said.

  Args:
    file: may be missing.
    read: its text -> what it holds; raises where it cannot.
  """
  if not file.exists():
    return None
  try:
    return read(file.read_text())
  except (ValueError, TypeError, KeyError) as error:
    aside = set_aside(file)
    print(
      f"DAMAGED: {file} cannot be read ({_first_line(error)}); it is now"
      f" {aside.name}, and computed anew.",
      flush=True,
    )
    return None


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Renames what is damaged to NAME.damaged, or .damaged2 and so on."""
  number, aside = 1, path.with_name(f"{path.name}.damaged")
  while aside.exists():
    number += 1
    aside = path.with_name(f"{path.name}.damaged{number}")
  if distributed.first():
    path.rename(aside)
  return aside


def write(file: pathlib.Path, content: str | bytes) -> None:
  """Writes a file whole or not at all, whenever the machine may die.

  The first process writes it; for others this does nothing.
  """
  if not distributed.first():
    return
  if isinstance(content, str):
    content = content.encode()
  temporary = file.with_name(f".{file.name}.{os.getpid()}")
  try:
    with temporary.open("wb") as stream:
      stream.write(content)
      stream.flush()
      os.fsync(stream.fileno())
  except OSError:  # where there is no space, half a file would only take some
    temporary.unlink(missing_ok=True)
    raise
  temporary.replace(file)
  folder = os.open(file.parent, os.O_RDONLY)
  try:
    os.fsync(folder)  # the new name is the folder's content
  finally:
    os.close(folder)


def results(workdir: pathlib.Path) -> str | None:
  """The table of a finished run; None where it is still to be made.

  results.json has all of it; a damaged results.md is written again.
  """
  table = load(workdir / "results.json", _table)
  file = workdir / "results.md"
  if table is not None and load(file, lambda text: _same(text, table)) is None:
    write(file, table + "\n")
  return table


def listing(workdir: pathlib.Path) -> str:
  """The names of what a run left."""
  names = [f"{p.name}/" if p.is_dir() else p.name for p in workdir.iterdir()]
  return ", ".join(sorted(name for name in names if name[0] != "."))


def _open(workdir, config):
  """Makes the folder, takes its lock and leaves the config there."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(workdir, "is training", flag="--workdir")
    file, text = workdir / "config.json", configuration.as_json(config)
    if not file.exists() or file.read_text() != text:
      write(file, text)
  except OSError as error:
    raise ValueError(f"The workdir {workdir} cannot be used: {error}") from None
  return lock


def lock_folder(folder: pathlib.Path, doing: str, *, flag: str) -> int:
  """Takes a folder's lock; the system gives it back at any death.

  Args:
    folder: that there is.
    doing: what its holder does, such as "is training".
    flag: that gives another folder.

  Returns:
    The lock's descriptor; to close it gives the lock back.

  Raises:
    ValueError: another process has it.
  """
  lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(lock)
    raise ValueError(
      f"Now another process {doing} in {folder}. Wait for it, stop it, or give"
      f" another {flag}."
    ) from None
  except OSError as error:  # some network file systems have no locks
    logging.warning(
      "%s: nothing keeps a second process out: %s.", folder, error
    )
  return lock


def _read(file):
  try:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
      raise ValueError("it holds no JSON object")
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{file} cannot be read: {_first_line(error)}. Nothing else of the run is"
      " lost: put a copy of the file back. The run's own command, given another"
      " --workdir, writes the same one as it starts."
    ) from None
  return found


def _table(text):
  """The table of what a results.json holds."""
  names = ("task", "language", "zero_shot", "count")
  before, after = (
    [
      evaluation.Result(scores=one[when], **{name: one[name] for name in names})
      for one in json.loads(text)
    ]
    for when in ("before", "after")
  )
  return evaluation.table(before, after)


def _same(text, table):
  if text != table + "\n":
    raise ValueError("it is not the table of results.json")
  return text


def _fixed(config):
  """A config without what may change on the way."""
  return {
    name: {k: v for k, v in group.items() if k not in _FREE.get(name, ())}
    if isinstance(group, dict)
    else group
    for name, group in config.items()
    # Its folder may be another: what is in it is `check_data`'s.
    if name != "cache"
  }


def _first_line(error):
  return (str(error).splitlines() or [type(error).__name__])[0]
