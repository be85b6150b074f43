# SPDX-License-Identifier: Apache-2.0
"""Steps whose loss or gradient is no finite number: what is kept and said.

The step itself leaves such an update out (`training.step.make`); here is what
becomes of the run.
"""

from collections.abc import Mapping, Sequence
import io

import numpy as np

from sira_jax import storage

ACTIONS = ("stop", "skip")
# What a script exits with then: "data error" of BSD's sysexits.
EXIT = 65
# So many in a row end the run all the same: it will not recover by itself.
IN_A_ROW = 10
# So many batches are kept of those that were left out.
KEPT = 3


class Stop(Exception):
  """The run ends here; its text says why, and what to try.

  Args:
    text: what to say.
    good: the last step before those that were left out.
  """

  def __init__(self, text: str, *, good: int):
    super().__init__(text)
    self.good = good


def keep(
  folder: storage.Path,
  step: int,
  batch: Mapping[str, np.ndarray],
  metrics: Mapping[str, float],
  *,
  skipped: Sequence[int],
  action: str,
) -> Stop | None:
  """Keeps the batch of a step that was left out, and says it.

  Its arrays go to `folder`/nonfinite_STEP.npz with the metrics beside them, as
  "metrics.loss" and so on.

  Args:
    folder: where the run keeps its metrics.
    step: its number.
    batch: what it was taken on.
    metrics: of the step.
    skipped: the steps left out so far, this one last.
    action: "stop" or "skip".

  Returns:
    With what the run is to end, or None where it goes on.
  """
  row = in_a_row(skipped)
  stop = action == "stop" or row >= IN_A_ROW
  file = folder / f"nonfinite_{step}.npz"
  if stop or len(skipped) <= KEPT:
    stream = io.BytesIO()
    named = {f"metrics.{name}": value for name, value in metrics.items()}
    np.savez(stream, **batch, **named)
    storage.write(file, stream.getvalue())
  where = f"Its batch is in {file}." if file.exists() else ""
  what = (
    f"Step {step} has a loss of {metrics['loss']:g} and a gradient of norm"
    f" {metrics['gradient_norm']:g}"
  )
  if not stop:
    print(f"{what}: it was left out, {row} in a row. {where}", flush=True)
    return None
  others = f", as {row - 1} before it," if row > 1 else ""
  advice = (
    "Lower config.optimizer.learning_rate or raise warmup_steps, take"
    " config.base.dtype=float32, or look at the batch."
  )
  if action == "stop":
    advice += (
      " To leave such steps out and go on, give the same command"
      " --config.training.nonfinite=skip."
    )
  return Stop(
    f"{what}; its update{others} was not applied, and the last good state is"
    f" saved as step {step - 1}. {where} {advice}",
    good=step - 1,
  )


def in_a_row(skipped: Sequence[int]) -> int:
  """How many of the last steps were left out without one between them."""
  return sum(
    step == skipped[-1] - back for back, step in enumerate(reversed(skipped))
  )
