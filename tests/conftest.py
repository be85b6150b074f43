"""Eight devices for every test, of one CPU; one for the scripts they start.

Accelerators are left alone, by the scripts too.
"""

import os

import jax

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count=8"
_BEFORE = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_BEFORE} {_FLAG}".strip()
jax.devices()  # which reads the flags, once
os.environ["XLA_FLAGS"] = _BEFORE
