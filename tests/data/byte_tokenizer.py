# SPDX-License-Identifier: Apache-2.0
"""A tokenizer and vocabulary of the 256 bytes, laid out as SmolLM2's."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sira_jax.data import vocabularies

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tokenizer(specials: list[str] = SPECIAL) -> tokenizers.Tokenizer:
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*specials, *alphabet]
  made = tokenizers.Tokenizer(
    models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
  )
  made.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(specials)
  return made


def vocabulary(
  *, eos_id: int = 2, specials: list[str] = SPECIAL
) -> vocabularies.TokenizerVocabulary:
  return vocabularies.TokenizerVocabulary(tokenizer(specials), eos_id)
