# SPDX-License-Identifier: Apache-2.0
"""Files of a run, each whole or not there, on a disk or in a bucket."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import os
import pathlib
import sys
from typing import TypeVar

from absl import logging
from etils import epath

from sira_jax import distributed

T = TypeVar("T")
Path = pathlib.Path | epath.Path
"""A pathlib.Path on a disk; in a bucket, etils' path, which works alike."""

LOCK = ".lock"
_BUCKETS = "gs://"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def place(name: str) -> Path:
  """The folder of that name: on a disk, or gs://BUCKET/FOLDER.

  Raises:
    ValueError: an address of something else.
  """
  if name.startswith(_BUCKETS):
    if not name.removeprefix(_BUCKETS).partition("/")[0]:
      raise ValueError(f"{name} names no bucket: give gs://BUCKET/FOLDER.")
    return epath.Path(name)
  if "://" in name:
    raise ValueError(
      f"Expected a folder on a disk, or gs://BUCKET/FOLDER, got {name}:"
      " checkpoints can be kept nowhere else."
    )
  return pathlib.Path(name)


def on_disk(name: str, *, flag: str) -> pathlib.Path:
  """The folder of that name.

  Args:
    name: of the folder.
    flag: that gives another.

  Raises:
    ValueError: it is not on a disk.
  """
  if "://" in name:
    raise ValueError(f"{name} is no folder on a disk: give one as {flag}.")
  return pathlib.Path(name)


def in_bucket(path: Path) -> bool:
  """Whether a path is that of an object in a bucket."""
  return str(path).startswith(_BUCKETS)


def check_bucket(path: Path) -> None:
  """Checks that objects of a path's bucket can be listed, if it is in one.

  Raises:
    ValueError: they cannot.
  """
  if not in_bucket(path):
    return
  bucket = epath.Path(_BUCKETS + str(path).split("/")[2])
  try:
    next(iter(bucket.iterdir()), None)
  # Each library that reads buckets has its own errors.
  except Exception as error:
    raise ValueError(
      f"{path} cannot be used, for {bucket} cannot be read:"
      f" {type(error).__name__}: {first_line(error)}. Is that its name, and has"
      " this machine the right to it (`gcloud auth application-default login`)?"
    ) from None


def check_writable(folder: Path) -> None:
  """Checks that files can be made in a workdir, which may be missing.

  Of one in a bucket, as `check_bucket`.

  Raises:
    ValueError: they cannot.
  """
  if in_bucket(folder):
    return check_bucket(folder)
  there = folder.absolute()
  while not there.exists():
    there = there.parent
  if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
    what = "cannot be written" if there.is_dir() else "is no folder"
    raise ValueError(f"The workdir {folder} cannot be used: {there} {what}.")


@contextlib.contextmanager
def errors(workdir: Path) -> Iterator[None]:
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


def load(file: Path, read: Callable[[str], T]) -> T | None:
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
      f"DAMAGED: {file} cannot be read ({first_line(error)}); it is now"
      f" {aside.name}, and computed anew.",
      flush=True,
    )
    return None


def text(file: Path) -> str:
  """All of a file; "" where there is none. No damage but to its own byte."""
  return file.read_bytes().decode(errors="replace") if file.exists() else ""


def set_aside(path: Path) -> Path:
  """Renames what is damaged to NAME.damaged, or .damaged2 and so on."""
  number, aside = 1, path.with_name(f"{path.name}.damaged")
  while aside.exists():
    number += 1
    aside = path.with_name(f"{path.name}.damaged{number}")
  if distributed.first():
    path.rename(aside)
  return aside


def write(file: Path, content: str | bytes) -> None:
  """Writes a file whole or not at all, whenever the machine may die.

  The first process writes it; for others this does nothing.
  """
  if not distributed.first():
    return
  if isinstance(content, str):
    content = content.encode()
  if in_bucket(file):
    file.write_bytes(content)  # an object is there when all of it is
    return
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


def remove(file: Path) -> None:
  """Removes a file if it is there; the first process does."""
  if distributed.first():
    file.unlink(missing_ok=True)


class Lines:
  """A file that grows by lines; the first process writes it.

  On a disk a line is in the file at once. An object of a bucket cannot grow,
  and is written anew at each `sync`.

  Args:
    file: to write.
    lines: its first ones; what else it had is dropped.
  """

  def __init__(self, file: Path, lines: list[str]):
    self._file, self._lines, self._stream = file, list(lines), None
    write(file, _joined(lines))
    if distributed.first() and not in_bucket(file):
      self._stream = file.open("a")

  def append(self, line: str) -> None:
    """Adds a line, given without its end."""
    if self._stream is not None:
      self._stream.write(line + "\n")
      self._stream.flush()
    elif distributed.first():
      self._lines.append(line)

  def sync(self) -> None:
    """Has all lines where they outlive the machine."""
    if self._stream is not None:
      os.fsync(self._stream.fileno())
    else:
      write(self._file, _joined(self._lines))

  def close(self) -> None:
    """Has all lines in the file, and closes it."""
    if self._stream is not None:
      self._stream.close()
    else:
      self.sync()


def lock(folder: Path, doing: str, *, flag: str) -> int | None:
  """Takes a folder's lock; the system gives it back at any death.

  Args:
    folder: that there is.
    doing: what its holder does, such as "is training".
    flag: that gives another folder.

  Returns:
    The lock's descriptor; to close it gives the lock back. None in a bucket,
    which has no locks: that is said, and nothing is held.

  Raises:
    ValueError: another process has it.
  """
  if in_bucket(folder):
    _warn(folder, "a bucket has no locks")
    return None
  held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(held)
    raise ValueError(
      f"Now another process {doing} in {folder}. Wait for it, stop it, or give"
      f" another {flag}."
    ) from None
  except OSError as error:  # some network file systems have no locks
    _warn(folder, error)
  return held


def listing(folder: Path) -> str:
  """The names of what a folder holds."""
  names = [f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir()]
  return ", ".join(sorted(name for name in names if name[0] != "."))


def first_line(error: Exception) -> str:
  """Of its text, or its kind where it has none."""
  return (str(error).splitlines() or [type(error).__name__])[0]


def _joined(lines):
  return "".join(line + "\n" for line in lines)


def _warn(folder, why):
  logging.warning("%s: nothing keeps a second process out: %s.", folder, why)
