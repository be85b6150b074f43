# SPDX-License-Identifier: Apache-2.0
import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from sira_jax.data import lengths, mixtures, pipeline, tasks
from tests.data import byte_tokenizer

LENGTH = 200


def take(count, mixture, **settings):
  settings = {"batch_size": 8, "length": LENGTH, "seed": 3} | settings
  return list(itertools.islice(pipeline.batches(mixture, **settings), count))


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def examples_of(batch, vocabulary):
  """The texts of each example, segment by segment, and checks of its layout."""
  found = []
  packed = "decoder_segment_ids" in batch
  for row in range(len(batch["decoder_target_tokens"])):
    tokens = batch["decoder_target_tokens"][row]
    segments = (
      batch["decoder_segment_ids"][row] if packed else (tokens != 0).astype(int)
    )
    count = segments.max()
    real = (segments > 0).sum()
    # Contiguous, numbered from 1, padding at the end.
    assert segments[:real].tolist() == sorted(segments[:real])
    assert set(segments[:real]) == set(range(1, count + 1))
    for name in batch:
      assert not batch[name][row][real:].any() or name == "decoder_input_tokens"
    for segment in range(1, count + 1):
      at = np.flatnonzero(segments == segment)
      ids = tokens[at]
      shifted = batch["decoder_input_tokens"][row][at]
      assert shifted.tolist() == [0, *ids[:-1]]
      if packed:
        positions = batch["decoder_positions"][row][at]
        assert positions.tolist() == list(range(len(at)))
      weights = batch["decoder_loss_weights"][row][at]
      inputs = int((weights == 0).sum())
      assert weights.tolist() == [0] * inputs + [1] * (len(at) - inputs)
      assert ids[-1] == vocabulary.eos_id
      found.append(
        (vocabulary.decode(ids[:inputs]), vocabulary.decode(ids[inputs:]))
      )
  return found


def sources(entries, *, split):
  return {
    tuple(row)
    for entry in entries
    for row in tasks.rows(entry.task, entry.language, split=split)
  }


@pytest.mark.parametrize("pack", [False, True])
def test_shapes_and_types(mixture, pack):
  (batch,) = take(1, mixture, pack=pack)
  assert set(batch) == {
    *("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"),
    *(("decoder_segment_ids", "decoder_positions") if pack else ()),
  }
  for name, array in batch.items():
    assert array.shape == (8, LENGTH)
    assert array.flags.writeable and array.flags.owndata
    expected = np.float32 if name == "decoder_loss_weights" else np.int32
    assert array.dtype == expected


@pytest.mark.parametrize("pack", [False, True])
def test_a_prefix_is_the_inputs(mixture, pack):
  """One token more than the inputs: they are read a token later, after a 0."""
  (batch,) = take(1, mixture, pack=pack, prefix=True)
  (causal,) = take(1, mixture, pack=pack)
  prefix = batch.pop("decoder_causal_attention")
  assert_equal(batch, causal)
  answers = (batch["decoder_loss_weights"] > 0).astype(int)
  real = batch["decoder_target_tokens"] != 0
  first = answers & (np.pad(answers, ((0, 0), (1, 0)))[:, :-1] == 0)
  np.testing.assert_array_equal(prefix, real & ((answers == 0) | first))


def test_packed_rows_hold_the_examples_of_unpacked_ones(mixture, vocabulary):
  packed = [
    example
    for batch in take(9, mixture, pack=True)
    for example in examples_of(batch, vocabulary)
  ]
  assert len(packed) > 100
  unpacked = [
    example
    for batch in take(len(packed) // 8 + 1, mixture)
    for example in examples_of(batch, vocabulary)
  ]
  assert unpacked[: len(packed)] == packed


def test_batches_hold_training_examples_uncut(mixture, vocabulary):
  longest = max(row.longest for row in lengths.report(mixture, length=1))
  trained = sources(mixture.train, split="train")
  found = set()
  for batch in take(150, mixture, length=longest, batch_size=32):
    found |= set(examples_of(batch, vocabulary))
  assert found <= trained
  assert len(found) > 3000


def test_skipping_leaves_out_and_never_cuts(mixture, vocabulary):
  rows = [
    row
    for entry in mixture.train
    for row in tasks.rows(entry.task, entry.language, split="train")
  ]
  fitting = {tuple(row) for row in rows if len("".join(row).encode()) + 1 <= 60}
  skipped = sum(r.too_long for r in lengths.report(mixture, length=60))
  assert skipped == sum(tuple(row) not in fitting for row in rows)
  assert skipped > 1000
  for pack in (False, True):
    for batch in take(30, mixture, length=60, too_long="skip", pack=pack):
      assert set(examples_of(batch, vocabulary)) <= fitting


def test_zero_shot_languages_are_not_trained_on(mixture, vocabulary):
  held_out = [e for e in mixture.evaluation if e.zero_shot]
  trained = sources(mixture.train, split="train")
  foreign = {
    text
    for split in ("train", "validation", "test")
    for text, _ in sources(held_out, split=split)
  } - {text for text, _ in trained}
  assert len(foreign) > 8000
  seen = {
    text
    for batch in take(100, mixture, batch_size=32)
    for text, _ in examples_of(batch, vocabulary)
  }
  assert not seen & foreign


@pytest.mark.parametrize("pack", [False, True])
def test_starting_late_equals_consuming(mixture, pack):
  whole = take(200, mixture, pack=pack)
  for start in np.random.default_rng(0).integers(1, 150, 3):
    late = take(50, mixture, pack=pack, start=int(start))
    for one, other in zip(whole[start : start + 50], late, strict=True):
      assert_equal(one, other)
  assert (
    whole[0]["decoder_input_tokens"] != whole[1]["decoder_input_tokens"]
  ).any()


def test_seeds_give_other_orders(mixture, vocabulary):
  (one,), (other,) = take(1, mixture), take(1, mixture, seed=4)
  assert not set(examples_of(one, vocabulary)) & set(
    examples_of(other, vocabulary)
  )


def test_buckets(mixture, vocabulary):
  """Batches are as long as needed; nothing is lost, and any place is found."""
  buckets = (90, 120)
  batches = take(60, mixture, buckets=buckets, too_long="skip")
  widths = [batch["decoder_target_tokens"].shape[1] for batch in batches]
  assert set(widths) == {90, 120, LENGTH}
  found = []
  for batch, width in zip(batches, widths, strict=True):
    assert {array.shape for array in batch.values()} == {(8, width)}
    tokens = (batch["decoder_target_tokens"] != 0).sum(axis=1)
    below = max([size for size in (0, *buckets) if size < width])
    assert (tokens > below).all() and (tokens <= width).all()
    found += examples_of(batch, vocabulary)
  rest = take(90, mixture, too_long="skip")
  others = [one for batch in rest for one in examples_of(batch, vocabulary)]
  assert set(found) <= set(others)
  late = take(10, mixture, buckets=buckets, too_long="skip", start=50)
  for one, other in zip(batches[50:], late, strict=True):
    assert_equal(one, other)


def test_examples_come_at_their_rates(vocabulary):
  mixture = mixtures.build(
    vocabulary, languages=("en",), rates={"intents": 3, "dates": 1}
  )
  dates = sources(mixture.train[1:], split="train")
  drawn = [
    example
    for batch in take(40, mixture, batch_size=32)
    for example in examples_of(batch, vocabulary)
  ]
  share = sum(example in dates for example in drawn) / len(drawn)
  assert share == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"batch_size": 0}, "batch_size of at least 1, got 0"),
    ({"length": 1}, "length of at least 2, got 1"),
    ({"start": -1}, "start of at least 0, got -1"),
    ({"length": 60}, "intents in de: .*\n.*\n?.*None is ever cut"),
  ],
)
def test_mistakes_are_told_before_the_first_batch(mixture, settings, message):
  settings = {"batch_size": 4, "length": LENGTH} | settings
  with pytest.raises(ValueError, match=message):
    pipeline.batches(mixture, **settings)


PROGRAM = """
import hashlib
from sira_jax.data import evaluation, mixtures, pipeline
from tests.data import byte_tokenizer
mixture = mixtures.build(
  byte_tokenizer.vocabulary(), languages=("en", "de"), zero_shot=("nl", "ko")
)
batch = next(pipeline.batches(
  mixture, batch_size=8, length=200, pack=True, seed=3
))
print(mixtures.fingerprint(mixture))
print(hashlib.sha256(batch["decoder_input_tokens"].tobytes()).hexdigest())
print([s.inputs[0] for s in evaluation.evaluation(mixture, examples=1)])
"""


def test_another_process_has_the_same_data_and_is_quiet(mixture, capsys):
  run = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=os.environ | {"PYTHONHASHSEED": "7"},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  assert run.stderr == ""
  # The vocabulary of the fixture is another object with the same content.
  capsys.readouterr()
  exec(PROGRAM, {"byte_tokenizer": byte_tokenizer})
  assert run.stdout == capsys.readouterr().out


ENCODER_DECODER = dict(length=48, targets_length=40, too_long="skip")


@pytest.mark.parametrize("pack", [False, True])
def test_encoder_decoder(vocabulary, pack):
  """Inputs and an end before the encoder; targets alone after the decoder."""
  mixture = mixtures.build(vocabulary, tasks=("dates",), languages=("en",))
  batch = next(
    pipeline.batches(mixture, batch_size=4, pack=pack, **ENCODER_DECODER)
  )
  names = {"encoder_input_tokens", "decoder_input_tokens"}
  names |= {"decoder_target_tokens", "decoder_loss_weights"}
  if pack:
    names |= {f"{side}_segment_ids" for side in ("encoder", "decoder")}
    names |= {f"{side}_positions" for side in ("encoder", "decoder")}
  assert set(batch) == names
  known = dict(tasks.rows("dates", "en", split="train"))
  tokens = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
  assert [array.shape for array in tokens] == [(4, 48), (4, 40)]
  ids = [np.int32(array != 0) for array in tokens]
  if pack:
    ids = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
    assert max(ids[0].max(), ids[1].max()) > 1
  for row in range(4):
    for example in range(1, ids[0][row].max() + 1):
      inputs, targets = (
        array[row][own[row] == example].tolist()
        for array, own in zip(tokens, ids, strict=True)
      )
      assert inputs[-1] == targets[-1] == vocabulary.eos_id
      prompt, target = (vocabulary.decode(x[:-1]) for x in (inputs, targets))
      assert known[prompt] == target
  real = batch["decoder_target_tokens"] != 0
  np.testing.assert_array_equal(batch["decoder_loss_weights"], real)


def test_encoder_decoder_lengths(vocabulary):
  mixture = mixtures.build(vocabulary, tasks=("dates",), languages=("en",))
  (row,) = lengths.report(mixture, length=8, targets_length=99)
  rows = tasks.rows("dates", "en", split="train")
  longest = [
    max(len(vocabulary.encode(x)) for x in xs) for xs in zip(*rows, strict=True)
  ]
  assert row.longest == (longest[0] + 1, longest[1] + 1)
  message = (
    rf"8 tokens of input and 99 of target.*length to {row.longest[0]} and"
    rf" targets_length to {row.longest[1]} or more"
  )
  with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
    pipeline.batches(mixture, batch_size=1, length=8, targets_length=99)
