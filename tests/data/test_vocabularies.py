# SPDX-License-Identifier: Apache-2.0
import pytest
import tensorflow as tf

from sira_jax.data import languages, tasks
from tests.data import byte_tokenizer


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_every_language_survives_encoding(vocabulary, language):
  for task in tasks.TASKS:
    for row in tasks.rows(task, language, split="test"):
      for text in row:
        ids = vocabulary.encode(text)
        assert len(ids) == len(text.encode())
        assert vocabulary.decode(ids) == text


def test_tensorflow_agrees_with_python(vocabulary):
  text = "mach das Licht an, 关掉门"
  ids = vocabulary.encode(text)
  tensor = vocabulary.encode_tf(tf.constant(text))
  assert tensor.dtype == tf.int32
  assert tensor.numpy().tolist() == ids
  assert vocabulary.decode_tf(tensor).numpy().decode() == text
  both = tf.constant([[*ids, 2, 9], [*ids[:4], 2, 0, *ids[5:], 7]])
  decoded = [line.decode() for line in vocabulary.decode_tf(both).numpy()]
  assert decoded == [text, text[:4]]


def test_encoding_works_inside_a_dataset(vocabulary):
  dataset = tf.data.Dataset.from_tensor_slices(["on", "off"])
  dataset = dataset.map(vocabulary.encode_tf)
  assert dataset.element_spec.shape.as_list() == [None]
  rows = [row.tolist() for row in dataset.as_numpy_iterator()]
  assert rows == [vocabulary.encode("on"), vocabulary.encode("off")]


def test_decoding_stops_at_the_end_and_skips_padding(vocabulary):
  a, b, c = vocabulary.encode("abc")
  assert vocabulary.decode([a, 0, b, 2, c]) == "ab"
  assert vocabulary.decode([0, 0]) == ""
  assert vocabulary.decode([1, a]) == "<|im_start|>a"


def test_ids(vocabulary):
  assert (vocabulary.pad_id, vocabulary.eos_id) == (0, 2)
  assert vocabulary.vocab_size == 259
  assert vocabulary.extra_ids == 0
  assert vocabulary.unk_id is None
  assert vocabulary.bos_id is None


def test_equality_is_of_the_tokenizer_and_the_end(vocabulary):
  same = byte_tokenizer.vocabulary()
  assert same == vocabulary
  assert hash(same) == hash(vocabulary)
  assert byte_tokenizer.vocabulary(eos_id=1) != vocabulary
  other = byte_tokenizer.vocabulary(specials=["<pad>", "<s>", "</s>"])
  assert other != vocabulary
  assert vocabulary != "vocabulary"


def test_padding_in_text_is_refused(vocabulary):
  with pytest.raises(ValueError, match=r"<\|endoftext\|>.*in 'a<"):
    vocabulary.encode("a<|endoftext|>")


@pytest.mark.parametrize("eos_id", [0, -1, 259])
def test_end_of_sequence_must_be_a_token(eos_id):
  with pytest.raises(ValueError, match="eos_id from 1 to 258"):
    byte_tokenizer.vocabulary(eos_id=eos_id)


def test_batches_of_strings_are_refused(vocabulary):
  with pytest.raises(ValueError, match="one string"):
    vocabulary.encode_tf(tf.constant(["a", "b"]))
