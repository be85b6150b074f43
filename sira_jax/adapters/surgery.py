# SPDX-License-Identifier: Apache-2.0
"""Puts adapters into a model by rules, and merges them away again.

A layer keeps its identity: its class becomes a subclass, its paths,
attributes and `isinstance` answers stay, and one attribute, `adapter`, joins.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import functools
import math
import re
from typing import Protocol
import zlib

from flax import nnx
import jax
import numpy as np

from sira_jax import sharding
from sira_jax.adapters import (
  adamix,
  adapted_layers,
  heads,
  hosts,
  rescaling,
  tuning,
)
from sira_jax.adapters import adapter as adapter_lib
from sira_jax.adapters.adapted_layers import Adapted
from sira_jax.adapters.variables import Axes, BaseParam, HeadParam

Adapter = adapter_lib.Adapter | adamix.AdaMix | rescaling.Rescaling


class Factory(Protocol):
  """What a method returns: makes adapters, and tells what they are and cost."""

  method: str

  def parameters(self, d: int, f: int) -> int:
    """How many numbers the adapter of a d -> f layer trains."""

  def active(self, d: int, f: int) -> int:
    """How many numbers of the adapter one token uses."""

  def flops(self, d: int, f: int) -> int:
    """Of the adapter's matmuls in a token's forward pass."""

  def describe(self) -> str:
    """In a few words, for a run's reader."""

  def make(
    self, d: int, f: int, *, key: jax.Array, seed: int, axes: Axes
  ) -> Adapter:
    """The adapter of a d -> f layer whose dimensions have these words."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Which layers get which adapter.

  Attributes:
    path: a regular expression that a layer's whole path must match, such as
      r"layers\\.\\d+\\.self_attn\\.[qv]_proj".
    factory: what a method returns, such as `sira(experts=8)`.
  """

  path: str
  factory: Factory | tuning.FullFactory


@dataclasses.dataclass(frozen=True)
class Site:
  """A layer that was adapted, a module that full fine-tuning frees, or a head.

  Attributes:
    path: in the model.
    shape: (d, f) of a layer; of a freed module, of its largest parameter.
    factory: the settings.
    parameters: how many numbers are trained there; a router that several
      layers share counts at the first of them.
  """

  path: str
  shape: tuple[int, ...]
  factory: Factory | tuning.FullFactory | heads.HeadFactory
  parameters: int


def adapt(
  model: nnx.Module, rules: Sequence[Rule], *, rngs: nnx.Rngs
) -> tuple[Site, ...]:
  """Adapts, in place, each linear layer of `model` that a rule matches.

  These are `nnx.Linear`, `nnx.LinearGeneral` and `nnx.Einsum` where they
  multiply the last axes by one weight; see `hosts`.

  The first rule that matches a layer decides. What a layer's adapter starts
  from depends on `rngs` and the layer's path alone (of several paths to one
  layer, the first). The model's output is unchanged until the adapters are
  trained.

  A rule of full fine-tuning matches any module that holds parameters, and
  makes them trainable.

  Returns:
    The adapted sites, in the model's order.

  Raises:
    ValueError: no rules; a rule that decides no layer; a rule that matches a
      layer with a kernel that is none of these, or one adapted before;
      a router to be shared, in a model that does not say which layers read the
      same input. Nothing is changed then.
  """
  if not rules:
    raise ValueError("adapt needs at least one Rule.")
  owners, layers = _owners(model), linears(model)
  for rule in rules:
    _check(rule, layers, owners)
  chosen, used = {}, set()
  for path, module in owners.items():
    rule = next((r for r in rules if _decides(r, path, module)), None)
    if rule is not None and id(module) not in chosen:
      used.add(rule)
      chosen[id(module)] = rule.factory
  unused = [rule.path for rule in rules if rule not in used]
  if unused:
    raise ValueError(
      f"The rules {unused} decide no layer: rules before them match all that"
      " they match. Put the more specific rule first."
    )
  sharing = _sharing(model, chosen)
  grafts = []
  for path, module in list(nnx.iter_modules(model)):
    if id(module) not in chosen:
      continue
    factory = chosen[id(module)]
    if _is_full(factory):
      tuning.free(module)
    else:
      grafts.append((_name(path), module, factory))
  _graft(grafts, rngs.params())
  for first, *others in sharing:
    for other in others:
      other.adapter.router = first.adapter.router
  return sites(model)


def linears(model: nnx.Module) -> dict[str, nnx.Module]:
  """Path -> layer of each that can be adapted, or is, in the model's order.

  A layer of several paths is there by each of them.
  """
  return {p: m for p, m in _owners(model).items() if _is_linear(m)}


def adapted(model: nnx.Module) -> dict[str, Adapted]:
  """Path -> layer of each that has an adapter, in the model's order."""
  return {
    _name(path): module
    for path, module in nnx.iter_modules(model)
    if isinstance(module, Adapted)
  }


def sites(model: nnx.Module) -> tuple[Site, ...]:
  """The sites of an adapted model, in its order."""
  found, routers = [], set()
  for path, module in nnx.iter_modules(model):
    if isinstance(module, Adapted):
      shape = (hosts.fold(module).d, hosts.fold(module).f)
      parameters = module.adapter.factory.parameters(*shape)
      router = getattr(module.adapter, "router", None)
      if id(router) in routers and router.settings.trained:
        parameters -= router.kernel.size
      if router is not None:
        routers.add(id(router))
      factory = module.adapter.factory
    else:
      new = tuning.owned(module, HeadParam)
      freed = (new or tuning.owned(module, BaseParam)).values()
      if not freed:
        continue
      shape = max((leaf.shape for leaf in freed), key=math.prod)
      parameters = sum(leaf.size for leaf in freed)
      factory = module.factory if new else tuning.FullFactory("full")
    found.append(Site(_name(path), shape, factory, parameters))
  return tuple(found)


def merge(model: nnx.Module) -> None:
  """Makes each adapter part of its layer and removes it, in place.

  Weights that full fine-tuning freed are frozen again, and so is a head.

  Raises:
    ValueError: an adapter whose term no single weight equals, named with its
      path (nothing is changed then); or a model without adapters.
  """
  layers = adapted(model)
  modules = [module for _, module in nnx.iter_modules(model)]
  freed = [m for m in modules if tuning.owned(m, BaseParam)]
  new = [m for m in modules if tuning.owned(m, HeadParam)]
  if not layers and not freed and not new:
    raise ValueError("The model has no adapters to merge.")
  merged = []
  for path, layer in layers.items():
    try:
      merged.append(_merged(layer))
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
  for layer, (kernel, bias) in zip(layers.values(), merged, strict=True):
    layer.kernel[...] = kernel
    if bias is not None:
      layer.bias[...] = bias
    remove(layer)
  for module in freed:
    tuning.freeze(module)
  for head in new:
    heads.freeze(head)


def _merged(layer):
  """The layer's weight and bias with its adapter's."""
  fold, bias = hosts.fold(layer), None
  if layer.bias is not None:
    bias = layer.bias[...].reshape(fold.f)
  kernel, bias = layer.adapter.merged(fold.matrix(layer.kernel[...]), bias)
  if bias is not None:
    bias = bias.reshape(layer.bias[...].shape)
  return fold.kernel(kernel), bias


def remove(layer: Adapted) -> None:
  """Takes a layer's adapter away; the frozen layer is what it was."""
  del layer.adapter
  kinds = adapted_layers.KINDS.items()
  layer.__class__ = next(plain for plain, own in kinds if type(layer) is own)


def _owners(model):
  """path -> module that holds parameters itself, by all paths of each."""
  return {
    _name(path): module
    for path, module in _modules(model)
    if isinstance(module, Adapted)
    or tuning.owned(module)
    or tuning.owned(module, BaseParam)
  }


def _is_linear(module):
  return isinstance(module, Adapted) or (
    type(module) in hosts.KINDS and _no_host(module) is None
  )


def _no_host(module):
  """Why no adapter can go beside it; None if one can."""
  try:
    hosts.fold(module)
  except ValueError as error:
    return error


def _is_full(factory):
  return isinstance(factory, tuning.FullFactory)


def _decides(rule, path, module):
  fits = _is_full(rule.factory) or _is_linear(module)
  return fits and re.fullmatch(rule.path, path)


def _sharing(model, chosen):
  """Lists of layers that will share a router: the first one's.

  A module says in `SAME_INPUT` which of its layers read the same input.
  """
  wanted = {
    key: (factory.router, factory.experts)
    for key, factory in chosen.items()
    if getattr(factory, "router", None) and factory.router.shared
  }
  if not wanted:
    return []
  declared = [
    [getattr(module, name) for name in module.SAME_INPUT]
    for _, module in nnx.iter_modules(model)
    if hasattr(module, "SAME_INPUT")
  ]
  if not declared:
    raise ValueError(
      "A router is to be shared by layers that read the same input, but no"
      " module of the model names such layers (SAME_INPUT = (names)): say"
      " shared_router=False."
    )
  groups = {}
  for number, layers in enumerate(declared):
    for layer in layers:
      if id(layer) in wanted:
        group = groups.setdefault((number, wanted[id(layer)]), [])
        group.append(layer)
  return groups.values()


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


def _check(rule, linears, owners):
  try:
    pattern = re.compile(rule.path)
  except re.error as error:
    raise ValueError(f"The rule {rule.path!r} is no regex: {error}.") from None
  full = _is_full(rule.factory)
  layers = owners if full else linears
  matched = [path for path in layers if pattern.fullmatch(path)]
  before = [p for p in matched if _adapted_before(layers[p])]
  if before:
    raise ValueError(
      f"The rule {rule.path!r} matches {before[0]!r}, which has an adapter"
      " already: adapt once, with all rules, or merge first."
    )
  refused = [
    path
    for path, module in owners.items()
    if path not in layers and hasattr(module, "kernel")
    if pattern.fullmatch(path)
  ]
  if refused:
    layer = owners[refused[0]]
    why = _no_host(layer) or "it is of a class of its own"
    raise ValueError(
      f"The rule {rule.path!r} matches {refused[0]!r}, a"
      f" {type(layer).__name__}, which cannot be adapted: {why}. Narrow the"
      " rule."
    )
  if not matched:
    near = difflib.get_close_matches(rule.path, layers, n=3, cutoff=0.0)
    kind = "modules with parameters" if full else "linear layers"
    raise ValueError(
      f"The rule {rule.path!r} matches no layer. It must match a whole path;"
      f" the nearest of the model's {len(layers)} {kind} are {near}."
    )


def _adapted_before(module):
  return isinstance(module, Adapted) or tuning.owned(module, BaseParam)


def _graft(grafts, key):
  """Gives each layer of `(path, layer, factory)` its adapter."""

  # One function a kind of layer, so that it is compiled once.
  @functools.cache
  def maker(factory, d, f, axes):
    def make(key, seed):
      own = jax.random.fold_in(key, seed)
      return factory.make(d, f, key=own, seed=seed, axes=axes)

    return make

  made = []
  for path, layer, factory in grafts:
    fold, seed = hosts.fold(layer), np.uint32(zlib.crc32(path.encode()))
    make = maker(factory, fold.d, fold.f, hosts.axes(layer))
    made.append(sharding.born(make, key, seed))
  # Only now, so that what cannot be made leaves the model as it was.
  for (_, layer, _), adapter in zip(grafts, made, strict=True):
    layer.adapter = adapter
    layer.__class__ = adapted_layers.KINDS[type(layer)]


def _name(path):
  return ".".join(map(str, path))
