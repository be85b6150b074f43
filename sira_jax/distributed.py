# SPDX-License-Identifier: Apache-2.0
"""Several processes as one run: how they start, agree and end.

Every process runs the same program on the same data, and holds a part of each
array. The first one alone writes and prints; what only one of them can know,
it tells the others.
"""

from collections.abc import Callable, Sequence
import os
import signal
import sys

from absl import flags
import jax
from jax.experimental import multihost_utils
import numpy as np

# Seconds until the others of a process that has died or is frozen are ended.
PATIENCE = 60
# Letters of what the first process tells the others.
_MESSAGE = 4096


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """The flags of a script that `join` reads; once for several scripts."""
  if "distributed" in values:
    return
  flags.DEFINE_boolean(
    "distributed",
    False,
    "One of several processes, which SLURM, Open MPI, Kubernetes or a Cloud TPU"
    " tell of each other.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of the first of several processes, where nothing tells of it.",
    flag_values=values,
  )
  for name, meaning in (
    ("processes", "Their number, with --coordinator."),
    ("process", "This one's number, from 0."),
  ):
    flags.DEFINE_integer(name, None, meaning, flag_values=values)


def join() -> None:
  """Joins the other processes of this run, if flags speak of any.

  Before anything else of JAX. A process that dies, or is frozen, ends the
  others within `PATIENCE` seconds; all of them, started again, go on from the
  last checkpoint.

  Raises:
    ValueError: flags that do not go together, or nothing that tells of the
      others.
  """
  given = {
    name: flags.FLAGS[name].value
    for name in ("coordinator", "processes", "process")
  }
  lacking = [f"--{name}" for name, value in given.items() if value is None]
  if len(lacking) == 3 and not flags.FLAGS["distributed"].value:
    return
  if lacking and len(lacking) < 3:
    raise ValueError(
      "--coordinator, --processes and --process go together; there is no"
      f" {', '.join(lacking)}."
    )
  number, count = given["process"], given["processes"]
  if count is not None and not 0 <= number < count:
    raise ValueError(
      f"--process must be from 0 to {count - 1}, as there are --processes="
      f"{count}; got {number}."
    )
  try:
    jax.distributed.initialize(
      given["coordinator"],
      count,
      number,
      heartbeat_timeout_seconds=PATIENCE,
    )
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      f"The processes did not find each other: {error}. Nothing here tells of"
      " them unless SLURM, Open MPI, Kubernetes or a Cloud TPU does: give"
      " --coordinator, --processes and --process to each."
    ) from None
  if not first():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def several() -> bool:
  """Whether this run has more than one process."""
  return jax.process_count() > 1


def first() -> bool:
  """Whether this is the process that writes and prints."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Until all processes are here."""
  if several():
    multihost_utils.sync_global_devices(name)


def agreed(text: str | None) -> str | None:
  """What the first process says, on every process; of at most 4096 bytes."""
  if not several():
    return text
  data = np.zeros(_MESSAGE + 1, np.uint8)
  if text is not None:
    letters = np.frombuffer(text.encode()[:_MESSAGE], np.uint8)
    data[0], data[1 : 1 + len(letters)] = 1, letters
  data = np.asarray(multihost_utils.broadcast_one_to_all(data))
  said = bytes(data[1:]).rstrip(b"\0").decode(errors="ignore")
  return said if data[0] else None


def told(text: str) -> str:
  """What the first process says, on every process; of any length.

  A text of millions of letters goes through the devices' memory as it is.
  """
  if not several():
    return text
  data = np.frombuffer(text.encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  if not size:
    return ""
  if not first():
    data = np.zeros(size, np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))).decode()


def everywhere(fine: bool) -> bool:
  """Whether it is so on every process."""
  if not several():
    return fine
  return bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def once(function: Callable[[], object]) -> None:
  """Calls it on the first process alone.

  Raises:
    ValueError: on every process, what it raised there.
  """
  problem = None
  if first():
    try:
      function()
    except ValueError as error:
      problem = str(error)
  problem = agreed(problem)
  if problem is not None:
    raise ValueError(problem)


def stopping(received: Sequence[signal.Signals], step: int) -> bool:
  """Whether the run is to stop after this step, the same on every process.

  Of several processes, one that gets SIGTERM tells the others by JAX's
  preemption service, which picks a step that none of them has passed.

  Args:
    received: signals of this process alone.
    step: the one just taken, counted over all of the run.
  """
  if not several():
    return bool(received)
  return multihost_utils.reached_preemption_sync_point(step)


def leave(code: int) -> None:
  """Ends this process at once.

  An ordinary exit would wait for the other processes, who wait for this one,
  or break a thread off in the midst of what it compiles.
  """
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(code)
