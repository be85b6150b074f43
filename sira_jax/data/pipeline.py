# SPDX-License-Identifier: Apache-2.0
"""Training batches from a mixture: endless, shuffled, repeatable."""

from collections.abc import Iterator, Sequence

import numpy as np
import seqio
import tensorflow as tf

from sira_jax.cached import features
from sira_jax.data import lengths, mixtures, quiet
from sira_jax.run_data import Batch


def batches(
  mixture: mixtures.Mixture,
  *,
  batch_size: int,
  length: int,
  targets_length: int | None = None,
  pack: bool = False,
  seed: int = 0,
  start: int = 0,
  too_long: str = "error",
  buckets: Sequence[int] = (),
  prefix: bool = False,
) -> Iterator[Batch]:
  """The endless batches of a run, from number `start` on.

  An example is its inputs followed by its targets; `decoder_input_tokens` are
  `decoder_target_tokens` one later, with 0 first; `decoder_loss_weights` are 1
  on targets, else 0. All have shape [batch_size, length].

  With `targets_length` they are for an encoder-decoder: `encoder_input_tokens`
  [batch_size, length] are the inputs and an end, and the decoder's entries,
  [batch_size, targets_length], are of targets alone.

  Where the vocabulary has labels, they are for an encoder with a head: the
  targets are the labels' numbers, from 0, or `decoder_target_values`, and a row
  has as many, `targets_length`, as texts that it may hold.

  With `pack`, a row holds as many examples as follow one another and fit.
  `decoder_segment_ids` number them from 1, 0 is padding; `decoder_positions`
  count from 0 in each; an encoder has its own.

  With `prefix`, for a prefix LM, `decoder_causal_attention` is 1 from the 0
  that begins an example to the last token of its inputs, else 0.

  Batch n depends on the mixture, the sizes, `pack`, `too_long` and `seed` only;
  `start` computes the batches before it and drops them, on two busy cores some
  900 packed or 4,500 unpacked rows of 128 tokens a second.

  Args:
    mixture: what to train on.
    batch_size: rows of a batch.
    length: tokens of a row, or of an encoder's.
    targets_length: tokens of a decoder's row beside an encoder; None for a
      decoder alone; texts of a row of an encoder with a head.
    pack: whether to put several examples into a row.
    seed: of the order and of the mixing.
    start: number of batches consumed before.
    too_long: "error" or "skip", for examples of more than `length` tokens.
    buckets: lengths below `length` that an unpacked batch may have, too; each
      example is in one of the smallest in which it fits. An encoder-decoder's
      are of what the encoder reads.
    prefix: whether to say where inputs are.

  Raises:
    ValueError: at once, if a number is out of range or examples are too long.
  """
  features.check(
    batch_size=batch_size,
    length=length,
    targets_length=targets_length,
    start=start,
    buckets=buckets,
    pack=pack,
  )
  lengths.check(
    mixture, length=length, targets_length=targets_length, too_long=too_long
  )
  with quiet.logs():
    dataset = _examples(mixture, seed=seed)
    if targets_length is None:
      dataset = _decoder_rows(dataset, length=length, pack=pack)
    else:
      end = mixture.vocabulary.eos_id
      sizes = {"inputs": length, "targets": targets_length}
      dataset = _encoder_decoder_rows(dataset, sizes, end=end, pack=pack)
    if buckets:
      dataset = _bucketed(dataset, buckets, batch_size)
    else:
      dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = dataset.skip(start).prefetch(2)
  arrays = _arrays(dataset, prefix=prefix)
  if buckets:
    arrays = (features.trimmed(batch, buckets) for batch in arrays)
  if mixture.vocabulary.labels is None:
    return arrays
  values = mixture.vocabulary.values
  return (features.labelled(batch, values) for batch in arrays)


def _examples(mixture: mixtures.Mixture, *, seed: int) -> tf.data.Dataset:
  """Tokens of inputs and targets, mixed, untrimmed."""
  return mixture.provider.get_dataset(
    # Given lengths, seqio would trim inputs and targets to them.
    sequence_length=None,
    trim_output_features=False,
    split="train",
    shuffle=True,
    seed=seed,
    num_epochs=None,
    # The rows are in memory anyway.
    try_in_mem_cache=False,
  )


def _decoder_rows(
  dataset: tf.data.Dataset, *, length: int, pack: bool
) -> tf.data.Dataset:
  """A decoder's features of the examples that fit into `length` tokens."""
  dataset = dataset.filter(
    lambda row: tf.size(row["inputs"]) + tf.size(row["targets"]) <= length
  )
  converter = seqio.PrefixLMFeatureConverter(
    pack=pack,
    loss_on_targets_only=True,
    # It checks inputs and targets against lengths of their own, while the
    # only limit is that of their sum, which all examples here observe.
    apply_length_check=False,
  )
  return converter(dataset, {"inputs": length - 1, "targets": 1})


def _encoder_decoder_rows(
  dataset: tf.data.Dataset, sizes: dict[str, int], *, end: int, pack: bool
) -> tf.data.Dataset:
  """An encoder-decoder's features of the examples that fit."""
  dataset = dataset.map(
    lambda row: row | {"inputs": tf.concat([row["inputs"], [end]], axis=0)}
  )
  dataset = dataset.filter(
    lambda row: tf.reduce_all(
      [tf.size(row[name]) <= size for name, size in sizes.items()]
    )
  )
  return seqio.EncDecFeatureConverter(pack=pack)(dataset, sizes)


def _bucketed(
  dataset: tf.data.Dataset, buckets: Sequence[int], batch_size: int
) -> tf.data.Dataset:
  """Batches of rows of one bucket, each when it is full."""

  def bucket(row):
    name = "encoder_input_tokens"
    tokens = row[name if name in row else "decoder_target_tokens"]
    longer = tf.math.count_nonzero(tokens) > tf.constant(buckets, tf.int64)
    return tf.math.count_nonzero(longer)

  return dataset.group_by_window(
    key_func=bucket,
    reduce_func=lambda _, rows: rows.batch(batch_size),
    window_size=batch_size,
  )


def _arrays(dataset: tf.data.Dataset, *, prefix: bool) -> Iterator[Batch]:
  """Copies, for TensorFlow owns the memory of what it yields."""
  for batch in dataset.as_numpy_iterator():
    yield {
      name: np.array(
        values, np.float32 if name == "decoder_loss_weights" else np.int32
      )
      for name, values in batch.items()
      # seqio makes it for every decoder; a causal one refuses it.
      if prefix or name != "decoder_causal_attention"
    }
