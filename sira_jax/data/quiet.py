# SPDX-License-Identifier: Apache-2.0
"""Silence for the messages of TensorFlow and seqio that no user can act on.

Only warnings are silenced; an exception travels on untouched.
"""

from collections.abc import Iterator
import contextlib
import os

from absl import logging


@contextlib.contextmanager
def stderr() -> Iterator[None]:
  """Discards all that is written to file descriptor 2.

  TensorFlow's C++ prints lines before its own logging is set up, which no
  environment variable silences. Python's tracebacks are printed after the
  block, hence still seen.
  """
  saved = os.dup(2)
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(null)


@contextlib.contextmanager
def logs() -> Iterator[None]:
  """Lets through errors only of what is logged with absl.

  seqio warns about the weak shuffling of a FunctionDataSource at every call;
  our sources are small enough to be in random order already.
  """
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
