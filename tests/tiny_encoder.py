"""Folders of the tiny encoders with a tokenizer of a few words."""

import json
import pathlib
import shutil

import tokenizers
from tokenizers import models, pre_tokenizers, processors

from tests.tiny_t5 import GOLDEN

WORDS = ("good", "bad", *(f"w{i}" for i in range(20)))
# As RoBERTa has them: 0 is text, and 1 pads.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def folder(made: pathlib.Path, name: str = "roberta", *, unigram: bool = False):
  """A copy of a golden folder; `unigram` is XLM-R's kind of tokenizer."""
  shutil.copytree(GOLDEN / "encoders" / name, made)
  tokens = [*SPECIAL, *WORDS]
  if unigram:
    pairs = [(token, -float(i)) for i, token in enumerate(tokens)]
    model = models.Unigram(pairs, unk_id=3)
  else:
    ids = {token: i for i, token in enumerate(tokens)}
    model = models.WordLevel(ids, unk_token="<unk>")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(list(SPECIAL))
  tokenizer.post_processor = processors.RobertaProcessing(
    ("</s>", 2), ("<s>", 0)
  )
  tokenizer.save(str(made / "tokenizer.json"))
  named = {"cls": "<s>", "sep": "</s>", "pad": "<pad>"}
  told = {f"{key}_token": value for key, value in named.items()}
  told["pad_token"] = {"content": "<pad>"}
  (made / "tokenizer_config.json").write_text(json.dumps(told))
  return made
