# SPDX-License-Identifier: Apache-2.0
"""Our own adapter folders: every method, bit for bit.

    sira_config.json      the base, and the settings of every adapted layer
    adapter.safetensors   PATH.A [d experts rank]    PATH.B [experts rank f]
                          PATH.g [experts rank]      where there are gates
                          PATH.router.kernel [d experts], of every layer, also
                          where several share one
                          PATH.delta [experts f]     of MoV and (IA)3
                          PATH.kernel [d outputs]    of a head, with its
                          PATH.bias [outputs]

A path is the layer's in our model. What training alone needs (optimizers,
positions in the data) is in a run's checkpoints.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import re
from typing import Any

from flax import nnx
import jax
import numpy as np

from sira_jax.adapters import adamix, heads, rescaling, routers, surgery
from sira_jax.adapters import adapter as adapter_lib
from sira_jax.adapters.variables import (
  AdapterConstant,
  AdapterParam,
  HeadParam,
)
from sira_jax.formats import safetensors_file

CONFIG, WEIGHTS = "sira_config.json", "adapter.safetensors"
VERSION = 1
_KINDS = {
  "adapter": adapter_lib.AdapterFactory,
  "adamix": adamix.AdaMixFactory,
  "rescaling": rescaling.RescalingFactory,
  "head": heads.HeadFactory,
}
_PARTS = {"router": routers.TopK, "gate": adapter_lib.Gate}
_SAVED = nnx.Any(AdapterParam, AdapterConstant, HeadParam)


def write(
  folder: pathlib.Path, model: nnx.Module, *, base: Mapping[str, str]
) -> None:
  """Writes the adapters of a model, and its head if one is trained.

  Args:
    folder: made if it is not there.
    model: adapted.
    base: uri and fingerprint of the model beneath.

  Raises:
    ValueError: the model has no adapters, or weights of its own are trained.
  """
  sites = surgery.sites(model)
  layers = _trained(model)
  other = [site.path for site in sites if site.path not in layers]
  if other or not layers:
    raise ValueError(
      "Adapter folders hold adapters, and nothing of the base: got"
      f" {len(layers)} adapters, and {len(other)} modules with trained weights"
      f" of their own, such as {other[:1]}. Export the merged weights instead."
    )
  tensors, settings = {}, {}
  for path, layer in layers.items():
    factory = layer.factory
    kind = next(k for k, v in _KINDS.items() if type(factory) is v)
    settings[path] = {"kind": kind, **dataclasses.asdict(factory)}
    for name, value in _arrays(layer).items():
      tensors[f"{path}.{name}"] = np.asarray(jax.device_get(value[...]))
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_file.write(folder / WEIGHTS, tensors)
  text = json.dumps(
    {"format": VERSION, "base": dict(base), "layers": settings}, indent=1
  )
  (folder / CONFIG).write_text(text + "\n")


def read(
  folder: pathlib.Path, model: nnx.Module, *, fingerprint: str | None = None
) -> tuple[surgery.Site, ...]:
  """Puts the adapters, and the head, of a folder into a model, in place.

  Args:
    folder: as `write` leaves it.
    model: not adapted.
    fingerprint: of the base, to be compared with the one that was trained on;
      None does not compare.

  Returns:
    The sites.

  Raises:
    ValueError: another base, or a folder that is damaged or of a later version;
      a tensor that is missing, left over or of another shape. The model may be
      adapted by then.
  """
  said = safetensors_file.read_json(folder / CONFIG)
  if said.get("format") != VERSION:
    raise ValueError(
      f"{folder / CONFIG}: expected format {VERSION}, got"
      f" {said.get('format')!r:.100}."
    )
  trained = said.get("base", {}).get("fingerprint")
  if fingerprint is not None and trained != fingerprint:
    raise ValueError(
      f"{folder}: its adapters are for the base {said['base']}, not for the one"
      f" of fingerprint {fingerprint}."
    )
  tensors = safetensors_file.read(folder / WEIGHTS)
  try:
    rules, head = _rules(said["layers"])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{folder / CONFIG}: its layers cannot be read: {error!r:.300}"
    ) from None
  if head is not None:
    heads.attach(model, head, rngs=nnx.Rngs(0))
  if rules:
    surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  wanted = {
    f"{path}.{name}": variable
    for path, layer in _trained(model).items()
    for name, variable in _arrays(layer).items()
  }
  problems = [f"missing: {name}" for name in wanted.keys() - tensors.keys()]
  for name, tensor in tensors.items():
    if name not in wanted:
      problems.append(f"left over: {name:.200}")
    elif (tensor.shape, str(tensor.dtype)) != (wanted[name].shape, "float32"):
      problems.append(
        f"{name} is {tensor.dtype} {tensor.shape}, expected float32"
        f" {wanted[name].shape}"
      )
  if problems:
    raise ValueError(
      f"{folder / WEIGHTS}: its tensors are not those of its layers:\n  "
      + "\n  ".join(sorted(problems))
    )
  for name, variable in wanted.items():
    value = np.array(tensors[name])
    variable[...] = jax.device_put(value, variable[...].sharding)
  return surgery.sites(model)


def _trained(model):
  """Path -> each layer's adapter, and the head that is trained."""
  layers = surgery.adapted(model)
  found = {path: layer.adapter for path, layer in layers.items()}
  head = heads.of(model)
  return found if head is None else found | {"head": head}


def _arrays(adapter):
  return {
    ".".join(map(str, path)): variable
    for path, variable in nnx.to_flat_state(nnx.state(adapter, _SAVED))
  }


def _rules(
  layers: Mapping[str, Any],
) -> tuple[list[surgery.Rule], heads.HeadFactory | None]:
  """A rule for all layers of equal settings; and the head's."""
  paths, head = {}, None
  for path, settings in layers.items():
    factory = _factory(dict(settings))
    if isinstance(factory, heads.HeadFactory):
      head = factory
    else:
      paths.setdefault(factory, []).append(re.escape(path))
  rules = [surgery.Rule("|".join(own), one) for one, own in paths.items()]
  return rules, head


def _factory(settings: dict[str, Any]) -> surgery.Factory:
  """What `dataclasses.asdict` took apart, before it became JSON."""
  for name, part in _PARTS.items():
    if settings.get(name) is not None:
      settings[name] = part(**settings[name])
  for name in ("live", "labels"):
    if settings.get(name) is not None:
      settings[name] = tuple(settings[name])
  return _KINDS[settings.pop("kind")](**settings)
