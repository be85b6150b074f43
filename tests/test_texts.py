# SPDX-License-Identifier: Apache-2.0
"""Texts as token ids, and back."""

import pytest

from sira_jax import texts
from tests.data import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
  return byte_tokenizer.vocabulary()._tokenizer


def test_there_and_back(tokenizer):
  (ids,) = texts.encode(tokenizer, ["señal\n"])
  assert len(ids) == 7 and not {0, 2} & set(ids)
  assert texts.decode(tokenizer, [0, *ids, 2], eos_id=2) == "señal\n"
  # Other tokens of the tokenizer's own are shown.
  assert texts.decode(tokenizer, [1], eos_id=2) == "<|im_start|>"
  with pytest.raises(ValueError, match=r"got the token '.+' \(id 0\) in 'a<"):
    texts.encode(tokenizer, ["a", "a" + tokenizer.id_to_token(0)])


def test_prompts():
  """As `data.pipeline` trains: padding first, or an end last."""
  assert texts.prompt([5, 6], eos_id=2, encoder=False) == [0, 5, 6]
  assert texts.prompt([5, 6], eos_id=2, encoder=True) == [5, 6, 2]
