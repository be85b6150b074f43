# SPDX-License-Identifier: Apache-2.0
"""SoRA's sparsifying schedule: the stages of a run, each with its penalty."""

from collections.abc import Sequence
import dataclasses
import itertools

from sira_jax.training import proximal


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a run with an optimizer of its own.

  Attributes:
    number: from 0.
    steps: how many it takes.
    gates: how SoRA's gates are trained; None where the model has none.
  """

  number: int
  steps: int
  gates: proximal.Gates | None = None


def stages(
  *,
  steps: int,
  penalties: Sequence[float] = (0.0,),
  stage_steps: int | None = None,
  form: str = "paper",
  mean_penalty: float = 0.0,
  learning_rate: float = 1.0,
) -> tuple[Stage, ...]:
  """One stage for each penalty, from dense to sparse.

  Each goes on from what the one before it trained, with its dead ranks pruned,
  and warms its learning rate up anew.

  Source: Ding et al. 2023 (SoRA), algorithm 1, as its authors describe it. The
  released script goes on with the schedule of its first stage, which has
  ended, so that its later stages shrink gates and train nothing; ours train.

  Args:
    steps: of the first stage.
    penalties: lambda of each stage, rising; see `proximal.Gates`.
    stage_steps: of each later stage; None for as many as the first.
    form: see `proximal.Gates`, as the rest.
    mean_penalty: the released code's second penalty.
    learning_rate: of the gates, as a multiple of the run's.

  Raises:
    ValueError: no penalty, penalties that do not rise, no steps, or what
      `proximal.Gates` refuses.
  """
  if isinstance(penalties, str) or not penalties:
    raise ValueError(f"penalties must name one at least, got {penalties!r}.")
  pairs = itertools.pairwise(penalties)
  if any(after <= before for before, after in pairs):
    raise ValueError(
      f"penalties must rise from stage to stage, got {tuple(penalties)}."
    )
  later = steps if stage_steps is None else stage_steps
  if later < 1:
    raise ValueError(f"stage_steps must be at least 1, got {stage_steps}.")
  return tuple(
    Stage(
      number,
      later if number else steps,
      proximal.Gates(
        penalty=penalty,
        form=form,
        mean_penalty=mean_penalty,
        learning_rate=learning_rate,
      ),
    )
    for number, penalty in enumerate(penalties)
  )
