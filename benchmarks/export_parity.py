# SPDX-License-Identifier: Apache-2.0
"""Whether transformers and PEFT compute what a trained run does.

    pip install torch transformers peft
    python -m benchmarks.export_parity --workdir=runs/quickstart-lora

Writes the run's base, its merged weights and its adapters as Hugging Face and
PEFT folders, reads them there, and prints the largest difference of the logits
of a text, as a share of the largest logit. For runs of lora, sora and adamix.
"""

import argparse
import pathlib
import re
import tempfile

from absl import logging
import jax
import numpy as np
import peft
import torch
import transformers

from sira_jax import adapted, export, export_check, runs, sharding
from sira_jax.formats import huggingface_writer, sources

TEXT = (
  "Schalte das Licht in der Küche an! The capital of France is Paris, and today"
  " is the 26th of November."
)


def theirs(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
  """Logits [tokens vocabulary] of a decoder of transformers."""
  with torch.no_grad():
    return model.eval()(torch.tensor([ids])).logits[0].float().numpy()


def ours(model, ids: list[int]) -> np.ndarray:
  """The same of one of ours."""
  tokens = np.array([ids], np.int32)
  return export_check.logits(model, {"decoder_input_tokens": tokens})[0]


def error(one: np.ndarray, two: np.ndarray) -> float:
  """The largest difference, over the largest of `two`."""
  return float(np.abs(one - two).max() / np.abs(two).max())


def read(folder: pathlib.Path) -> torch.nn.Module:
  """A decoder by transformers, in float32."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )


def compare(workdir: pathlib.Path, folder: pathlib.Path) -> dict[str, float]:
  """What is compared -> the difference."""
  config = runs.load_config(workdir)
  plain = adapted.load(config)
  ids = plain.tokenizer.encode(TEXT).ids
  huggingface_writer.write(
    folder / "base",
    plain.model,
    source=sources.fetch(config.base.uri, sha256=config.base.sha256),
    tokenizer=plain.tokenizer,
    eos_id=plain.eos_id,
    spare=plain.spare,
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
  if tokenizer(TEXT).input_ids != ids:
    raise ValueError("transformers makes other tokens of the text.")
  base = ours(plain.model, ids)
  run = ours(adapted.restore(config, workdir).base.model, ids)
  found = {
    "the base by transformers": error(theirs(read(folder / "base"), ids), base),
    "of ours, the run's from the base's": error(base, run),
  }
  for kind in ("merged", "peft", "peft-uniform"):
    export.export(config, workdir, folder / kind, kind=kind)
    if kind == "merged":
      model = read(folder / kind)
    else:
      model = peft.PeftModel.from_pretrained(
        read(folder / "base"), folder / kind
      )
    found[f"the run, exported as {kind}"] = error(theirs(model, ids), run)
  return found


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  given = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  mesh, rules = sharding.layout(data=1, devices=jax.devices()[:1])
  with sharding.use(mesh, rules), tempfile.TemporaryDirectory() as name:
    for what, value in compare(given.workdir, pathlib.Path(name)).items():
      print(f"{what:36} {value:.1e}")
  versions = (torch.__version__, transformers.__version__, peft.__version__)
  print(re.sub(r"[()']", "", f"torch, transformers, peft: {versions}"))


if __name__ == "__main__":
  main()
