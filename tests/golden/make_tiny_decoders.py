# SPDX-License-Identifier: Apache-2.0
"""Makes folders of tiny random decoders of several families, and their logits.

Run `python -m tests.golden.make_tiny_decoders` with torch and transformers
installed; the folders in `decoders` came from torch 2.13.0 and transformers
5.23.0. `expected.npz` has two rows of 24 tokens, their logits, and what greedy
decoding makes of the first 9 tokens of each.
"""

import pathlib

import numpy as np
import torch
import transformers

from tests.golden.make_tiny_t5 import randomize

FOLDER = pathlib.Path(__file__).parent / "decoders"
SIZES = dict(
  vocab_size=64,
  hidden_size=16,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  # Not hidden_size / num_attention_heads, so that nothing can assume it.
  head_dim=8,
  intermediate_size=24,
  rms_norm_eps=1e-3,
  max_position_embeddings=64,
  attn_implementation="eager",
  bos_token_id=None,
  eos_token_id=63,
  pad_token_id=0,
)
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
# The scores' scale is not head_dim ** -0.5, and the caps are felt.
GEMMA = dict(query_pre_attn_scalar=24, sliding_window=5)
KINDS = ["sliding_attention", "full_attention"]
MODELS = {
  "llama3": ("Llama", dict(rope_parameters=LLAMA3)),
  "mistral": ("Mistral", dict(sliding_window=6, rope_parameters=ROPE)),
  "qwen2": ("Qwen2", dict(rope_parameters=ROPE, tie_word_embeddings=True)),
  "qwen2_windowed": (
    "Qwen2",
    dict(
      rope_parameters=ROPE,
      use_sliding_window=True,
      sliding_window=6,
      max_window_layers=1,
    ),
  ),
  "qwen3": ("Qwen3", dict(rope_parameters=ROPE)),
  "gemma": ("Gemma", dict(rope_parameters=ROPE)),
  "gemma2": (
    "Gemma2",
    dict(
      GEMMA,
      rope_parameters=ROPE,
      attn_logit_softcapping=3.0,
      final_logit_softcapping=4.0,
    ),
  ),
  "gemma3": (
    "Gemma3Text",
    dict(
      GEMMA,
      layer_types=[KINDS[0], KINDS[0], KINDS[1]],
      rope_parameters={
        KINDS[0]: {"rope_type": "default", "rope_theta": 50.0},
        KINDS[1]: {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
      },
    ),
  ),
}


def make(name: str, family: str, settings) -> None:
  """A folder of one model."""
  torch.manual_seed(len(name))
  config = getattr(transformers, f"{family}Config")(**(SIZES | settings))
  kind = family.removesuffix("Text")
  model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
  randomize(model)
  tokens = torch.randint(1, config.vocab_size - 1, (2, 24))
  with torch.no_grad():
    logits = model(tokens).logits
    greedy = model.generate(
      tokens[:, :9],
      attention_mask=torch.ones(2, 9),
      max_new_tokens=8,
      do_sample=False,
      eos_token_id=None,
    )[:, 9:]
  folder = FOLDER / name
  model.save_pretrained(folder)
  for file in folder.iterdir():
    file.chmod(0o644)
  (folder / "generation_config.json").unlink(missing_ok=True)
  np.savez_compressed(
    folder / "expected.npz",
    decoder_input_tokens=tokens.numpy(),
    logits=logits.numpy(),
    greedy=greedy.numpy(),
  )
  print(name, logits.abs().mean().item(), greedy.tolist())


if __name__ == "__main__":
  for name, (family, settings) in MODELS.items():
    make(name, family, settings)
