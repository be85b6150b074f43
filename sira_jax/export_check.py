# SPDX-License-Identifier: Apache-2.0
"""Whether an exported folder computes what its run does."""

from collections.abc import Mapping

from flax import nnx
import jax
import ml_collections
import numpy as np
from safetensors import numpy as safetensors

from sira_jax import adapted, sharding, starting
from sira_jax.adapters import surgery
from sira_jax.formats import bases, huggingface, native, peft

ROUTERS = "routers.safetensors"  # beside the folders of experts
ROWS, LENGTH = 2, 48
# Of the largest logit, by the base's dtype.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def prompts(model: nnx.Module) -> dict[str, np.ndarray]:
  """Rows of random tokens, the same each time, for a model's features."""
  rng = np.random.default_rng(0)
  size = model.config.vocabulary_size
  length = int(min(LENGTH, model.max_length))
  names = ("decoder_input_tokens", "encoder_input_tokens")
  features = {
    name: rng.integers(1, size, (ROWS, length)).astype(np.int32)
    for name in names
    if name in model.FEATURES
  }
  if "decoder_causal_attention" in model.FEATURES:
    # Half of each row is its prompt.
    first = np.arange(length) < length // 2
    features["decoder_causal_attention"] = np.tile(first, (ROWS, 1)).astype(
      np.int32
    )
  return features


def logits(model: nnx.Module, features: Mapping[str, np.ndarray]) -> np.ndarray:
  """float32 [rows length vocabulary], of a model in evaluation mode."""
  model.eval()
  graph, state = nnx.split(model)
  found = jax.jit(lambda state, features: nnx.merge(graph, state)(**features))(
    state, features
  )
  return np.asarray(jax.device_get(found))


def check(
  export, kind: str, features: Mapping[str, np.ndarray], expected: np.ndarray
) -> str:
  """Compares a folder, read again, with the run's logits.

  Args:
    export: an `export.Export` that was written.
    kind: its format.
    features: what the logits are of.
    expected: the run's logits.

  Returns:
    What was found.

  Raises:
    ValueError: other logits than the run's, or those of the base alone.
  """
  config, folder = export.config, export.folder
  base = logits(fresh_base(config), features)
  if kind == "experts":
    _check_experts(export)
    model = None
  elif kind == "native":
    model = fresh_base(config)
    native.read(folder, model, fingerprint=export.base.fingerprint)
  elif kind == "merged":
    model = bases.load(uri=str(folder), dtype=config.base.dtype).model
    sharding.place(model)
  else:
    model = fresh_base(config)
    starting.adapt(model, folder)
  found = expected if model is None else logits(model, features)
  largest = np.abs(expected).max()
  error, effect = (
    np.abs(found - other).max() / largest for other in (expected, base)
  )
  told = f"{error:.1e} of the largest logit from the run's, and {effect:.1e}"
  told += " from the base's"
  approximate = kind == "average"
  if not effect > (0 if approximate else 2 * error):
    raise ValueError(
      f"{folder}: the adapters do nothing, or no more than rounding: logits are"
      f" {told}."
    )
  if not approximate and not error <= TOLERANCE[config.base.dtype]:
    raise ValueError(f"{folder}: logits are {told}.")
  return f"Checked: read again, its logits are {told}."


def fresh_base(config: ml_collections.ConfigDict) -> nnx.Module:
  """The run's base once more, without adapters, on the mesh; a new head."""
  model = bases.load(**config.base).model
  sharding.place(model)
  adapted.attach_head(model, config)
  return model


def _check_experts(export):
  """Every expert and every router is what the run has, bit for bit."""
  model, folder = export.model, export.folder
  routers = safetensors.load_file(folder / ROUTERS)
  layers = {
    huggingface.module_name(model, path): layer.adapter
    for path, layer in surgery.adapted(model).items()
  }
  experts = {
    int(path.name.removeprefix("expert_")): peft.read(path)
    for path in folder.glob("expert_*")
  }
  for name, adapter in layers.items():
    kernel = np.asarray(adapter.router.kernel[...]).T
    same = np.array_equal(routers[f"{name}.router.weight"], kernel)
    for expert, pair in adapter.expert_pairs().items():
      for one, two in zip(experts[expert][name], pair, strict=True):
        same &= np.array_equal(one, np.asarray(two))
    if not same:
      raise ValueError(f"{folder}: {name} is not what the run has.")
