# SPDX-License-Identifier: Apache-2.0
"""Adapters that start as LoRA adapters that were trained before.

    no router       the adapter starts as the LoRA, which has to be one
    routed, of one  every expert starts as it
    of several      expert e starts as number e; those left over start at zero

An expert's B is divided by the scale and by the weight that a token's k experts
have together under a uniform router (k / experts, or 1 where they are
renormalised): with one, a routed layer starts as that LoRA, too, as far as its
router starts uniform. Ranks that the LoRA does not have start as ever.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sira_jax.adapters import adamix, adapter, methods, surgery
from sira_jax.formats import huggingface
from sira_jax.formats import peft as peft_lib


def adapt(model: nnx.Module, folder: pathlib.Path) -> tuple[surgery.Site, ...]:
  """Puts the LoRA of a folder into a model without adapters, in place.

  Args:
    model: of `sira_jax.models`.
    folder: as Hugging Face PEFT has it; see `formats.peft`.

  Raises:
    ValueError: a folder that cannot be read, or does not fit the model.
  """
  names = {
    huggingface.module_name(model, path): path
    for path in surgery.linears(model)
  }
  ranks: dict[int, list[str]] = {}
  for name, (a, _) in peft_lib.read(folder).items():
    if name not in names:
      raise ValueError(f"{folder}: the model has no linear layer {name}.")
    ranks.setdefault(a.shape[1], []).append(re.escape(names[name]))
  rules = [
    surgery.Rule("|".join(paths), methods.lora(rank=rank))
    for rank, paths in ranks.items()
  ]
  sites = surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  begin(model, peft=(str(folder),))
  return sites


def begin(model: nnx.Module, *, peft: Sequence[str] = ()) -> int:
  """Starts a model's adapters from LoRA folders, in place.

  Args:
    model: adapted, on its mesh.
    peft: folders as Hugging Face PEFT has them (see `formats.peft`); with
      none, nothing is done.

  Returns:
    How many layers start so. Others start as ever.

  Raises:
    ValueError: a folder that cannot be read; one with a layer that has no
      adapter here, of another shape or a larger rank; more folders than a
      layer has experts; an adapter that no LoRA can start.
  """
  if isinstance(peft, str):
    raise ValueError(
      f"config.start.peft must be a tuple of folders, got {peft!r}."
    )
  layers = surgery.adapted(model)
  names = {huggingface.module_name(model, path): path for path in layers}
  given: dict[str, dict[int, peft_lib.Pair]] = {}
  for number, folder in enumerate(peft):
    pairs = peft_lib.read(pathlib.Path(folder))
    lost = sorted(pairs.keys() - names.keys())
    if lost:
      raise ValueError(
        f"{folder}: {len(lost)} of its {len(pairs)} layers have no adapter in"
        f" this run, such as {lost[0]}. The rules must adapt all of them."
      )
    for name, pair in pairs.items():
      given.setdefault(names[name], {})[number] = pair
  for path, pairs in given.items():
    try:
      _start(layers[path], pairs, count=len(peft))
    except ValueError as error:
      raise ValueError(f"config.start: {path}: {error}") from None
  return len(given)


def _start(layer, pairs: Mapping[int, peft_lib.Pair], *, count: int) -> None:
  """Sets a layer's A and B; `pairs` by number of the folder, of `count`."""
  target = layer.adapter
  if isinstance(target, adamix.AdaMix):
    experts, weight = 1, 1.0
  elif isinstance(target, adapter.Adapter):
    experts, weight = target.factory.terms, _weight(target.factory)
  else:
    raise ValueError(f"{target.factory.method} cannot start as a LoRA.")
  if getattr(target.factory, "activation", "identity") != "identity":
    raise ValueError(f"{target.factory.method} is not linear, but a LoRA is.")
  if count > experts:
    raise ValueError(
      f"got {count} LoRA folders for {experts} expert{'s' * (experts > 1)}."
    )
  a, b = np.array(target.A[...]), np.zeros_like(target.B[...])
  g = getattr(target, "g", None)
  for e in range(a.shape[1]):
    pair = pairs.get(e if count > 1 else 0)
    if pair is not None:
      _check(layer, pair)
      rank = pair[0].shape[1]
      a[:, e, :rank] = pair[0]
      up = pair[1] / (target.factory.scale * weight)
      if g is not None:
        up = _without_gate(up, np.asarray(g[...])[e, :rank])
      b[e % len(b), :rank] = up
  for variable, value in ((target.A, a), (target.B, b)):
    variable[...] = jax.device_put(jnp.asarray(value), variable[...].sharding)


def _weight(factory) -> float:
  """Of a token's experts together, under a uniform router."""
  router = factory.router
  if router is None or router.renormalise:
    return 1.0
  return router.k / factory.experts


def _without_gate(up, gate):
  if not gate.all():
    raise ValueError("a gate that starts at 0 keeps its rank from starting.")
  return up / gate[:, None]


def _check(layer, pair):
  a, b = pair
  d, f = layer.adapter.A.shape[0], layer.adapter.B.shape[-1]
  if (a.shape[0], b.shape[1]) != (d, f):
    raise ValueError(
      f"the LoRA is for a layer of {a.shape[0]} to {b.shape[1]} features, and"
      f" the layer has {d} to {f}."
    )
  rank = layer.adapter.factory.rank
  if a.shape[1] > rank:
    raise ValueError(
      f"the LoRA has rank {a.shape[1]}, the adapter {rank}: give it as many."
    )
