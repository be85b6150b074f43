# SPDX-License-Identifier: Apache-2.0
"""Reads a GGUF file's tokenizer: byte-level BPE, its tokens with a role."""

import dataclasses

import gguf
import numpy as np
import tokenizers

from sira_jax.formats import gguf_file
from sira_jax.formats.gguf_file import PathLike


def _smollm() -> tokenizers.pre_tokenizers.PreTokenizer:
  return tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


_PRE_TOKENIZERS = {"smollm": _smollm}
# Token types that are matched before BPE, and whether they are special.
_ADDED_TYPES = {
  gguf.TokenType.CONTROL: True,
  gguf.TokenType.USER_DEFINED: False,
}


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Ids with a role, None where the file names none."""

  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  unknown_id: int | None


def tokenizer(path: PathLike) -> tokenizers.Tokenizer:
  """The file's tokenizer, its control tokens registered as special.

  Raises:
    ValueError: another kind than byte-level BPE of a known pre-tokenizer, or
      tokens, types and merges that do not fit one another.
  """
  kind = gguf_file.entry(path, "tokenizer.ggml.model", str)
  pre = gguf_file.entry(path, "tokenizer.ggml.pre", str, "default")
  if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
    raise ValueError(
      f"{path}: expected a tokenizer of model gpt2 (byte-level BPE) with a "
      f"pre-tokenizer of {sorted(_PRE_TOKENIZERS)}, got model {kind[:100]}, "
      f"pre-tokenizer {pre[:100]}."
    )
  for option in ("add_bos_token", "add_eos_token", "add_space_prefix"):
    if gguf_file.entry(path, f"tokenizer.ggml.{option}", bool, False):
      raise ValueError(
        f"{path}: tokenizer.ggml.{option} is set; tokenizers that add to the "
        "text are not supported."
      )
  tokens = gguf_file.entry(path, "tokenizer.ggml.tokens", list)
  types = gguf_file.entry(path, "tokenizer.ggml.token_type", np.ndarray)
  merges = gguf_file.entry(path, "tokenizer.ggml.merges", list)
  vocabulary = {token: i for i, token in enumerate(tokens)}
  pairs = [tuple(merge.split(" ")) for merge in merges]
  _check_tokens(path, tokens, types, vocabulary)
  _check_merges(path, pairs, vocabulary)
  built = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=pairs)
  )
  built.pre_tokenizer = _PRE_TOKENIZERS[pre]()
  built.decoder = tokenizers.decoders.ByteLevel()
  for type_, special in _ADDED_TYPES.items():
    built.add_tokens(
      [
        tokenizers.AddedToken(token, special=special, normalized=False)
        for token, its_type in zip(tokens, types.tolist(), strict=True)
        if its_type == type_
      ]
    )
  return built


def special_tokens(path: PathLike) -> SpecialTokens:
  """The ids that the file gives a role.

  Raises:
    ValueError: one that is no token's.
  """
  count, ids = None, []
  for role in ("bos", "eos", "padding", "unknown"):
    name = f"tokenizer.ggml.{role}_token_id"
    token = gguf_file.entry(path, name, int, None)
    if token is not None:
      if count is None:
        count = len(gguf_file.entry(path, "tokenizer.ggml.tokens", list))
      if not 0 <= token < count:
        raise ValueError(
          f"{path}: expected {name} to be one of {count} tokens, got {token}."
        )
    ids.append(token)
  return SpecialTokens(*ids)


def _check_tokens(path, tokens, types, vocabulary):
  if len(vocabulary) < len(tokens) or "" in vocabulary:
    raise ValueError(
      f"{path}: expected tokenizer.ggml.tokens to differ from one another and"
      f" from the empty text; of {len(tokens)}, {len(vocabulary)} differ."
    )
  if len(types) != len(tokens) or types.dtype.kind not in "iu":
    raise ValueError(
      f"{path}: expected tokenizer.ggml.token_type to be {len(tokens)} whole"
      f" numbers, as many as tokens, got {len(types)} of {types.dtype}."
    )


def _check_merges(path, pairs, vocabulary):
  for pair in pairs:
    if len(pair) != 2 or not vocabulary.keys() >= {*pair, "".join(pair)}:
      raise ValueError(
        f"{path}: expected tokenizer.ggml.merges to be two tokens each that"
        f" make a third, got {' '.join(pair)[:100]!r}."
      )
