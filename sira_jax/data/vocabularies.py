# SPDX-License-Identifier: Apache-2.0
"""A base model's tokenizer as a seqio vocabulary.

seqio knows SentencePiece models and bytes; most decoders come with a BPE of
the `tokenizers` library. Id 0 is padding, for seqio pads and packs with it, so
a tokenizer fits if its id 0 never occurs in text.
"""

from collections.abc import Sequence
import functools
import hashlib
import json
import math

import numpy as np
import seqio
import tensorflow as tf
import tokenizers

from sira_jax import texts as texts_lib


class TokenizerVocabulary(seqio.Vocabulary):
  """`tokenizer` with padding 0 and end of sequence `eos_id`.

  Two vocabularies are equal if all that they are made of is.

  Args:
    tokenizer: of the base.
    eos_id: ends a text.
    first_id: begins every input, of an encoder.
    labels: of an encoder with a head: a target is one of them, and its one id
      is the label's number, from 1; padding is 0.
    numbers: whether the labels are the numbers of a regression.

  Raises:
    ValueError: if `eos_id` is 0 or not an id of the tokenizer, or a label is
      to be a number and is none.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    eos_id: int,
    *,
    first_id: int | None = None,
    labels: Sequence[str] | None = None,
    numbers: bool = False,
  ):
    super().__init__()
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if not 0 < eos_id < size:
      raise ValueError(
        f"Expected an eos_id from 1 to {size - 1}, got {eos_id}: 0 is padding"
        f" and the tokenizer has {size} ids."
      )
    self._tokenizer = tokenizer
    self._eos_id = eos_id
    self._size = size
    self._first = () if first_id is None else (first_id,)
    self.labels = None if labels is None else tuple(labels)
    self._ids = {label: i for i, label in enumerate(self.labels or (), 1)}
    self.values = None
    if numbers:
      self.values = np.array([_number(label) for label in labels], np.float32)

  @property
  def bos_id(self) -> None:
    """No token begins a text; the decoder's first input is padding."""
    return None

  @property
  def eos_id(self) -> int:
    """The id that ends a target."""
    return self._eos_id

  @property
  def unk_id(self) -> None:
    """Byte-level BPE has a token for every byte, so none is unknown."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._size

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of the tokenizer and `eos_id`, the same in every process."""
    text = f"{self._eos_id}\n{self._tokenizer.to_str()}"
    if self.labels is not None:
      own = [self._first, self.labels, self.values is not None]
      text += f"\n{json.dumps(own)}"
    return hashlib.sha256(text.encode()).hexdigest()

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each input, without the end of sequence.

    Raises:
      ValueError: if a text contains the token that serves as padding.
    """
    found = texts_lib.encode(self._tokenizer, texts)
    return [[*self._first, *ids] for ids in found] if self._first else found

  @property
  def ends_targets(self) -> bool:
    """Whether a target's ids are followed by the end: those of a label not."""
    return self.labels is None

  def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each target, without the end; or its label's number.

    Raises:
      ValueError: as `encode_batch`, or a text that is no label.
    """
    if self.labels is None:
      return self.encode_batch(texts)
    lost = sorted(set(texts) - self._ids.keys())
    if lost:
      raise ValueError(
        f"Expected each target to be one of config.head.labels"
        f" {self.labels!r:.300}, got {len(lost)} others, such as {lost[:5]}."
      )
    return [[self._ids[text]] for text in texts]

  def _encode(self, s: str) -> list[int]:
    return self.encode_batch([s])[0]

  def _decode(self, ids: Sequence[int]) -> str:
    return texts_lib.decode(self._tokenizer, ids, eos_id=self.eos_id)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    if s.shape.rank != 0:
      raise ValueError(
        f"Expected one string, got a tensor of shape {s.shape}. Map over the"
        " elements of the dataset before batching it."
      )

    def encode(text: np.ndarray | bytes) -> np.ndarray:
      # TensorFlow passes an array when run eagerly, bytes in a dataset.
      text = np.asarray(text, object).item()
      return np.array(self._encode(text.decode()), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows: np.ndarray) -> np.ndarray:
      flat = rows.reshape(-1, rows.shape[-1])
      texts = [self._decode(row).encode() for row in flat]
      return np.array(texts, object).reshape(rows.shape[:-1])

    text = tf.numpy_function(decode, [ids], tf.string, stateful=False)
    text.set_shape(ids.shape[:-1])
    return text

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, TokenizerVocabulary):
      return False
    return self is other or self.fingerprint == other.fingerprint

  def __hash__(self) -> int:
    return int(self.fingerprint[:15], 16)

  def __str__(self) -> str:
    return f"TokenizerVocabulary(size={self._size}, eos_id={self._eos_id})"


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(
      f"Expected each target to be a number, as config.head names no labels;"
      f" got {text!r:.100}. Name them, if it is one."
    )
  return value
