"""Eight devices for every test, of one CPU; one for the scripts they start.

Accelerators are left alone, by the scripts too.
"""

from collections.abc import Iterator
import gc
import os

import jax
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count=8"
_BEFORE = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_BEFORE} {_FLAG}".strip()
jax.devices()  # which reads the flags, once
os.environ["XLA_FLAGS"] = _BEFORE


@pytest.fixture(autouse=True, scope="module")
def _without_old_programs() -> Iterator[None]:
  """What a file's tests compiled goes with them.

  A program takes tens of memory maps, and Linux gives a process 65,530 in all:
  with no more of them, XLA crashes.
  """
  yield
  jax.clear_caches()
  gc.collect()
