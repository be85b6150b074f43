# SPDX-License-Identifier: Apache-2.0
"""What each step measured, fetched while the devices take the next one."""

from collections.abc import Mapping, Sequence
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from sira_jax import metrics_log, nonfinite, progress, sharding, storage


@dataclasses.dataclass(frozen=True)
class Sent:
  """A step that was sent off.

  Attributes:
    number: of the step, from 1.
    batch: what it is taken on.
    metrics: what it measures, on the devices.
    waiting: seconds that they may have waited for the next batch.
    begun: when it was sent off.
  """

  number: int
  batch: Mapping[str, np.ndarray]
  metrics: Mapping[str, jax.Array]
  waiting: float
  begun: float


class StepRecords:
  """Fetches, shows and logs what steps measured, each after the next is sent.

  So the devices always have a step to go on with. A step that was left out is
  seen one step late, too: where that is to end the run, the next one must
  change nothing either, which it does by `left_out`.

  Args:
    folder: where the run keeps its metrics.
    log: its metrics.jsonl.
    line: what it shows.
    rates: the learning rate by the number of updates, on the host: to ask the
      devices for it would be to wait for the step that they are taking.
    action: see `nonfinite.ACTIONS`.

  Attributes:
    left_out: for `training.step`: whether the step sent off last was left out,
      on the devices; None where a run goes on after such a step.
    stop: with what the run is to end; no step is recorded after that.
  """

  def __init__(
    self,
    folder: storage.Path,
    *,
    log: metrics_log.MetricsLog,
    line: progress.Progress,
    rates: Sequence[float],
    action: str,
  ):
    self._folder, self._log, self._line = folder, log, line
    self._rates, self._action = rates, action
    self._sent: Sent | None = None
    self.stop: nonfinite.Stop | None = None
    self._ended = time.monotonic()
    stops = action == "stop"
    self.left_out = sharding.born(lambda: jnp.zeros(())) if stops else None

  def add(self, sent: Sent) -> None:
    """Takes a step just sent off, and records the one before.

    If that was left out, both: the next may be the one too many.
    """
    before, self._sent = self._sent, sent
    if self.left_out is not None:
      self.left_out = sent.metrics["skipped"]
    if before is not None and self._record(before):
      self.settle()

  def settle(self) -> None:
    """Waits for the step sent off last, and records it."""
    sent, self._sent = self._sent, None
    if sent is not None and self.stop is None:
      self._record(sent)

  def _record(self, sent) -> bool:
    """Returns whether the step was left out."""
    found = jax.device_get(sent.metrics)
    metrics = {name: float(value) for name, value in found.items()}
    metrics |= {
      "examples": examples(sent.batch),
      "positions": positions(sent.batch),
      "waiting": sent.waiting,
    }
    # The optimizer does not count the steps that were left out.
    updates = sent.number - 1 - len(self._log.skipped)
    metrics["learning_rate"] = float(self._rates[updates])
    self._line.update(sent.number, metrics)
    now = time.monotonic()
    metrics["seconds"] = round(now - max(self._ended, sent.begun), 4)
    self._ended = now
    self._log.append({"step": sent.number, **metrics})
    if metrics["skipped"]:
      self.stop = nonfinite.keep(
        self._folder,
        sent.number,
        sent.batch,
        metrics,
        skipped=self._log.skipped,
        action=self._action,
      )
    return bool(metrics["skipped"])


def positions(batch: Mapping[str, np.ndarray]) -> int:
  """How many tokens a batch might hold, beside the metric `tokens`."""
  found = [batch[k] for k in ("encoder_input_tokens",) if k in batch]
  if "decoder_input_tokens" in batch:  # an encoder's targets are labels
    found.append(batch["decoder_target_tokens"])
  return sum(tokens.size for tokens in found)


def examples(batch: Mapping[str, np.ndarray]) -> int:
  """How many a batch holds; packed rows number theirs from 1."""
  if "decoder_input_tokens" not in batch:  # an encoder: texts with a label
    return int(batch["decoder_loss_weights"].sum())
  segments = batch.get("decoder_segment_ids")
  if segments is None:
    return len(batch["decoder_target_tokens"])
  return int(segments.max(axis=1).sum())
