"""What a run reads of a cache: the examples, their order, and going on."""

import itertools
import time

import jax
import numpy as np
import pytest

from sira_jax import assembly, sharding
from sira_jax.cached import layout, order, reader
from sira_jax.data import lengths, mixtures, pipeline, tasks

SETTINGS = dict(batch_size=4, length=64, too_long="skip", seed=5)


def take(cached, count, **more):
  found = reader.batches(cached.opened, **SETTINGS | more)
  return list(itertools.islice(found, count))


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def unpacked(batch):
  return [
    (tuple(ids[(ids != 0) & (w == 0)].tolist()), tuple(ids[w > 0].tolist()))
    for ids, w in zip(
      batch["decoder_target_tokens"], batch["decoder_loss_weights"], strict=True
    )
  ]


def of_entry(mixture, entry, *, length):
  inputs, targets = tasks.tokens(
    entry.task,
    entry.language,
    split="train",
    vocabulary=mixture.vocabulary,
    known=mixture.known,
  )
  end = mixture.vocabulary.eos_id
  pairs = [(tuple(x), (*y, end)) for x, y in zip(inputs, targets, strict=True)]
  return [pair for pair in pairs if sum(map(len, pair)) <= length]


def test_an_epoch_of_each_entry_is_its_examples(cached):
  """All that fit, none cut, once; as they are streamed."""
  skipped = 0
  for entry in cached.data.train:
    wanted = sorted(of_entry(cached.mixture, entry, length=64))
    skipped += entry.examples - len(wanted)
    settings = SETTINGS | {"batch_size": 1}
    found = reader.batches(cached.opened, only=entry, **settings)
    epochs = [[unpacked(next(found))[0] for _ in wanted] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
    assert epochs[0] != epochs[1]
  assert skipped > 20


def test_samples_are_one_entrys(cached):
  entry = cached.data.train[1]
  wanted = set(of_entry(cached.mixture, entry, length=64))
  for batch in itertools.islice(cached.data.samples(entry), 20):
    assert len(batch["decoder_target_tokens"]) == 1
    assert set(unpacked(batch)) <= wanted


def test_features_are_the_streamed_ones(cached):
  """Names, types and shapes."""
  for pack, prefix in itertools.product((False, True), repeat=2):
    more = dict(pack=pack, prefix=prefix)
    (one,) = take(cached, 1, **more)
    other = next(pipeline.batches(cached.mixture, **SETTINGS, **more))
    describe = lambda b: {k: (v.dtype, v.shape) for k, v in b.items()}  # noqa: E731
    assert describe(one) == describe(other)
    assert all(array.flags.writeable for array in one.values())


def test_rates(cached):
  """Exact over a block, whatever is left out."""
  batches = take(cached, order.BLOCK // 4)
  drawn = [one for batch in batches for one in unpacked(batch)]
  for entry in cached.data.train:
    own = set(of_entry(cached.mixture, entry, length=64))
    count = sum(one in own for one in drawn)
    assert count == pytest.approx(entry.rate * order.BLOCK, abs=2)


def test_packed_rows_are_the_unpacked_ones_in_turn(cached):
  rows = [e for b in take(cached, 30, pack=True) for e in by_segment(b)]
  single = [e for b in take(cached, len(rows) // 4) for e in unpacked(b)]
  assert len(rows) > 120
  assert rows[: len(single)] == single


BUCKETS = (24, 36, 48)


def test_buckets(cached):
  """As long as needed; the examples are those that come without, in turn."""
  batches = take(cached, 60, buckets=BUCKETS)
  widths = [batch["decoder_target_tokens"].shape[1] for batch in batches]
  assert set(widths) == {*BUCKETS, 64}
  for batch, width in zip(batches, widths, strict=True):
    assert {array.shape for array in batch.values()} == {(4, width)}
    tokens = (batch["decoder_target_tokens"] != 0).sum(axis=1)
    below = max([size for size in (0, *BUCKETS) if size < width])
    assert (tokens > below).all() and (tokens <= width).all()
  found = [e for b in batches for e in unpacked(b)]
  single = [e for b in take(cached, 90) for e in unpacked(b)]
  wide = lambda e: sum(map(len, e)) > 48  # noqa: E731
  for kind in (wide, lambda e: not wide(e)):
    own = [e for e in found if kind(e)]
    if kind is wide:
      assert own == [e for e in single if kind(e)][: len(own)]
    assert own and set(own) <= set(single)


def by_segment(batch):
  found = []
  for row, segments in enumerate(batch["decoder_segment_ids"]):
    for number in range(1, segments.max() + 1):
      at = segments == number
      ids = batch["decoder_target_tokens"][row][at]
      answer = batch["decoder_loss_weights"][row][at] > 0
      found.append((tuple(ids[~answer].tolist()), tuple(ids[answer].tolist())))
  return found


@pytest.mark.parametrize(
  "more", [{}, {"pack": True}, {"buckets": BUCKETS}], ids=str
)
def test_going_on_anywhere_is_exact(cached, more):
  whole = take(cached, 900, **more)
  for start in np.random.default_rng(0).integers(1, 850, 5):
    late = take(cached, 50, **more, start=int(start))
    for one, other in zip(whole[start : start + 50], late, strict=True):
      assert_equal(one, other)


def test_going_on_far_reads_nothing_before(cached, monkeypatch):
  """After 10,000 packed batches; no record of theirs is asked for."""
  read = []
  records = cached.opened.records
  ask = type(records).__getitems__
  monkeypatch.setattr(
    type(records),
    "__getitems__",
    lambda self, keys: read.append(len(keys)) or ask(self, keys),
  )
  begun = time.monotonic()
  (batch,) = take(cached, 1, pack=True, start=10_000)
  print(f"10,000 batches on: {time.monotonic() - begun:.2f} s")
  assert 0 < len(read) < 20 and sum(read) < 1000
  again = take(cached, 3, pack=True, start=9_998)[-1]
  assert_equal(batch, again)


@pytest.mark.parametrize("places", [1, 2, 4])
def test_places_for_rows_share_a_batch(cached, places):
  """Every process makes the whole batch, and its devices take their rows."""
  mesh, rules = sharding.layout(data=places, devices=jax.devices()[:places])
  (batch,) = take(cached, 1, pack=True, start=3)
  whole = take(cached, 4, pack=True)[3]
  with sharding.use(mesh, rules):
    placed = sharding.rows(batch)
  for name, array in placed.items():
    parts = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    assert len(parts) == places
    rows = np.concatenate([parts[start] for start in sorted(parts)])
    np.testing.assert_array_equal(rows, whole[name])


def test_seeds_and_settings_make_other_fingerprints(cached, settings):
  found = {cached.data.fingerprint}
  for more in ({"seed": 1}, {"batches.pack": False}, {"batches.length": 60}):
    config = settings(**more)
    config.cache.folder = str(cached.folder)
    data = assembly.read(assembly.prepare(config), config, cached.base)
    found.add(data.fingerprint)
  streamed = mixtures.fingerprint(
    cached.mixture, seed=cached.config.seed, **cached.config.batches.to_dict()
  )
  assert len(found | {streamed}) == 5


def test_the_report_is_the_streamed_one(cached):
  assert cached.data.lengths == lengths.report(cached.mixture, length=64)
  assert cached.data.train == cached.mixture.train
  assert tuple(cached.data.evaluation) == cached.mixture.evaluation


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 0}, "batch_size of at least 1, got 0"),
    ({"start": -1}, "start of at least 0, got -1"),
    ({"length": 20, "too_long": "error"}, "intents in de: .*\n(.*\n)*None is"),
    ({"length": 3}, "No example of"),
  ],
)
def test_mistakes_are_told_before_the_first_batch(cached, changes, message):
  with pytest.raises(ValueError, match=message):
    reader.batches(cached.opened, **SETTINGS | changes)


@pytest.mark.parametrize("size", [2**16, 2**16 + 1])
def test_ids_of_any_vocabulary(size):
  ids = layout.ids_type(size)
  example = [1, size - 1], [size - 2]
  record = layout.encode(*example, ids)
  assert len(record) == 4 + 3 * (2 if size == 2**16 else 4)
  assert tuple(part.tolist() for part in layout.decode(record, ids)) == example
