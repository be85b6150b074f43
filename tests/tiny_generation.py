"""Two tiny Hugging Face models, and what its `generate` made of them."""

import numpy as np

from sira_jax.formats import huggingface
from tests.tiny_t5 import GOLDEN

MODELS = ("tiny_llama_sharded", "tiny_t5_gated")
NEW_TOKENS = 10


class Golden:
  """One of `MODELS`: ours in evaluation mode, and what is to come of it."""

  def __init__(self, name: str):
    self.model = huggingface.load_model(GOLDEN / name)
    self.model.eval()
    self._arrays = {
      key.removeprefix(f"{name}/"): array
      for key, array in np.load(GOLDEN / "generation.npz").items()
      if key.startswith(f"{name}/")
    }
    self.ends = self._arrays["ends"].tolist()
    self.prompts = [ids.tolist() for ids in self.of("prompt")]

  def of(self, kind: str) -> list[np.ndarray]:
    """One array for each prompt."""
    found = (f"{kind}/{i}" for i in range(4))
    return [self._arrays[key] for key in found]

  def tokens(self, kind: str) -> list:
    """Of each prompt the tokens, or a list of them for each beam."""

    def cut(array):
      if array.ndim > 1:
        return [cut(row) for row in array]
      return array[array >= 0].tolist()

    return [cut(array) for array in self.of(kind)]

  def probabilities(self, kind: str) -> tuple[list[int], np.ndarray]:
    """The one prompt that has them, and those of its first new token."""
    return self.prompts[1], self._arrays[f"filters/{kind}/1"]
