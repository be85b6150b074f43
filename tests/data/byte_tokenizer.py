# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of the 256 bytes, laid out as SmolLM2's."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sira_jax.data import vocabularies

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def vocabulary(
  *, eos_id: int = 2, specials: list[str] = SPECIAL
) -> vocabularies.TokenizerVocabulary:
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*specials, *alphabet]
  tokenizer = tokenizers.Tokenizer(
    models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
  )
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(specials)
  return vocabularies.TokenizerVocabulary(tokenizer, eos_id)
