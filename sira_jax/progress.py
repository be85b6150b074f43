# SPDX-License-Identifier: Apache-2.0
"""What a long run says of itself: a live line, or a line now and then."""

from collections.abc import Mapping
import sys
import time


class Progress:
  """Shows training's progress, with rates over the time since the last show.

  On a terminal one line is written over and over; elsewhere a line appears
  every `every` seconds, and the last.

  Args:
    total: steps of the whole run.
    start: steps taken before.
    every: seconds between lines where the output is no terminal.
  """

  def __init__(self, *, total: int, start: int = 0, every: float = 15.0):
    self._total, self._live = total, sys.stdout.isatty()
    self._every = 0.2 if self._live else every
    self._begun, self._start = time.monotonic(), start
    self._shown = self._begun
    self._examples = self._tokens = self._waited = self._waiting = 0.0
    self._real = self._positions = 0.0

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Counts one finished step, and shows it if it is time.

    Args:
      step: its number, from 1.
      metrics: loss, examples, tokens, the positions that they have, the seconds
        "waiting" for data, and those of routing if there are any.
    """
    self._real += metrics["tokens"]
    self._positions += metrics["positions"]
    self._waiting += metrics["waiting"]
    self._examples += metrics["examples"]
    self._tokens += metrics["tokens"]
    now = time.monotonic()
    last = step == self._total
    if now - self._shown < self._every and not last:
      return
    seconds = max(now - self._shown, 1e-9)
    left = (now - self._begun) / (step - self._start) * (self._total - step)
    text = f"step {step}/{self._total}  loss {metrics['loss']:.3f}"
    if "balance_loss" in metrics:
      text += f"  balance {metrics['balance_loss']:.2f}"
      text += f"  dropped {100 * metrics['dropped_fraction']:.1f}%"
    text += f"  {self._examples / seconds:.1f} examples/s"
    text += f"  {self._tokens / seconds:.0f} tokens/s"
    if self._waiting >= 0.01 * seconds:
      text += f"  waiting for data {100 * self._waiting / seconds:.0f}%"
    self._say(f"{text}  {duration(left)} left", last)
    self._waited += self._waiting
    self._shown, self._examples, self._tokens = now, 0.0, 0.0
    self._waiting = 0.0

  def data(self) -> str:
    """Shares of the time that waits for data, and of positions without one."""
    seconds = max(time.monotonic() - self._begun, 1e-9)
    waited = (self._waited + self._waiting) / seconds
    empty = 1 - self._real / max(self._positions, 1)
    return (
      f"Waiting for data took at most {waited:.1%} of the time. Of the"
      f" positions {empty:.1%} were padding."
    )

  def pause(self, seconds: float) -> None:
    """Leaves out some time just gone, which was not training's."""
    self._begun += seconds
    self._shown += seconds

  def _say(self, text, last):
    if self._live:
      print(f"\r\033[K{text}", end="\n" if last else "", flush=True)
    else:
      print(text, flush=True)


def duration(seconds: float) -> str:
  """Seconds as "1h02m", "3m20s" or "45s"."""
  whole = round(seconds)
  if whole >= 3600:
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
  return f"{whole // 60}m{whole % 60:02}s" if whole >= 60 else f"{whole}s"
