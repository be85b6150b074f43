"""train.py's main in this process, with a config for the tiny base."""

from collections.abc import Iterator
import contextlib
import functools
import os
import pathlib
import types

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from configs import quickstart
from sira_jax import adapted, process, runs, sharding
from tests import tiny_base
import train

SETTINGS = {
  "mixture.languages": ("en",),
  "mixture.zero_shot": ("it",),
  "batches.batch_size": 2,
  "batches.length": 96,
  "optimizer.learning_rate": 0.05,
  "optimizer.warmup_steps": 1,
  "training.steps": 2,
  "training.checkpoint_every": 2,
  "evaluation.examples": 2,
  "decoding.max_new_tokens": 4,
  "decoding.batch_size": 8,
}


def base(folder: pathlib.Path) -> dict[str, str]:
  """Writes the tiny base; the settings that name it."""
  file = folder / "tiny.gguf"
  return {"base.uri": str(file), "base.sha256": tiny_base.write(file)}


@contextlib.contextmanager
def compilations(folder: pathlib.Path) -> Iterator[None]:
  """What is compiled is kept in a folder, and taken from there."""
  names = {
    "jax_compilation_cache_dir": str(folder),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in names}
  for values in (names, before):
    compilation_cache.reset_cache()
    for name, value in values.items():
      jax.config.update(name, value)
    if values is names:
      yield


def config(method: str, changes, *, path: str = r"layers\.\d+\.mlp\.up_proj"):
  """The quickstart's config of a method, for a base of two layers."""
  found = quickstart.get_config(method)
  found.base.sha256 = None
  for group in found.rules.values():
    group.path = ".*" if method == "full" else path
  if method not in ("frozen", "full"):
    del found.rules.attention
  found.update_from_flattened_dict(SETTINGS)
  if method == "frozen":
    found.training.steps = 0
  found.update_from_flattened_dict(changes)
  return found


def layout(config, *, devices: int = 1):
  """Of the eight devices that tests have; of one, few rows will do."""
  return sharding.layout(**config.mesh, devices=jax.devices()[:devices])


def main(
  patch: pytest.MonkeyPatch,
  config,
  workdir: pathlib.Path,
  *,
  before=None,
  devices: int = 1,
) -> None:
  """Trains, or goes on training; gives the workdir's lock back."""
  locks, lock = [], runs.open_workdir
  patch.delenv("SIRA_JAX_TRACEBACK", raising=False)
  patch.setattr(process, "prepare", lambda: None)
  values = {"_CONFIG": config, "_WORKDIR": str(workdir), "_BEFORE": before}
  values |= {"_PLAN": False, "_TOPOLOGY": None}
  for flag, value in values.items():
    patch.setattr(train, flag, types.SimpleNamespace(value=value))
  with patch.context() as patch:
    patch.setattr(runs, "open_workdir", lambda *args: locks.append(lock(*args)))
    found = functools.partial(layout, devices=devices)
    patch.setattr(adapted, "layout", found)
    try:
      train.main(["train.py"])
    finally:
      for number in filter(None, locks):  # a bucket has none
        os.close(number)
