# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
import tensorflow as tf

import sira_jax.data  # noqa: F401


def test_graphics_devices_are_left_to_jax():
  assert tf.config.get_visible_devices("GPU") == []


@pytest.mark.parametrize("missing", ["seqio", "tensorflow"])
def test_a_missing_package_names_the_extra(missing):
  program = f"import sys; sys.modules[{missing!r}] = None; import sira_jax.data"
  run = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True
  )
  assert f"sira_jax.data needs {missing}" in run.stderr
  assert 'pip install "sira_jax[data]"' in run.stderr
