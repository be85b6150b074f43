# SPDX-License-Identifier: Apache-2.0
"""Puts adapters into a model by rules, and merges them away again.

A layer keeps its identity: its class becomes a subclass, its paths,
attributes and `isinstance` answers stay, and one attribute, `adapter`, joins.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import re
import zlib

from flax import nnx
import jax

from sira_jax.adapters.adapter import Adapter, AdapterFactory


@dataclasses.dataclass(frozen=True)
class Rule:
  """Which layers get which adapter.

  Attributes:
    path: a regular expression that a layer's whole path must match, such as
      r"layers\\.\\d+\\.self_attn\\.[qv]_proj".
    factory: what a method returns, such as `sira(experts=8)`.
  """

  path: str
  factory: AdapterFactory


@dataclasses.dataclass(frozen=True)
class Site:
  """A layer that was adapted: its path, sizes d -> f, and settings."""

  path: str
  d: int
  f: int
  factory: AdapterFactory

  @property
  def parameters(self) -> int:
    """How many numbers its adapter trains."""
    return self.factory.parameters(self.d, self.f)


class Adapted(nnx.Linear):
  """A frozen `nnx.Linear` and its adapter: the sum of both outputs."""

  adapter: Adapter

  def __call__(self, inputs, *args, **kwargs):
    """x W0 (+ bias) + the adapter's term, in the frozen output's dtype."""
    y = super().__call__(inputs, *args, **kwargs)
    return y + self.adapter(inputs).astype(y.dtype)


def adapt(
  model: nnx.Module, rules: Sequence[Rule], *, rngs: nnx.Rngs
) -> tuple[Site, ...]:
  """Adapts, in place, each `nnx.Linear` of `model` that a rule matches.

  The first rule that matches a layer decides. What a layer's adapter starts
  from depends on `rngs` and the layer's path alone. The model's output is
  unchanged until the adapters are trained.

  Returns:
    The adapted sites, in the model's order.

  Raises:
    ValueError: no rules; a rule that decides no layer; a rule that matches a
      layer with a kernel that is no plain `nnx.Linear`, or one adapted before.
      Nothing is changed then.
  """
  if not rules:
    raise ValueError("adapt needs at least one Rule.")
  linears, others = _layers(model)
  for rule in rules:
    _check(rule, linears, others)
  sites, used = {}, set()
  for path, layer in linears.items():
    rule = next((r for r in rules if re.fullmatch(r.path, path)), None)
    if rule is None or id(layer) in sites:
      continue
    used.add(rule)
    site = Site(path, layer.in_features, layer.out_features, rule.factory)
    sites[id(layer)] = site
  unused = [rule.path for rule in rules if rule not in used]
  if unused:
    raise ValueError(
      f"The rules {unused} decide no layer: rules before them match all that"
      " they match. Put the more specific rule first."
    )
  key = rngs.params()
  for site in sites.values():
    _graft(linears[site.path], site, key)
  return tuple(sites.values())


def merge(model: nnx.Module) -> None:
  """Adds each adapter's weight to its layer and removes the adapter, in place.

  Raises:
    ValueError: an adapter whose term no single weight equals, named with its
      path (nothing is changed then); or a model without adapters.
  """
  sites = [
    (_name(path), module)
    for path, module in nnx.iter_modules(model)
    if isinstance(module, Adapted)
  ]
  if not sites:
    raise ValueError("The model has no adapters to merge.")
  deltas = []
  for path, layer in sites:
    try:
      deltas.append(layer.adapter.delta())
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
  for (_, layer), delta in zip(sites, deltas, strict=True):
    kernel = layer.kernel[...]
    layer.kernel[...] = (kernel + delta).astype(kernel.dtype)
    del layer.adapter
    layer.__class__ = nnx.Linear


def _layers(model):
  """(path -> Linear, path -> other layer with a kernel), all paths of each."""
  linears, others = {}, {}
  for path, module in _modules(model):
    if type(module) in (nnx.Linear, Adapted):
      linears[_name(path)] = module
    elif hasattr(module, "kernel"):
      others[_name(path)] = module
  return linears, others


def _modules(model):
  """(path, module) for every path, so that a shared module counts by each."""
  aliases = {
    paths[0]: paths[1:] for paths in nnx.find_duplicates(model, only=nnx.Module)
  }

  def names(path):
    if not path:
      return [path]
    # An alias inside of what it names is a cycle, which has no last path.
    others = [p for p in aliases.get(path, ()) if p[: len(path)] != path]
    return [
      (*parent, own[-1])
      for own in (path, *others)
      for parent in names(own[:-1])
    ]

  for path, module in nnx.iter_modules(model):
    for name in names(path):
      yield name, module


def _check(rule, linears, others):
  try:
    pattern = re.compile(rule.path)
  except re.error as error:
    raise ValueError(f"The rule {rule.path!r} is no regex: {error}.") from None
  matched = [path for path in linears if pattern.fullmatch(path)]
  adapted = [path for path in matched if isinstance(linears[path], Adapted)]
  if adapted:
    raise ValueError(
      f"The rule {rule.path!r} matches {adapted[0]!r}, which has an adapter"
      " already: adapt once, with all rules, or merge first."
    )
  refused = [path for path in others if pattern.fullmatch(path)]
  if refused:
    kind = type(others[refused[0]]).__name__
    raise ValueError(
      f"The rule {rule.path!r} matches {refused[0]!r}, a {kind}; only plain"
      " nnx.Linear layers can be adapted. Narrow the rule."
    )
  if not matched:
    near = difflib.get_close_matches(rule.path, linears, n=3, cutoff=0.0)
    raise ValueError(
      f"The rule {rule.path!r} matches no layer. It must match a whole path;"
      f" the nearest of the model's {len(linears)} linear layers are {near}."
    )


def _graft(layer, site, key):
  seed = zlib.crc32(site.path.encode())
  layer.adapter = Adapter(
    site.d,
    site.f,
    factory=site.factory,
    key=jax.random.fold_in(key, seed),
    seed=seed,
  )
  layer.__class__ = Adapted


def _name(path):
  return ".".join(map(str, path))
