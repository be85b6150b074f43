"""Eight devices for every test, of one CPU; one for the scripts they start."""

import os

import jax

_FLAG = "--xla_force_host_platform_device_count=8"
_BEFORE = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_BEFORE} {_FLAG}".strip()
jax.devices()  # which reads the flags, once
os.environ["XLA_FLAGS"] = _BEFORE
