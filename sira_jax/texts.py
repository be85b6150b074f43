# SPDX-License-Identifier: Apache-2.0
"""Texts as the token ids that a model reads, and back."""

from collections.abc import Sequence

import tokenizers

# Pads and packs, and is what a decoder reads first.
PADDING = 0


def encode(
  tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> list[list[int]]:
  """Token ids of each text, with nothing before or after them.

  Raises:
    ValueError: a text contains the token that serves as padding.
  """
  encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
  ids = [encoding.ids for encoding in encodings]
  for text, tokens in zip(texts, ids, strict=True):
    if PADDING in tokens:
      token = tokenizer.id_to_token(PADDING)
      raise ValueError(
        f"Expected no padding inside a text, got the token {token!r} (id"
        f" {PADDING}) in {text!r}. Remove it from the text."
      )
  return ids


def decode(
  tokenizer: tokenizers.Tokenizer, ids: Sequence[int], *, eos_id: int
) -> str:
  """The text of token ids but padding and `eos_id`; all others are shown."""
  ignored = (PADDING, eos_id)
  kept = [int(token) for token in ids if token not in ignored]
  return tokenizer.decode(kept, skip_special_tokens=False)


def prompt(ids: Sequence[int], *, eos_id: int, encoder: bool) -> list[int]:
  """A text's ids as they are decoded from, which is as in training.

  A decoder reads padding and then them; an encoder, them and then an end.
  """
  return [*ids, eos_id] if encoder else [PADDING, *ids]
