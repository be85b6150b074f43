# SPDX-License-Identifier: Apache-2.0
"""Meshes: the devices of a run, in axes that say what goes over them."""

from collections.abc import Sequence
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  slices: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh of the axes `AXES`.

  Args:
    data: devices over which rows go and parameters do not.
    fsdp: devices over which both rows and parameters go.
    tensor: devices over which heads and inner features go; between them each
      layer communicates, so let them be near.
    slices: groups of devices with a slow network between them, which `data`
      alone goes over: TPU slices, or else processes.
    devices: all there are by default.

  One of the three sizes may be -1: whatever is left.

  Raises:
    ValueError: sizes that do not make up the number of devices, or slices that
      do not divide them.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
  open_axes = [name for name, size in sizes.items() if size == -1]
  known = math.prod(size for size in sizes.values() if size != -1)
  if len(open_axes) == 1 and known > 0:
    sizes[open_axes[0]] = len(devices) // known
  shape = tuple(sizes.values())
  if min(shape) < 1 or math.prod(shape) != len(devices):
    asked = " x ".join(f"{k}={v}" for k, v in sizes.items())
    raise ValueError(
      f"The mesh {asked} must have as many places as there are devices,"
      f" {len(devices)}. Give sizes whose product is {len(devices)}; one of"
      " them may be -1, for whatever is left."
    )
  if slices == 1:
    places = mesh_utils.create_device_mesh(shape, devices=devices)
  else:
    places = _over_slices(shape, slices, devices)
  # Said, because the default of jax.make_mesh is Explicit.
  return Mesh(places, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _over_slices(shape, slices, devices):
  # Processes of a CPU tell of one slice, which all of them are.
  found = {
    name: len({getattr(device, name, 0) for device in devices})
    for name in ("slice_index", "process_index")
  }
  if slices not in found.values() or shape[0] % slices:
    raise ValueError(
      f"slices={slices} must divide data={shape[0]}, and be the number of the"
      f" devices' slices, {found['slice_index']}, or processes,"
      f" {found['process_index']}."
    )
  return mesh_utils.create_hybrid_device_mesh(
    (shape[0] // slices, *shape[1:]),
    (slices, 1, 1),
    devices=devices,
    process_is_granule=found["slice_index"] != slices,
  )
