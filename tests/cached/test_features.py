"""A batch of given examples, by hand and as seqio makes it."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from sira_jax.cached import features, packing
from sira_jax.data import pipeline


def example(inputs, targets):
  return np.array(inputs, np.int32), np.array(targets, np.int32)


ROW = [example([5, 6, 7], [8, 2]), example([9], [3, 2])]


def test_a_packed_row_by_hand():
  batch = features.decoder([ROW], length=10, pack=True, prefix=True)
  assert {name: array[0].tolist() for name, array in batch.items()} == {
    "decoder_target_tokens": [5, 6, 7, 8, 2, 9, 3, 2, 0, 0],
    "decoder_input_tokens": [0, 5, 6, 7, 8, 0, 9, 3, 0, 0],
    "decoder_loss_weights": [0, 0, 0, 1, 1, 0, 1, 1, 0, 0],
    "decoder_segment_ids": [1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
    "decoder_positions": [0, 1, 2, 3, 4, 0, 1, 2, 0, 0],
    # The 0 that begins an example is of its inputs.
    "decoder_causal_attention": [1, 1, 1, 1, 0, 1, 1, 0, 0, 0],
  }


def test_trimmed_by_hand():
  rows = [[example([5, 6, 7], [8, 2])], [example([9], [3, 2])]]
  batch = features.decoder(rows, length=10, pack=False, prefix=False)
  short = features.trimmed(batch, (4, 6, 8))
  assert {k: v.shape for k, v in short.items()} == dict.fromkeys(batch, (2, 6))
  for name, values in short.items():
    np.testing.assert_array_equal(values, batch[name][:, :6])
    assert not batch["decoder_target_tokens"][:, 6:].any()
  exactly = features.trimmed(batch, (5,))
  assert exactly["decoder_target_tokens"][0].tolist() == [5, 6, 7, 8, 2]
  assert features.trimmed(batch, (4,)).keys() == batch.keys()
  whole = features.trimmed(batch, (4,))["decoder_target_tokens"]
  np.testing.assert_array_equal(whole, batch["decoder_target_tokens"])


def test_an_encoder_is_trimmed_and_its_targets_are_not():
  rows = [[example([5, 6, 7], [8, 2])], [example([9], [3, 2])]]
  batch = features.encoder_decoder(
    rows, length=9, targets_length=7, pack=False, end=4
  )
  short = features.trimmed(batch, (2, 4))
  assert short["encoder_input_tokens"].tolist() == [[5, 6, 7, 4], [9, 4, 0, 0]]
  assert short["decoder_target_tokens"].shape == (2, 7)


@pytest.mark.parametrize(
  "more, words",
  [
    (dict(buckets=(8, 4)), r"buckets that grow.*got \(8, 4\)"),
    (dict(buckets=(16,)), "all below the length of 16"),
    (dict(buckets=(1, 4)), "2 tokens at least"),
    (dict(buckets=4), "such as"),
    (dict(buckets=(4,), pack=True), "buckets or packed rows, got both"),
  ],
)
def test_buckets_that_cannot_be(more, words):
  good = dict(batch_size=2, length=16, targets_length=None, start=0)
  features.check(**good, buckets=(4, 8))
  with pytest.raises(ValueError, match=words):
    features.check(**good, **more)


def test_numbers_by_hand():
  """Of two texts in a row, the labels number 2 and 1."""
  row = [example([5, 6], [2]), example([7], [1])]
  pairs = features.encoder_decoder(
    [row], length=7, targets_length=3, pack=True, end=4
  )
  batch = features.labelled(pairs, np.float32([0.5, 1.5]))
  assert {name: array[0].tolist() for name, array in batch.items()} == {
    "encoder_input_tokens": [5, 6, 4, 7, 4, 0, 0],
    "encoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
    "encoder_positions": [0, 1, 2, 0, 1, 0, 0],
    "decoder_loss_weights": [1, 1, 0],
    "decoder_target_values": [1.5, 0.5, 0.5],  # the last does not count
  }


def drawn(count=300):
  rng = np.random.default_rng(1)
  sizes = rng.integers(1, 9, (count, 2))
  return [
    example(*(rng.integers(3, 99, size) for size in pair)) for pair in sizes
  ]


def rows_of(examples, sizes, limits, pack):
  """As seqio packs: it begins anew after as many examples as the limit."""
  if not pack:
    return [[one] for one in examples]
  every, found = max(limits), []
  for first in range(0, len(examples), every):
    part = examples[first : first + every]
    own = sizes[first : first + every]
    padded = np.concatenate([own, np.tile(limits, (5000, 1))])
    packed = packing.Packed(lambda a, b, of=padded: of[a:b], np.array(limits))
    begin = [n for n in packed(0, len(part)) if n <= len(part)]
    found += [part[a:b] for a, b in itertools.pairwise(begin)]
  return found


def streamed(examples):
  return tf.data.Dataset.from_generator(
    lambda: ({"inputs": x, "targets": y} for x, y in examples),
    output_signature={
      name: tf.TensorSpec([None], tf.int32) for name in ("inputs", "targets")
    },
  )


def assert_same(dataset, batch, count):
  dataset = dataset.batch(count, drop_remainder=True)
  (found,) = pipeline._arrays(dataset.take(1), prefix=True)
  assert found.keys() == batch.keys()
  for name, array in found.items():
    assert array.dtype == batch[name].dtype, name
    np.testing.assert_array_equal(array, batch[name][:count], name)


@pytest.mark.parametrize("pack", [False, True])
def test_a_decoders_rows_are_seqios(pack):
  examples = drawn()
  sizes = np.array([[len(x) + len(y)] for x, y in examples])
  rows = rows_of(examples, sizes, [24], pack)
  assert len(rows) == 300 or (pack and 50 < len(rows) < 150)
  batch = features.decoder(rows, length=24, pack=pack, prefix=True)
  dataset = pipeline._decoder_rows(streamed(examples), length=24, pack=pack)
  assert_same(dataset, batch, len(rows))


@pytest.mark.parametrize("pack", [False, True])
def test_an_encoder_decoders_rows_are_seqios(pack):
  examples = drawn()
  sizes = np.array([[len(x) + 1, len(y)] for x, y in examples])
  rows = rows_of(examples, sizes, [20, 14], pack)
  assert len(rows) == 300 or (pack and 50 < len(rows) < 200)
  batch = features.encoder_decoder(
    rows, length=20, targets_length=14, pack=pack, end=2
  )
  dataset = pipeline._encoder_decoder_rows(
    streamed(examples), {"inputs": 20, "targets": 14}, end=2, pack=pack
  )
  assert_same(dataset, batch, len(rows))
