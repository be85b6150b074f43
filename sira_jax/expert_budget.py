# SPDX-License-Identifier: Apache-2.0
"""Turns a config's rules into rules with experts allocated layer by layer."""

from collections.abc import Mapping
import re
from typing import Any

from flax import nnx

from sira_jax import configuration
from sira_jax.adapters import allocation, hosts, surgery

UNITS = ("experts", "parameters")


def decide(
  scores: allocation.Scores,
  *,
  costs: Mapping[str, int],
  budget: int | None = None,
  unit: str = "experts",
  minimum: int = 0,
  maximum: int = 8,
  percentile: float | None = None,
  group: str = "module",
  samples: int = 16,
) -> dict[str, int]:
  """Site -> experts, by a budget or by the released code's vote.

  Args:
    scores: task -> site -> sensitivity.
    costs: parameters of one expert, by site.
    budget: the exact total of all sites; see `allocation.allocate`.
    unit: of the budget: "experts" or "parameters".
    minimum: of experts at a site, within a budget.
    maximum: of experts at a site, within a budget.
    percentile: instead of a budget; see `allocation.vote`.
    group: what is compared with what: "module", "block" or "all".
    samples: examples of each task that the sensitivity was measured on.

  Raises:
    ValueError: as `check`, or what `allocation` refuses.
  """
  check(budget=budget, unit=unit, percentile=percentile, samples=samples)
  if percentile is not None:
    return allocation.vote(scores, percentile=percentile, group=group)
  return allocation.allocate(
    scores,
    budget=budget,
    minimum=minimum,
    maximum=maximum,
    cost=costs if unit == "parameters" else None,
    group=group,
  )


def check(
  *,
  budget: int | None = None,
  unit: str = "experts",
  percentile: float | None = None,
  samples: int = 16,
  **_: Any,
) -> None:
  """Checks the settings of `decide` that need no scores.

  Raises:
    ValueError: neither or both of budget and percentile, an unknown unit, or
      no sample.
  """
  if (budget is None) == (percentile is None):
    raise ValueError(
      f"config.allocation needs a budget ({budget}) or a percentile"
      f" ({percentile}), and not both."
    )
  if unit not in UNITS:
    raise ValueError(
      f"config.allocation.unit is {unit!r}; there are {', '.join(UNITS)}."
    )
  if samples < 1:
    raise ValueError(
      f"config.allocation.samples must be at least 1, got {samples}."
    )


def costs(
  model: nnx.Module, groups: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
  """Path -> parameters of one expert, of each layer that a rule matches.

  Args:
    model: plain.
    groups: the config's rules.

  Raises:
    ValueError: a rule that matches no layer, or whose method has no experts.
  """
  found = {}
  for name, fields in sorted(groups.items()):
    if "experts" not in fields:
      raise ValueError(
        f"config.rules.{name}: {fields['method']} has no experts to allocate;"
        " take lora_smoe, or drop config.allocation."
      )
    one = configuration.factory(fields, experts=1)
    matched = _matched(model, fields["path"])
    if not matched:
      raise ValueError(
        f"config.rules.{name}: the path {fields['path']!r} matches no linear"
        " layer of the model."
      )
    for path, layer in matched.items():
      cost = one.parameters(hosts.fold(layer).d, hosts.fold(layer).f)
      found.setdefault(path, cost)
  return {path: found[path] for path in surgery.linears(model) if path in found}


def rules(
  model: nnx.Module,
  groups: Mapping[str, Mapping[str, Any]],
  counts: Mapping[str, int],
) -> tuple[surgery.Rule, ...]:
  """The config's rules with each layer's own number of experts."""
  found, left = [], dict(counts)
  for _, fields in sorted(groups.items()):
    matched = _matched(model, fields["path"])
    own = {path: left.pop(path) for path in matched if path in left}
    found += allocation.rules(
      own, lambda n, fields=fields: configuration.factory(fields, experts=n)
    )
  return tuple(found)


def _matched(model, pattern):
  return {
    path: layer
    for path, layer in surgery.linears(model).items()
    if re.fullmatch(pattern, path)
  }
