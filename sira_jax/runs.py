# SPDX-License-Identifier: Apache-2.0
"""A run's directory: its config, what is in it, and no second run."""

import json

import ml_collections

from sira_jax import configuration, distributed, evaluation, storage

# What may be changed on the way: no step that was taken depends on it, but for
# the order in which devices add up.
_FREE = {
  "training": {"nonfinite"},
  "mesh": {"data", "fsdp", "tensor", "slices", "experts"},
}


def open_workdir(
  workdir: storage.Path, config: ml_collections.ConfigDict
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
  workdir: storage.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks that a run of this config may use `workdir`; changes nothing.

  Raises:
    ValueError: it cannot be written, holds a run of another config (with the
      fields that differ), or holds files of something else.
  """
  storage.check_writable(workdir)
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
  # What `open_workdir` leaves if it is killed is not something else.
  known = (storage.LOCK, f".{file.name}")
  foreign = (p for p in workdir.glob("*") if not p.name.startswith(known))
  if not file.exists() and any(foreign):
    raise ValueError(
      f"{workdir} is not empty and holds no run (no config.json). Give"
      " another --workdir."
    )


def load_config(workdir: storage.Path) -> ml_collections.ConfigDict:
  """The resolved config of the run in `workdir`.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  storage.check_bucket(workdir)
  file = workdir / "config.json"
  if not file.exists():
    raise ValueError(
      f"There is no run in {workdir} (no config.json). Train first, or name"
      " its --workdir."
    )
  return ml_collections.ConfigDict(_read(file))


def before(workdir: storage.Path, config: ml_collections.ConfigDict) -> str:
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


def check_data(workdir: storage.Path, data: str, *, keep: bool) -> None:
  """Checks that a run's data, by their fingerprint, are those it began with.

  With `keep`, notes them where none are noted.

  Raises:
    ValueError: they are others, so that no score of before is of them.
  """
  file = workdir / "data.json"
  known = storage.load(file, lambda text: json.loads(text)["data"])
  if known not in (None, data):
    raise ValueError(
      f"The run in {workdir} was begun with other data: their fingerprint was"
      f" {str(known)[:12]}, now it is {data[:12]}. Has a file or a data package"
      " changed? Restore it, or give another --workdir."
    )
  if keep and known is None:
    storage.write(file, json.dumps({"data": data}))


def results(workdir: storage.Path) -> str | None:
  """The table of a finished run; None where it is still to be made.

  results.json has all of it; a damaged results.md is written again.
  """
  table = storage.load(workdir / "results.json", _table)
  file = workdir / "results.md"
  if (
    table is not None
    and storage.load(file, lambda text: _same(text, table)) is None
  ):
    storage.write(file, table + "\n")
  return table


def _open(workdir, config):
  """Makes the folder, takes its lock and leaves the config there."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = storage.lock(workdir, "is training", flag="--workdir")
    file, text = workdir / "config.json", configuration.as_json(config)
    if not file.exists() or file.read_text() != text:
      storage.write(file, text)
  except OSError as error:
    raise ValueError(f"The workdir {workdir} cannot be used: {error}") from None
  return lock


def _read(file):
  try:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
      raise ValueError("it holds no JSON object")
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{file} cannot be read: {storage.first_line(error)}. Nothing else of the"
      " run is lost: put a copy of the file back. The run's own command, given"
      " another --workdir, writes the same one as it starts."
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
