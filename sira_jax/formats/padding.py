# SPDX-License-Identifier: Apache-2.0
"""Frees id 0, which pads, where a tokenizer has a token of text there.

Batches are padded with 0, as seqio does it. Llama 3 and Qwen have "!" there. In
such a base two ids change places: 0, and that of a token which no text holds.
The tokenizer and the rows of the model's tables change alike, so the model
computes what it did; a model that is written out has them back in place.
"""

import json
import re

import tokenizers

# Tokens that pad, or that were set aside and never trained.
_FREE = re.compile(r"reserved|unused|pad", re.IGNORECASE)
_NEVER_TEXT = re.compile(
  r"[<\[](/?s|.*(pad|unk|end|null).*)[>\]]", re.IGNORECASE
)


def spare(tokenizer: tokenizers.Tokenizer) -> int | None:
  """The id to change places with 0; None where 0 is no text, or none is free.

  Where none is free, texts with token 0 are refused later.
  """
  special = {
    i: token.content
    for i, token in tokenizer.get_added_tokens_decoder().items()
    if token.special
  }
  first = tokenizer.id_to_token(0)
  if first is None or 0 in special or _NEVER_TEXT.fullmatch(first):
    return None
  free = next((i for i in sorted(special) if _FREE.search(special[i])), None)
  # Unigram models have a list, where an id is a place.
  if free is None or type(_vocabulary(tokenizer)) is not dict:
    return None
  return free


def swapped(
  tokenizer: tokenizers.Tokenizer, spare: int
) -> tokenizers.Tokenizer:
  """The tokenizer with the tokens of 0 and `spare` in each other's places."""
  told = json.loads(tokenizer.to_str())
  places = {0: spare, spare: 0}
  vocabulary = told["model"]["vocab"]
  if type(vocabulary) is list:  # of pairs, where an id is a place
    vocabulary[0], vocabulary[spare] = vocabulary[spare], vocabulary[0]
    unknown = told["model"].get("unk_id")
    told["model"]["unk_id"] = places.get(unknown, unknown)
  else:
    # The library numbers added tokens itself, but for those of the vocabulary.
    vocabulary |= {one["content"]: one["id"] for one in told["added_tokens"]}
    told["model"]["vocab"] = {
      token: places.get(i, i) for token, i in vocabulary.items()
    }
  _renumber(told.get("post_processor"), places)
  for one in told["added_tokens"]:
    one["id"] = places.get(one["id"], one["id"])
  told["added_tokens"].sort(key=lambda one: one["id"])
  return tokenizers.Tokenizer.from_str(json.dumps(told))


def _renumber(processor, places):
  """What a post-processor puts around a text, in place."""
  processor = processor or {}
  for one in processor.get("processors", ()):
    _renumber(one, places)
  for name in {"sep", "cls"} & processor.keys():  # [token, id]
    token, i = processor[name]
    processor[name] = [token, places.get(i, i)]
  for one in (processor.get("special_tokens") or {}).values():
    one["ids"] = [places.get(i, i) for i in one["ids"]]


def _vocabulary(tokenizer):
  return json.loads(tokenizer.to_str())["model"]["vocab"]
