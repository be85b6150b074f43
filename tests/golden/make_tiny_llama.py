# SPDX-License-Identifier: Apache-2.0
"""Makes tiny_llama_*.npz: random Hugging Face Llamas and their logits.

Run `python tests/golden/make_tiny_llama.py` with torch and transformers
installed; the files in this folder came from torch 2.13.0 and transformers
5.23.0.
"""

import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent


def make(name: str, *, tied: bool) -> None:
  """Writes weights by Hugging Face's names, `tokens` and their `logits`."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    # Not hidden_size / num_attention_heads, so that nothing can assume it.
    head_dim=16,
    intermediate_size=48,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    rms_norm_eps=1e-3,
    max_position_embeddings=64,
    tie_word_embeddings=tied,
    attn_implementation="eager",
  )
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      # Large enough for softmax, silu and norms to be far from linear.
      parameter.normal_(std=0.3).add_(float(parameter.ndim == 1))
    tokens = torch.randint(config.vocab_size, (3, 24))
    logits = model(tokens).logits
  arrays = {
    key: value.numpy()
    for key, value in model.state_dict().items()
    if not (tied and key == "lm_head.weight")
  }
  np.savez_compressed(
    FOLDER / f"{name}.npz",
    tokens=tokens.numpy(),
    logits=logits.numpy(),
    **arrays,
  )
  print(name, sum(a.size for a in arrays.values()), logits.abs().mean().item())


if __name__ == "__main__":
  make("tiny_llama_tied", tied=True)
  make("tiny_llama_untied", tied=False)
