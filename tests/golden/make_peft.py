# SPDX-License-Identifier: Apache-2.0
"""What PEFT makes of LoRA folders that we wrote, and folders that it wrote.

Run `python -m tests.golden.make_peft` with all of requirements.txt, torch,
transformers and peft installed; the files in the folder peft came from torch
2.13.0, transformers 5.23.0 and peft 0.21.2.

`of_ours.npz` has the logits of the tiny models with the layers of
`peft_pairs`, which we wrote and PEFT read. `MODEL/` are folders that PEFT
wrote, with scales of several kinds, and the logits of the model that it was.
"""

import json
import pathlib
import tempfile

import numpy as np
import peft
import torch
import transformers

from sira_jax.formats import peft as ours
from tests.golden import peft_pairs

FOLDER = pathlib.Path(__file__).parent
MADE = FOLDER / "peft"
MODELS = {
  "tiny_llama_sharded": (transformers.AutoModelForCausalLM, peft_pairs.LLAMA),
  "tiny_t5_gated": (transformers.AutoModelForSeq2SeqLM, peft_pairs.T5),
}


def features(name: str) -> dict[str, torch.Tensor]:
  """Rows of random tokens."""
  rng = np.random.default_rng(3)
  tokens = lambda: torch.tensor(rng.integers(1, 40, (2, 9)))  # noqa: E731
  if "t5" in name:
    return {"input_ids": tokens(), "decoder_input_ids": tokens()}
  return {"input_ids": tokens()}


def logits(model, name: str) -> np.ndarray:
  """float32, in evaluation mode."""
  with torch.no_grad():
    return model.eval()(**features(name)).logits.numpy()


def read_ours(name: str) -> dict[str, np.ndarray]:
  """Logits that PEFT gets from our folders, and the base's."""
  kind, layers = MODELS[name]
  found = {f"{name}_base": logits(kind.from_pretrained(FOLDER / name), name)}
  for uniform in (False, True):
    base = kind.from_pretrained(FOLDER / name)
    with tempfile.TemporaryDirectory() as folder:
      ours.write(
        pathlib.Path(folder),
        peft_pairs.pairs(layers),
        base=name,
        encoder_decoder="t5" in name,
        uniform=uniform,
      )
      model = peft.PeftModel.from_pretrained(base, folder)
      key = f"{name}_uniform" if uniform else name
      found[key] = logits(model, name)
  return found


def write_theirs(name: str) -> None:
  """A folder of PEFT's own, with an alpha pattern and rsLoRA's scale."""
  torch.manual_seed(0)
  kind, layers = MODELS[name]
  base = kind.from_pretrained(FOLDER / name)
  config = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=list(layers),
    rank_pattern={next(iter(layers)): 2},
    alpha_pattern={list(layers)[1]: 7},
    init_lora_weights=False,
    use_rslora="t5" in name,
  )
  model = peft.get_peft_model(base, config)
  folder = MADE / name
  model.save_pretrained(folder)
  (folder / "README.md").unlink()
  for file in folder.iterdir():
    file.chmod(0o644)
  config = json.loads((folder / "adapter_config.json").read_text())
  config["base_model_name_or_path"] = name
  (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
  np.savez_compressed(folder / "expected.npz", logits=logits(model, name))


if __name__ == "__main__":
  arrays = {}
  for name in MODELS:
    arrays |= read_ours(name)
    write_theirs(name)
  tokens = {
    f"{name}_{key}": value.numpy()
    for name in MODELS
    for key, value in features(name).items()
  }
  np.savez_compressed(MADE / "of_ours.npz", **arrays, **tokens)
