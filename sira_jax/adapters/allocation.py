# SPDX-License-Identifier: Apache-2.0
"""How many experts each layer gets, from its sensitivity and a budget.

Scores are task -> site -> sensitivity (`sensitivity.sensitivity` of one task
is one of them), counts are site -> experts; a site is a layer's path. Scores
are compared within groups, for a large weight has a large score by its size:

    "module"  sites of one name: all q_proj, all k_proj, ...
    "block"   those of one part of a block: all of self_attn, all of mlp
    "all"     every site
"""

from collections.abc import Callable, Iterable, Mapping
import json
import math
import re

from etils import epath
import numpy as np

from sira_jax.adapters.adapter import AdapterFactory
from sira_jax.adapters.surgery import Rule

Scores = Mapping[str, Mapping[str, float]]
Counts = Mapping[str, int]

_GROUPS = {
  "module": lambda site: site.rpartition(".")[2],
  "block": lambda site: ".".join(site.split(".")[-2:-1]),
  "all": lambda site: "all",
}


def vote(
  scores: Scores, *, percentile: float, group: str = "module"
) -> dict[str, int]:
  """One expert for each task that finds the site sensitive.

  E_W = sum over tasks of 1[s_W > the percentile of the scores in W's group]

  The budget is the percentile: about (1 - percentile / 100) x sites x tasks.

  Source: the rule of LoRA-SMoE's code (chooseblock.ipynb), which keeps the
  highest 60 %, percentile 40, of "module", "all", or the attention's "block".

  Raises:
    ValueError: scores that cannot be compared; an unknown group; a percentile
      that is none.
  """
  if not 0 <= percentile <= 100:
    raise ValueError(f"percentile must be within 0 and 100, got {percentile}.")
  sites, values = _values(scores)
  counts = np.zeros(len(sites), int)
  for members in _members(sites, group):
    part = values[:, members]
    thresholds = np.percentile(part, percentile, axis=1, keepdims=True)
    counts[members] = (part > thresholds).sum(axis=0)
  return dict(zip(sites, counts.tolist(), strict=True))


def allocate(
  scores: Scores,
  *,
  budget: int,
  maximum: int,
  minimum: int = 0,
  cost: Mapping[str, int] | None = None,
  group: str = "module",
) -> dict[str, int]:
  """Experts in proportion to sensitivity, of exactly the budget in total.

  A site's worth v is the mean over tasks of its score divided by its group's
  mean. Its n-th expert is worth v / n, and the sum of what is bought is the
  largest possible. Without costs this is D'Hondt's apportionment of experts
  to v. Ties go to the lower n, then to the site that comes first.

  Args:
    scores: of every task, for the same sites.
    budget: the number of experts; with `cost`, of parameters.
    maximum: of experts at a site.
    minimum: of experts at a site.
    cost: parameters of one expert, by site.
    group: "module", "block" or "all".

  Raises:
    ValueError: scores that cannot be compared; an unknown group; limits that
      make no sense; a budget that cannot be met exactly within them, with the
      nearest that can.
  """
  if not 0 <= minimum <= maximum:
    raise ValueError(
      f"Expected 0 <= minimum <= maximum, got minimum={minimum} and"
      f" maximum={maximum}."
    )
  sites, values = _values(scores)
  worth = np.zeros(len(sites))
  for members in _members(sites, group):
    part = values[:, members]
    means = part.mean(axis=1, keepdims=True)
    worth[members] = (part / np.where(means == 0, 1, means)).mean(axis=0)
  costs = _costs(sites, cost)
  counts = dict.fromkeys(sites, minimum)
  # Sites of one cost differ in worth alone: they buy in the order of worth.
  orders = {}
  for price in dict.fromkeys(costs):
    offers = sorted(
      (-worth[i] / n, n, i)
      for i in range(len(sites))
      for n in range(minimum + 1, maximum + 1)
      if costs[i] == price
    )
    orders[price] = [(-negative, sites[i]) for negative, _, i in offers]
  least = minimum * sum(costs)
  _check_budget(
    budget, least, {price: len(order) for price, order in orders.items()}
  )
  gains = {p: [gain for gain, _ in order] for p, order in orders.items()}
  for price, bought in _knapsack(gains, budget - least).items():
    for _, site in orders[price][:bought]:
      counts[site] += 1
  return counts


def dumps(counts: Counts) -> str:
  """Site -> experts as JSON, for `load`."""
  return json.dumps(dict(counts), indent=4) + "\n"


def load(file: epath.Path) -> dict[str, int]:
  """Reads a file of what `dumps` gave.

  Raises:
    ValueError: it is no JSON object of numbers of experts.
  """
  try:
    counts = json.loads(file.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{file} is no JSON: {error}.") from None
  if not isinstance(counts, dict) or not all(
    type(count) is int and count >= 0 for count in counts.values()
  ):
    raise ValueError(
      f'{file}: expected {{"site": experts, ...}} with whole numbers from 0.'
    )
  return counts


def to_official(counts: Counts) -> dict[str, int]:
  """Counts by the names of LoRA-SMoE's expert-number file.

  These are Hugging Face's, such as "model.layers.0.self_attn.q_proj"; a site
  without experts is left out. Their notebook strips ".weight" from a
  parameter's name; the "model." before it is Hugging Face's habit.
  """
  return {f"model.{site}": count for site, count in counts.items() if count}


def from_official(numbers: Counts, *, sites: Iterable[str]) -> dict[str, int]:
  """What `to_official` was given, for a model of these sites.

  Raises:
    ValueError: a name that is none of the sites.
  """
  counts = {site: numbers.get(f"model.{site}", 0) for site in sites}
  unknown = sorted(set(numbers) - {f"model.{site}" for site in counts})
  if unknown:
    raise ValueError(
      f"{len(unknown)} of the file's {len(numbers)} names are no sites, such as"
      f" {unknown[0]!r}; expected names such as"
      f" {[f'model.{site}' for site in counts][:1]}."
    )
  return counts


def rules(
  counts: Counts, factory: Callable[[int], AdapterFactory]
) -> tuple[Rule, ...]:
  """One rule for each number of experts; sites with none stay frozen.

  Args:
    counts: site -> experts.
    factory: a number of experts -> a method's settings.
  """
  found = []
  for number in sorted(set(counts.values()) - {0}):
    sites = [re.escape(site) for site in counts if counts[site] == number]
    found.append(Rule("|".join(sites), factory(number)))
  return tuple(found)


def grid(
  counts: Counts,
) -> tuple[list[str], list[str], dict[tuple[str, str], int]]:
  """Layers, modules, and (layer, module) -> experts, for a picture.

  A layer is a path up to its first number, a module is what follows: all of
  it, or its last name where that says enough.
  """
  cells = {}
  for site, count in counts.items():
    names = site.split(".")
    at = next((i for i, name in enumerate(names, 1) if name.isdigit()), 0)
    cells[".".join(names[:at]), ".".join(names[at:])] = count
  modules = list(dict.fromkeys(module for _, module in cells))
  short = {module: module.rpartition(".")[2] for module in modules}
  if len(set(short.values())) < len(modules):
    short = {module: module for module in modules}
  return (
    list(dict.fromkeys(layer for layer, _ in cells)),
    list(short.values()),
    {(layer, short[module]): n for (layer, module), n in cells.items()},
  )


def table(counts: Counts) -> str:
  """Experts as text: a row a layer, a column a module, and their sums."""
  layers, modules, cells = grid(counts)
  rows = {
    layer: [cells.get((layer, module)) for module in modules]
    for layer in layers
  }
  total = lambda numbers: sum(n or 0 for n in numbers)  # noqa: E731
  rows["sum"] = [total(column) for column in zip(*rows.values(), strict=True)]
  lines = [["", *modules, "sum"]]
  for name, numbers in rows.items():
    shown = ["-" if n is None else str(n) for n in numbers]
    lines.append([name, *shown, str(total(numbers))])
  first, *widths = (
    max(map(len, column)) for column in zip(*lines, strict=True)
  )
  return "\n".join(
    "  ".join([name.ljust(first), *map(str.rjust, cells, widths)])
    for name, *cells in lines
  )


def _values(scores):
  """The sites, in the first task's order, and scores [tasks sites]."""
  if not scores:
    raise ValueError("Expected the scores of at least one task, got none.")
  first, *others = scores
  sites = list(scores[first])
  for task in others:
    if set(scores[task]) != set(sites):
      different = sorted(set(scores[task]) ^ set(sites))
      raise ValueError(
        f"Every task must score the same sites, but {task!r} and {first!r}"
        f" differ in {len(different)}, such as {different[0]!r}."
      )
  if not sites:
    raise ValueError(
      f"Expected the scores of some sites, got none in {first!r}."
    )
  values = np.array([[own[site] for site in sites] for own in scores.values()])
  wrong = np.argwhere(~(np.isfinite(values) & (values >= 0)))
  if len(wrong):
    task, site = wrong[0]
    raise ValueError(
      f"Scores must be finite and at least 0, got {values[task, site]} for"
      f" {sites[site]!r} in {list(scores)[task]!r}."
    )
  return sites, values


def _members(sites, group):
  """The positions of each group's sites."""
  if group not in _GROUPS:
    raise ValueError(f"Unknown group {group!r}; there are {sorted(_GROUPS)}.")
  groups = {}
  for i, site in enumerate(sites):
    groups.setdefault(_GROUPS[group](site), []).append(i)
  return groups.values()


def _costs(sites, cost):
  if cost is None:
    return [1] * len(sites)
  lacking = [site for site in sites if cost.get(site, 0) < 1]
  if lacking:
    raise ValueError(
      f"cost must give every site at least 1 parameter an expert; it does not"
      f" for {len(lacking)} of {len(sites)}, such as {lacking[0]!r}."
    )
  return [cost[site] for site in sites]


def _check_budget(budget, least, numbers):
  """Whether `least` and so many experts of each price can make the budget."""
  unit = math.gcd(*numbers)
  totals = 1  # bit n: whether n units can be spent
  for price, left in numbers.items():
    chunk = 1
    while left:
      chunk = min(chunk, left)
      totals |= totals << chunk * (price // unit)
      left -= chunk
      chunk *= 2
  units, rest = divmod(budget - least, unit)
  units = min(max(units, -1), totals.bit_length())
  if units >= 0 and not rest and totals >> units & 1:
    return
  below = (totals & ((1 << units + 1) - 1)).bit_length() - 1
  above = totals >> units + 1
  nearest = [below] if below >= 0 else []
  if above:
    nearest.append(units + (above & -above).bit_length())
  most = least + unit * (totals.bit_length() - 1)
  raise ValueError(
    f"budget={budget} cannot be met exactly. Within minimum and maximum totals"
    f" go from {least} to {most}; the nearest are"
    f" {[least + unit * total for total in nearest]}."
  )


def _knapsack(gains, budget):
  """price -> how many to buy, for the largest gain that spends the budget.

  Dynamic programming over prices. `gains` of a price are in falling order, so
  that the best n of them are the first n.
  """
  unit = math.gcd(*gains)
  units = budget // unit
  best = np.full(units + 1, -np.inf)
  best[0] = 0.0
  reached, choices = 0, []
  for price, order in gains.items():
    step = price // unit
    before, best = best, np.full(units + 1, -np.inf)
    choice = np.zeros(units + 1, np.int32)
    for number, gain in enumerate(np.cumsum([0.0, *order])):
      start = number * step
      stop = min(start + reached, units) + 1
      if start > units:
        break
      offer = before[: stop - start] + gain
      better = offer > best[start:stop]
      np.copyto(best[start:stop], offer, where=better)
      choice[start:stop][better] = number
    reached = min(reached + step * len(order), units)
    choices.append((price, step, choice))
  bought = {}
  for price, step, choice in reversed(choices):
    bought[price] = int(choice[units])
    units -= bought[price] * step
  return bought
