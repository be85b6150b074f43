# SPDX-License-Identifier: Apache-2.0
"""ByT5's tokenizer: a token for each byte, and no file to read it from.

Ids: 0 is padding, 1 ends a text, 2 is unknown, 3 + b is the byte b.

Source: Xue et al. 2022 (arXiv 2105.13626); seqio's ByteVocabulary.
"""

import tokenizers

SPECIAL = ("<pad>", "</s>", "<unk>")


def make() -> tokenizers.Tokenizer:
  """The tokenizer, as byte-level BPE without merges."""
  vocabulary = {token: i for i, token in enumerate(SPECIAL)}
  for byte, letter in enumerate(_letters()):
    vocabulary[letter] = len(SPECIAL) + byte
  built = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=[])
  )
  built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  built.decoder = tokenizers.decoders.ByteLevel()
  built.add_special_tokens(
    [tokenizers.AddedToken(token, normalized=False) for token in SPECIAL]
  )
  return built


def _letters():
  """What stands for each byte in byte-level BPE: printable ones themselves."""
  others = 256
  for byte in range(256):
    if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
      yield chr(byte)
    else:
      yield chr(others)
      others += 1
