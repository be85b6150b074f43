"""A cache of four entries, and the same data streamed."""

import types

import pytest

from sira_jax import adapted, assembly
from sira_jax.cached import reader
from sira_jax.data import cache, files, streaming
from tests import tiny_run


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
  """Of the config: what a test may change, but not for the others."""
  changes = tiny_run.base(tmp_path_factory.mktemp("base")) | {
    "mixture.languages": ("en", "de"),
    "batches.length": 64,  # too few for some
  }
  return lambda **more: tiny_run.config("lora", changes | more)


@pytest.fixture(scope="session")
def cached(settings, tmp_path_factory):
  """A namespace: config, folder, base, opened cache, data, and the mixture."""
  config = settings()
  folder = tmp_path_factory.mktemp("caches") / "cache"
  told = cache.write(config, str(folder), jobs=2)
  base = adapted.load(config)
  mixture = streaming.mixed(files.known({}), config.to_dict(), base)
  config.cache.folder = str(folder)
  return types.SimpleNamespace(
    config=config,
    folder=folder,
    told=told,
    base=base,
    mixture=mixture,
    opened=reader.opened(folder=str(folder)),
    data=assembly.read(assembly.prepare(config), config, base),
  )
