# SPDX-License-Identifier: Apache-2.0
"""LoRA layers of random numbers, of ranks of their own, for tiny models.

Numpy alone, for programs with and without torch.
"""

import numpy as np

# Hugging Face's name of a module -> features in, features out, rank.
LLAMA = {
  "model.layers.0.self_attn.q_proj": (16, 32, 1),
  "model.layers.1.self_attn.q_proj": (16, 32, 3),
  "model.layers.1.self_attn.k_proj": (16, 16, 2),
  "model.layers.0.self_attn.o_proj": (32, 16, 5),
  "model.layers.1.mlp.down_proj": (24, 16, 4),
}
T5 = {
  "encoder.block.1.layer.0.SelfAttention.q": (16, 24, 2),
  "encoder.block.0.layer.1.DenseReluDense.wi_0": (16, 24, 1),
  "decoder.block.0.layer.1.EncDecAttention.k": (16, 24, 3),
  "decoder.block.1.layer.2.DenseReluDense.wo": (24, 16, 2),
}
# Our path of each.
PATHS = {
  **{name: name.removeprefix("model.") for name in LLAMA},
  "encoder.block.1.layer.0.SelfAttention.q": "encoder.blocks.1.attention.q",
  "encoder.block.0.layer.1.DenseReluDense.wi_0": "encoder.blocks.0.mlp.wi_0",
  "decoder.block.0.layer.1.EncDecAttention.k": (
    "decoder.blocks.0.cross_attention.k"
  ),
  "decoder.block.1.layer.2.DenseReluDense.wo": "decoder.blocks.1.mlp.wo",
}


def pairs(layers, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Name -> A [d rank] and B [rank f], as if trained for long."""
  rng = np.random.default_rng(seed)
  return {
    name: (
      rng.normal(size=(d, rank)).astype(np.float32) / d**0.5,
      rng.normal(size=(rank, f)).astype(np.float32),
    )
    for name, (d, f, rank) in layers.items()
  }
