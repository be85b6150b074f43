# SPDX-License-Identifier: Apache-2.0
"""Our own adapter folders: every method, bit for bit.

    sira_config.json      the base, and the settings of every adapted layer
    adapter.safetensors   PATH.A [d experts rank]    PATH.B [experts rank f]
                          PATH.g [experts rank]      where there are gates
                          PATH.router.kernel [d experts], of every layer, also
                          where several share one
                          PATH.delta [experts f]     of MoV and (IA)3

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

from sira_jax.adapters import adamix, rescaling, routers, surgery
from sira_jax.adapters import adapter as adapter_lib
from sira_jax.adapters.variables import AdapterConstant, AdapterParam
from sira_jax.formats import safetensors_file

CONFIG, WEIGHTS = "sira_config.json", "adapter.safetensors"
VERSION = 1
_KINDS = {
  "adapter": adapter_lib.AdapterFactory,
  "adamix": adamix.AdaMixFactory,
  "rescaling": rescaling.RescalingFactory,
}
_PARTS = {"router": routers.TopK, "gate": adapter_lib.Gate}
_SAVED = nnx.Any(AdapterParam, AdapterConstant)


def write(
  folder: pathlib.Path, model: nnx.Module, *, base: Mapping[str, str]
) -> None:
  """Writes the adapters of a model.

  Args:
    folder: made if it is not there.
    model: adapted.
    base: uri and fingerprint of the model beneath.

  Raises:
    ValueError: the model has no adapters, or weights of its own are trained.
  """
  sites = surgery.sites(model)
  layers = surgery.adapted(model)
  other = [site.path for site in sites if site.path not in layers]
  if other or not layers:
    raise ValueError(
      "Adapter folders hold adapters, and nothing of the base: got"
      f" {len(layers)} adapters, and {len(other)} modules with trained weights"
      f" of their own, such as {other[:1]}. Export the merged weights instead."
    )
  tensors, settings = {}, {}
  for path, layer in layers.items():
    factory = layer.adapter.factory
    kind = next(k for k, v in _KINDS.items() if type(factory) is v)
    settings[path] = {"kind": kind, **dataclasses.asdict(factory)}
    for name, value in _arrays(layer.adapter).items():
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
  """Puts the adapters of a folder into a model, in place.

  Args:
    folder: as `write` leaves it.
    model: not adapted.
    fingerprint: of the base, to be compared with the one that was trained on;
      None does not compare.

  Returns:
    The adapted sites.

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
    rules = _rules(said["layers"])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{folder / CONFIG}: its layers cannot be read: {error!r:.300}"
    ) from None
  sites = surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  wanted = {
    f"{path}.{name}": variable
    for path, layer in surgery.adapted(model).items()
    for name, variable in _arrays(layer.adapter).items()
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
  return sites


def _arrays(adapter):
  return {
    ".".join(map(str, path)): variable
    for path, variable in nnx.to_flat_state(nnx.state(adapter, _SAVED))
  }


def _rules(layers: Mapping[str, Any]) -> list[surgery.Rule]:
  """A rule for all layers of equal settings."""
  paths = {}
  for path, settings in layers.items():
    paths.setdefault(_factory(dict(settings)), []).append(re.escape(path))
  return [surgery.Rule("|".join(own), one) for one, own in paths.items()]


def _factory(settings: dict[str, Any]) -> surgery.Factory:
  """What `dataclasses.asdict` took apart, before it became JSON."""
  for name, part in _PARTS.items():
    if settings.get(name) is not None:
      settings[name] = part(**settings[name])
  if settings.get("live") is not None:
    settings["live"] = tuple(settings["live"])
  return _KINDS[settings.pop("kind")](**settings)
