# SPDX-License-Identifier: Apache-2.0
"""What can happen to a run's files while it does not run, done on purpose."""

from collections.abc import Callable
import dataclasses
import os
import pathlib
import random
import shutil
import time

Do = Callable[[pathlib.Path, random.Random], None]


@dataclasses.dataclass(frozen=True)
class Damage:
  """One kind of damage.

  Attributes:
    name: for the table.
    do: does it, given the workdir and what to draw from.
    says: what the next start must print.
    checkpoints: how many there must be before.
    code: what the next start ends with where it does not go on; else None.
  """

  name: str
  do: Do
  says: str = ""
  checkpoints: int = 0
  code: int | None = None


def _newest(workdir):
  folders = (workdir / "checkpoints").iterdir()
  return max(
    (p for p in folders if p.name.isdigit()), key=lambda p: int(p.name)
  )


def _largest(folder):
  files = [p for p in folder.rglob("*") if p.is_file()]
  return max(files, key=lambda file: file.stat().st_size)


def truncate(file: pathlib.Path, draw: random.Random) -> None:
  """Cuts a file off somewhere before its end."""
  os.truncate(file, draw.randrange(file.stat().st_size))


def flip(file: pathlib.Path, draw: random.Random) -> None:
  """Turns over one bit of a file."""
  content = bytearray(file.read_bytes())
  content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
  file.write_bytes(content)


def _half_line(workdir, draw):
  file = workdir / "metrics.jsonl"
  text = file.read_text().rstrip("\n")
  start = text.rfind("\n") + 1
  file.write_text(text[: draw.randrange(start + 1, len(text))])


def _rest_of_writes(workdir, draw):
  newest = _newest(workdir)
  (workdir / f".before.json.{draw.randrange(10**6)}").write_text("[{")
  (workdir / ".metrics.jsonl.77").touch()
  for step in (int(newest.name) + 5, 10**6):
    half = newest.with_name(f"{step}.orbax-checkpoint-tmp")
    shutil.copytree(newest / "adapter", half / "adapter", dirs_exist_ok=True)
    _largest(half).unlink()


def _lock_of_the_dead(workdir, draw):
  lock = workdir / ".lock"
  lock.unlink(missing_ok=True)
  lock.write_text(f"{draw.randrange(10**6)}\n")
  lock.chmod(0o600)


def _empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def _future(workdir, draw):
  # ten days, as a clock may be set wrong
  later = time.time() + 864_000 + draw.random()
  for path in [workdir, *workdir.rglob("*"), *compilations().rglob("*")]:
    os.utime(path, (later, later))


def compilations() -> pathlib.Path:
  """Where the runs of a drill keep their compiled programs."""
  return pathlib.Path(os.environ["SIRA_JAX_CACHE"]) / "compilations"


def _compilations(_, draw):
  for file in compilations().glob("*-cache"):
    draw.choice((truncate, flip))(file, draw)


_GOES_BACK = dict(says="DAMAGED: the checkpoint of step", checkpoints=2)

# Between two starts of a run that goes on.
DAMAGES = (
  Damage(
    "half an adapter",
    lambda w, draw: truncate(_largest(_newest(w) / "adapter"), draw),
    **_GOES_BACK,
  ),
  Damage(
    "a bit of the optimizer",
    lambda w, draw: flip(_largest(_newest(w) / "optimizer"), draw),
    **_GOES_BACK,
  ),
  Damage(
    "no key",
    lambda w, _: (_newest(w) / "random" / "manifest.ocdbt").unlink(),
    **_GOES_BACK,
  ),
  Damage(
    "half the position",
    lambda w, draw: truncate(_newest(w) / "data" / "metadata", draw),
    **_GOES_BACK,
  ),
  Damage(
    "a bit of meta",
    lambda w, draw: flip(_newest(w) / "meta" / "metadata", draw),
    **_GOES_BACK,
  ),
  Damage("an empty folder", lambda w, _: _empty(_newest(w)), **_GOES_BACK),
  Damage(
    "no newest checkpoint",
    lambda w, _: shutil.rmtree(_newest(w)),
    says="Continuing at step",
    checkpoints=2,
  ),
  Damage("half a line of metrics", _half_line, checkpoints=2),
  Damage(
    "half of before.json",
    lambda w, draw: truncate(w / "before.json", draw),
    says="before.json cannot be read",
    checkpoints=1,
  ),
  Damage(
    "half of config.json",
    lambda w, draw: truncate(w / "config.json", draw),
    says="config.json cannot be read",
    code=1,
  ),
  Damage("rests of writes", _rest_of_writes, checkpoints=1),
  Damage("a dead run's lock", _lock_of_the_dead),
  Damage("damaged compilations", _compilations),
  Damage("a clock in the future", _future),
)

# After the run's end.
LAST = (
  Damage(
    "results.md no text",
    lambda w, _: (w / "results.md").write_bytes(b"\xff\x00"),
    says="results.md cannot be read",
    code=0,
  ),
  Damage(
    "half of results.json",
    lambda w, draw: truncate(w / "results.json", draw),
    says="results.json cannot be read",
    code=0,
  ),
)
