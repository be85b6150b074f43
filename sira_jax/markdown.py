# SPDX-License-Identifier: Apache-2.0
"""Tables as Markdown."""

from collections.abc import Iterable, Sequence
import statistics


def table(
  header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1
) -> str:
  """A table whose columns are numbers, but for the first `words`."""
  rule = ["---"] * words + ["---:"] * (len(header) - words)
  lines = (header, rule, *rows)
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
  """Mean ± standard deviation, as far as there are values for it."""
  if not values:
    return ""
  text = f"{statistics.fmean(values):.{digits}f}"
  if len(values) > 1:
    text += f" ± {statistics.stdev(values):.{digits}f}"
  return text
