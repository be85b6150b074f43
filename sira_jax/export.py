# SPDX-License-Identifier: Apache-2.0
"""Writes what a run trained as others read it.

    python -m sira_jax.export --workdir=runs/quickstart --format=native --check

native        our own folder: every method, bit for bit (`formats.native`)
peft          Hugging Face PEFT: LoRA, SoRA (pruned, of differing ranks), AdaMix
peft-uniform  the same, filled up to one rank, for readers that know only one
experts       a PEFT folder for each expert of a routed method, and its routers
average       one PEFT folder with every expert at its mean weight: a routed
              method's approximation, which is scored beside the run's own
merged        the whole model in Hugging Face's format: what PEFT can hold, and
              (IA)3 and full fine-tuning

A method that a format cannot express is refused, with the reason.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
import re

from absl import flags, logging
from flax import nnx
import jax
import ml_collections
import numpy as np

from sira_jax import (
  adapted,
  evaluation,
  export_check,
  model_card,
  process,
  runs,
  sharding,
  starting,
  storage,
)
from sira_jax.adapters import adapter as adapter_lib
from sira_jax.adapters import heads, pruning, surgery
from sira_jax.formats import (
  bases,
  huggingface,
  huggingface_writer,
  native,
  peft,
  safetensors_file,
  sources,
)


@dataclasses.dataclass(frozen=True)
class Export:
  """What a format is written from.

  Attributes:
    base: its model is the trained one; SoRA's dead ranks are removed.
    config: of the run.
    workdir: of the run.
    folder: to write to.
    name: what the folder calls its base model.
  """

  base: bases.Base
  config: ml_collections.ConfigDict
  workdir: storage.Path
  folder: pathlib.Path
  name: str

  @property
  def model(self) -> nnx.Module:
    """The trained model."""
    return self.base.model

  def write_pairs(
    self,
    folder: pathlib.Path,
    pairs: Mapping[str, adapter_lib.LowRank],
    *,
    uniform: bool = False,
  ) -> int:
    """Writes pairs, by path, as a PEFT folder; returns its largest rank."""
    layers = {
      huggingface.module_name(self.model, path): tuple(
        np.asarray(jax.device_get(part), np.float32) for part in pair
      )
      for path, pair in pairs.items()
    }
    return peft.write(
      folder,
      layers,
      base=self.name,
      encoder_decoder="encoder_input_tokens" in self.model.FEATURES,
      uniform=uniform,
    )


def adapters(model: nnx.Module) -> dict[str, surgery.Adapter]:
  """Path -> adapter of each adapted layer, for formats of adapters alone.

  Raises:
    ValueError: weights of the base itself were trained.
  """
  layers = surgery.adapted(model)
  found = {path: layer.adapter for path, layer in layers.items()}
  if heads.of(model) is not None:
    raise ValueError(
      "The run has trained a head beside its adapters, which --format=native"
      " and --format=merged alone can hold."
    )
  freed = [s.path for s in surgery.sites(model) if s.path not in found]
  if freed or not found:
    raise ValueError(
      f"There are {len(found)} adapters, and {len(freed)} modules of the base"
      " that were trained themselves, which --format=merged alone can hold."
    )
  return found


def write_native(export: Export) -> str:
  """See `formats.native`."""
  base = export.base
  native.write(
    export.folder,
    export.model,
    base={"uri": base.uri, "fingerprint": base.fingerprint},
  )
  return "sira_jax.formats.native.read(folder, model) puts it into its base."


def write_peft(export: Export, *, uniform: bool = False) -> str:
  """Exactly, or not at all."""
  pairs = _each(export.model, lambda one: one.low_rank())
  rank = export.write_pairs(export.folder, pairs, uniform=uniform)
  return _served(rank)


def write_experts(export: Export) -> str:
  """expert_0/, expert_1/ ... and the routers' kernels [experts d]."""
  routers, by_expert = {}, {}
  for path, pairs in _each(export.model, _routed_pairs).items():
    name = huggingface.module_name(export.model, path)
    kernel = adapters(export.model)[path].router.kernel[...]
    routers[f"{name}.router.weight"] = np.ascontiguousarray(
      np.asarray(jax.device_get(kernel)).T
    )
    for expert, pair in pairs.items():
      by_expert.setdefault(expert, {})[path] = pair
  for expert, pairs in sorted(by_expert.items()):
    rank = export.write_pairs(export.folder / f"expert_{expert}", pairs)
  safetensors_file.write(export.folder / export_check.ROUTERS, routers)
  return (
    f"{len(by_expert)} folders, each with an expert at weight 1, and"
    f" {export_check.ROUTERS}. {_served(rank)}"
  )


def write_average(export: Export) -> str:
  """Every expert at its mean weight over the run's evaluation prompts."""
  means = _mean_weights(export.workdir)
  pairs = {}
  for path, own in _each(export.model, _routed_pairs).items():
    weighted = [
      adapter_lib.LowRank(pair.a, pair.b * means[path][expert])
      for expert, pair in own.items()
    ]
    pairs[path] = adapter_lib.concatenated(weighted)
  rank = export.write_pairs(export.folder, pairs)
  return (
    "AN APPROXIMATION: the routers are gone, and every token gets the mean of"
    " what they gave. Scores of the run (before) and of this folder (after):"
    f"\n\n{_both_scores(export)}\n\n{_served(rank)}"
  )


def write_merged(export: Export) -> str:
  """The whole model. Its adapters are merged in place."""
  surgery.merge(export.model)
  base = export.base
  files = huggingface_writer.write(
    export.folder,
    export.model,
    source=sources.fetch(base.uri, sha256=export.config.base.sha256),
    tokenizer=base.tokenizer,
    eos_id=base.eos_id,
    spare=base.spare,
  )
  return f"The whole model, in {len(files)} file(s) of weights."


FORMATS: dict[str, Callable[[Export], str]] = {
  "native": write_native,
  "peft": write_peft,
  "peft-uniform": lambda export: write_peft(export, uniform=True),
  "experts": write_experts,
  "average": write_average,
  "merged": write_merged,
}


def export(
  config: ml_collections.ConfigDict,
  workdir: storage.Path,
  folder: pathlib.Path,
  *,
  kind: str,
  name: str | None = None,
  check: bool = False,
) -> str:
  """Writes the newest adapters of a run, and a README.md beside them.

  Args:
    config: of the run.
    workdir: of the run.
    folder: empty, or not there yet.
    kind: one of `FORMATS`.
    name: what the folder calls its base model; None takes it from its URI.
    check: read the folder again and compare its logits.

  Returns:
    What to know of it.

  Raises:
    ValueError: the method cannot be expressed so, or a prefix LM; the folder
      is not empty; the check found other logits, or those of the base alone.
  """
  if folder.exists() and any(folder.iterdir()):
    raise ValueError(f"{folder} is not empty. Give another --out.")
  if adapted.prefixed(config) and kind != "native":
    raise ValueError(
      "The run's decoder is a prefix LM (config.base.prefix), and what reads"
      f" --format={kind} is causal: its answers would be others. There is"
      " --format=native."
    )
  run = adapted.restore(config, workdir)
  model = run.base.model
  if pruning.remaining(model):
    pruning.prune(model)
  name = name or re.sub(r"^hf://", "", config.base.uri)
  prompts = export_check.prompts(model)
  expected = export_check.logits(model, prompts) if check else None
  job = Export(run.base, config, workdir, folder, name)
  text = FORMATS[kind](job)
  if check:
    text += "\n" + export_check.check(job, kind, prompts, expected)
  trained = f"stage {run.stage}, step {run.step}"
  card = model_card.card(
    config, workdir, kind=kind, name=name, notes=text, trained=trained
  )
  (folder / "README.md").write_text(card)
  return text


def main(argv):
  """Reads the flags; a user's mistake ends with its message alone."""
  logging.set_verbosity(logging.WARNING)
  process.prepare()
  with process.user_errors():
    process.refuse_arguments(argv)
    workdir = storage.place(_WORKDIR.value)
    folder = storage.on_disk(
      _OUT.value or f"{_WORKDIR.value}/export/{_FORMAT.value}", flag="--out"
    )
    config = runs.load_config(workdir)
    adapted.check(config)
    adapted.lay_out_anew(config, fsdp=_FSDP.value, tensor=_TENSOR.value)
    mesh, rules = adapted.layout(config)
    with sharding.use(mesh, rules):
      text = export(
        config,
        workdir,
        folder,
        kind=_FORMAT.value,
        name=_NAME.value,
        check=_CHECK.value,
      )
  print(f"{folder}: {text}")


def _each(model, read):
  """Path -> what `read` gives of its adapter; errors name the path."""
  found = {}
  for path, one in adapters(model).items():
    try:
      found[path] = read(one)
    except ValueError as error:
      raise ValueError(
        f"{path}: {error} As this format cannot hold it, export it as native."
      ) from None
  return found


def _routed_pairs(adapter):
  if getattr(adapter, "router", None) is None:
    raise ValueError(f"{adapter.factory.method} has no router: take peft.")
  return adapter.expert_pairs()


def _both_scores(export) -> str:
  """The table of the run's scores, and of a PEFT folder's."""
  # Of all formats this one alone needs the data, and TensorFlow with them.
  from sira_jax import assembly

  run = assembly.build(export.config, export.workdir)
  run = dataclasses.replace(run, base=export.base)
  fresh = export_check.fresh_base(export.config)
  starting.adapt(fresh, export.folder)
  other = dataclasses.replace(
    run, base=dataclasses.replace(export.base, model=fresh)
  )
  exact, approximate = (
    assembly.score(one, export.config, sets=run.data.sets)[0]
    for one in (run, other)
  )
  return evaluation.table(exact, approximate)


def _mean_weights(workdir) -> dict[str, np.ndarray]:
  """Path -> each expert's weight, the mean over the evaluation sets."""
  file = workdir / "routing.json"
  sites = storage.load(file, lambda text: json.loads(text)["sites"])
  if not sites or any("weight" not in one for one in sites.values()):
    raise ValueError(
      f"{file} has no mean weights of the experts: the run is not finished, or"
      " was before they were kept. Without its results.json, the run's command"
      " makes both anew."
    )
  return {
    path.removesuffix(".adapter"): np.mean(one["weight"], axis=0)
    for path, one in sites.items()
  }


def _served(rank):
  return f"The largest rank is {rank} (vLLM: --max-lora-rank, rounded up)."


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Of the run.")
  _FORMAT = flags.DEFINE_enum("format", "native", list(FORMATS), __doc__)
  _OUT = flags.DEFINE_string(
    "out", None, "The folder to write; WORKDIR/export/FORMAT if not given."
  )
  _NAME = flags.DEFINE_string(
    "base_name", None, "What the export calls its base, such as OWNER/NAME."
  )
  _CHECK = flags.DEFINE_bool(
    "check", False, "Read it again, and compare the logits with the run's."
  )
  _FSDP, _TENSOR = (
    flags.DEFINE_integer(
      name, None, f"Instead of the run's config.mesh.{name}, as for eval.py."
    )
    for name in ("fsdp", "tensor")
  )
  process.start(main)
