# SPDX-License-Identifier: Apache-2.0
"""The command that writes a config's data once, for runs without TensorFlow.

    python -m sira_jax.data.cache --config=configs/FILE.py:ARGUMENT --out=FOLDER

Reads files and mixture, and makes tokens and evaluation sets, as a run does;
the base's tokenizer is read, its weights are not. `cached.layout` says what is
in the folder, docs/data.md how a run reads it.
"""

from collections.abc import Mapping
from concurrent import futures
import os
import shutil
from typing import Any

from absl import flags
from etils import epath
import ml_collections
from ml_collections import config_flags

from sira_jax import (
  adapted,
  assembly,
  configuration,
  process,
  run_data,
  validation,
)
from sira_jax.cached import layout, matching
from sira_jax.data import evaluation, mixtures, streaming, tasks


def define_flags() -> None:
  """The command's flags."""
  configuration.let_flags_say_none()
  config_flags.DEFINE_config_file(
    "config", "configs/quickstart.py", "The config file.", lock_config=True
  )
  flags.DEFINE_string("out", None, "The folder to write.", required=True)
  flags.DEFINE_integer("jobs", 1, "Files written at once.", lower_bound=1)


def main(argv) -> None:
  """Writes the cache; a user's mistake ends with its message alone."""
  values = flags.FLAGS
  with process.user_errors():
    process.refuse_arguments(argv)
    config = values["config"].value
    print(write(config, values["out"].value, jobs=values["jobs"].value))


def write(config: ml_collections.ConfigDict, out: str, *, jobs: int = 1) -> str:
  """Writes a config's cache, whole or not at all; returns what there is to say.

  Args:
    config: of a run; its own cache, if it names one, is not read.
    out: the folder, of a disk of this machine. It is written beside it, and
      moved; what is there already is left alone.
    jobs: files written at once.

  Raises:
    ValueError: what a run of the config would refuse, a metric that has no
      name, or a folder with something else in it.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  config.cache = dict(folder=None)
  target = layout.place(out)
  if target.exists() and not (target / layout.MANIFEST).exists():
    raise ValueError(f"{target} is there and is no cache. Give another --out.")
  validation.check(config)
  if target.exists():
    _check_whole(target)
  draft = target.with_name(f".{target.name}.{os.getpid()}")
  draft.mkdir(parents=True)
  try:
    manifest = _fill(draft, config, jobs)
    if target.exists():
      _check_same(target, manifest)
      return f"{target} has this cache already; it is left as it is."
    draft.rename(target)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  examples = sum(one["examples"] for one in manifest["train"])
  size = sum(one["size"] for one in manifest["files"].values())
  return (
    f"Wrote {target}: {examples:,} examples of {len(manifest['train'])} entries"
    f" to train on, {size / 1e6:.1f} MB.\nRead it by --config.cache.folder="
    f"{target}; TensorFlow need not be there."
  )


def _fill(
  folder: epath.Path, config: ml_collections.ConfigDict, jobs: int
) -> dict[str, Any]:
  """Writes all files of a cache; returns the content of its cache.json."""
  settings = config.to_dict()
  known = streaming.known(settings)
  base = adapted.outline(config)
  encoder = assembly.has_encoder(base.model, config)
  mixture = streaming.mixed(known, settings, base)
  vocabulary, chosen = mixture.vocabulary, config.evaluation
  how = dict(rank=chosen.get("rank", ()), encoder=encoder)
  sets = evaluation.evaluation(mixture, **chosen, encoder=encoder)
  assembly.check_prompts(config, sets, base.model.max_length)
  memory = evaluation.memorisation(mixture, examples=chosen.examples, **how)
  validation = ()
  if "selection" in config:
    validation = evaluation.validation(
      mixture, examples=config.selection.examples, **how
    )
    assembly.check_prompts(config, validation, base.model.max_length)
  layout.write_sets(folder, sets, memory, validation)
  ids = layout.ids_type(vocabulary.vocab_size)

  def write(entry):
    layout.write_entry(folder, entry, _examples(mixture, entry), ids)

  with futures.ThreadPoolExecutor(jobs) as pool:
    list(pool.map(write, mixture.train))
  manifest = {
    "format": layout.FORMAT,
    "config": matching.groups(settings),
    "tokenizer": matching.tokenizer(base),
    "encoder": encoder,
    "ids": ids,
    "labels": vocabulary.labels,
    "numbers": vocabulary.values is not None,
    "train": [vars(entry) for entry in mixture.train],
    "evaluation": [vars(entry) for entry in mixture.evaluation],
    "notes": streaming.notes(mixture),
    "files": layout.contents(folder),
  }
  return layout.write_manifest(folder, manifest)


def _examples(mixture: mixtures.Mixture, entry: run_data.Entry):
  """An entry's ids of inputs, and of targets with their end."""
  vocabulary = mixture.vocabulary
  inputs, targets = tasks.tokens(
    entry.task,
    entry.language,
    split="train",
    vocabulary=vocabulary,
    known=mixture.known,
  )
  end = [vocabulary.eos_id] if vocabulary.ends_targets else []
  ended = [[*one, *end] for one in targets]
  return list(zip(inputs, ended, strict=True))


def _check_whole(target: epath.Path) -> None:
  try:
    layout.load(target)
  except ValueError as error:
    raise ValueError(
      f"{error}\nOne that is there is never written over: remove {target}, or"
      " give another --out."
    ) from None


def _check_same(target: epath.Path, manifest: Mapping[str, Any]) -> None:
  """That the cache which is there is this one, wherever its base is from."""
  found = layout.load(target)
  here, there = (
    {k: v for k, v in one["config"].items() if k != "base"}
    for one in (manifest, found)
  )
  changed = configuration.differences(there, here)
  if not changed and layout.identity(found) != layout.identity(manifest):
    changed = ["its rows, or the tokens that the base makes of them"]
  if changed:
    raise ValueError(
      f"{target} has a cache of other data; there and here:\n  "
      + "\n  ".join(changed)
      + "\nGive another --out."
    )


if __name__ == "__main__":
  define_flags()
  process.start(main)
