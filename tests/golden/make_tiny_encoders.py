# SPDX-License-Identifier: Apache-2.0
"""Makes folders of tiny random encoders, their states and their logits.

Run `python -m tests.golden.make_tiny_encoders` with torch and transformers
installed; the folders in `encoders` came from torch 2.13.0 and transformers
5.23.0. `expected.npz` has three rows of 20, 13 and 6 tokens, padded to 20, the
states of all tokens after the last block and, where there is a pooler, what it
gives; where there is a head, its logits.
"""

import pathlib

import numpy as np
import torch
import transformers

from tests.golden.make_tiny_t5 import randomize

FOLDER = pathlib.Path(__file__).parent / "encoders"
LENGTHS = (20, 13, 6)
SIZES = dict(
  vocab_size=64,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=24,
  layer_norm_eps=1e-3,
  max_position_embeddings=40,
  attn_implementation="eager",
)
MODELS = {
  "bert": ("BertModel", {}),
  "bert_classifier": ("BertForSequenceClassification", dict(num_labels=3)),
  "bert_words": ("BertForMaskedLM", dict(hidden_act="gelu_new")),
  "roberta": ("RobertaModel", dict(type_vocab_size=1)),
  "xlm_roberta_classifier": (
    "XLMRobertaForSequenceClassification",
    dict(type_vocab_size=1, num_labels=5, pad_token_id=4),
  ),
}


def make(name: str, architecture: str, settings) -> None:
  """A folder of one model."""
  torch.manual_seed(len(name))
  kind = getattr(transformers, architecture)
  model = kind(kind.config_class(**(SIZES | settings))).eval()
  randomize(model)
  pad = model.config.pad_token_id
  tokens = torch.randint(5, model.config.vocab_size, (len(LENGTHS), 20))
  tokens[:, 0] = 0 if pad else 3  # RoBERTa's first token is 0
  types = torch.randint(0, model.config.type_vocab_size, tokens.shape)
  real = torch.arange(20)[None] < torch.tensor(LENGTHS)[:, None]
  tokens = torch.where(real, tokens, pad)
  given = dict(
    input_ids=tokens, token_type_ids=types, attention_mask=real.long()
  )
  with torch.no_grad():
    body = model.base_model(**given)
    found = {"states": body.last_hidden_state}
    if body.pooler_output is not None:
      found["pooled"] = body.pooler_output
    if "SequenceClassification" in architecture:
      found["logits"] = model(**given).logits
  folder = FOLDER / name
  model.save_pretrained(folder)
  for file in folder.iterdir():
    file.chmod(0o644)
  np.savez_compressed(
    folder / "expected.npz",
    encoder_input_tokens=tokens.numpy(),
    encoder_type_ids=types.numpy(),
    **{key: value.numpy() for key, value in found.items()},
  )
  print(name, {k: v.abs().mean().item() for k, v in found.items()})


if __name__ == "__main__":
  for name, (architecture, settings) in MODELS.items():
    make(name, architecture, settings)
