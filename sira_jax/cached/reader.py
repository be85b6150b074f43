# SPDX-License-Identifier: Apache-2.0
"""A run's data from a cache: batch n by its index, through grain."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import sys
from typing import Any

from etils import epath
import numpy as np

from sira_jax import lengths as lengths_lib
from sira_jax import run_data

try:
  import grain

  from sira_jax.cached import (
    bucketing,
    features,
    layout,
    matching,
    order,
    packing,
  )
except ModuleNotFoundError as error:
  raise ModuleNotFoundError(
    f"A cache is read by grain, and {error.name} is not installed. Install the"
    ' cache extra: pip install "sira_jax[cache]"',
    name=error.name,
  ) from error

# Batches that are made before they are asked for.
_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Cache:
  """A cache whose files are whole.

  Attributes:
    folder: where it is.
    manifest: the content of its cache.json.
    train: the entries trained on.
    lengths: of their examples.
    records: of all of them, one entry's after the other's.
  """

  folder: epath.Path
  manifest: Mapping[str, Any]
  train: Sequence[run_data.Entry]
  lengths: Sequence[lengths_lib.Lengths]
  records: grain.sources.ArrayRecordDataSource


def opened(*, folder: str | None = None) -> Cache | None:
  """The cache in a folder, checked; None where none is named.

  Args:
    folder: that `sira_jax.data.cache` wrote, or a copy of it in a bucket.

  Raises:
    ValueError: as `layout.load`.
  """
  if not folder:
    return None
  path = layout.on_disk(folder)
  manifest = layout.load(path)
  train = tuple(run_data.Entry(**one) for one in manifest["train"])
  found = [layout.read_lengths(path, entry).T for entry in train]
  return Cache(
    folder=path,
    manifest=manifest,
    train=train,
    lengths=[lengths_lib.Lengths(*columns) for columns in found],
    records=grain.sources.ArrayRecordDataSource(
      [str(path / layout.names(entry)[0]) for entry in train]
    ),
  )


def prepare(config: Mapping[str, Any]) -> Callable[..., run_data.Data]:
  """The data of a config with a cache, but for the base that is to read them.

  Returns:
    (base, encoder, prefix, memory) -> the data. `encoder` says for whom the
    prompts are, `prefix` whether batches say where inputs are; of `memory`
    there are always some.

  Raises:
    ValueError: there is no such cache, it is damaged, or was made of another
      config.
  """
  config = json.loads(json.dumps(config))
  cache = opened(**config["cache"])
  matching.check_config(cache.manifest, config, cache.folder)
  return functools.partial(_data, cache, config)


def _data(
  cache: Cache,
  config: Mapping[str, Any],
  base: Any,
  *,
  encoder: bool,
  prefix: bool,
  memory: bool,
) -> run_data.Data:
  """The data as `base` reads them.

  Raises:
    ValueError: its tokenizer is not the cache's, or examples do not fit.
  """
  found = layout.read_sets(cache.folder)
  where = dict(encoder=encoder, folder=cache.folder)
  matching.check_base(cache.manifest, base, found["sets"], **where)
  settings, seed = config["batches"], config["seed"]
  sizes = {k: settings.get(k) for k in ("length", "targets_length")}
  rows = lengths_lib.report(cache.train, cache.lengths, **sizes)
  lengths_lib.check(rows, **sizes, too_long=settings.get("too_long", "error"))
  content = {
    "cache": layout.identity(cache.manifest),
    "settings": {"seed": seed, **settings},
  }
  text = json.dumps(content, sort_keys=True)

  def endless(seed, start):
    return batches(cache, **settings, prefix=prefix, seed=seed, start=start)

  def samples(entry):
    one = settings | {"batch_size": 1, "pack": False, "buckets": ()}
    one |= {"seed": seed}
    return batches(cache, **one, prefix=prefix, only=entry)

  return run_data.Data(
    train=cache.train,
    evaluation=[run_data.Entry(**x) for x in cache.manifest["evaluation"]],
    sets=found["sets"],
    memory=found["memory"] if memory else (),
    validation=found["validation"],
    lengths=rows,
    notes=(*cache.manifest["notes"], f"read from the cache in {cache.folder}"),
    fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    batches=endless,
    samples=samples,
  )


def batches(
  cache: Cache,
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
  only: run_data.Entry | None = None,
) -> Iterator[run_data.Batch]:
  """The endless batches of a run, from number `start` on.

  Their features are those of `data.pipeline.batches`, which has them in
  another order; see `order` and `packing`. Examples that are left out have no
  part in the rates. Batch n depends on the cache and the settings but `start`
  only, which costs next to nothing; for packed rows, about a second for each
  million of examples.

  Args:
    cache: what to train on.
    batch_size: rows of a batch.
    length: tokens of a row, or of an encoder's.
    targets_length: tokens of a decoder's row beside an encoder; None for a
      decoder alone; texts of a row of an encoder with a head.
    pack: whether to put several examples into a row.
    seed: of the order and of the mixing.
    start: number of batches consumed before.
    too_long: "error" or "skip", for examples of more tokens than there are.
    buckets: lengths below `length` that an unpacked batch may have, too; each
      example is in one of the smallest in which it fits. An encoder-decoder's
      are of what the encoder reads.
    prefix: whether to say where inputs are.
    only: the one entry to read; None: all.

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
  sizes = dict(length=length, targets_length=targets_length)
  found = lengths_lib.report(cache.train, cache.lengths, **sizes)
  lengths_lib.check(found, **sizes, too_long=too_long)
  source = _Batches(
    cache,
    rows=_rows(
      cache,
      sizes,
      batch_size=batch_size,
      pack=pack,
      buckets=buckets,
      seed=seed,
      only=only,
    ),
    convert=_converter(cache, sizes, pack=pack, buckets=buckets, prefix=prefix),
    start=start,
  )
  dataset = grain.MapDataset.source(source).to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
  )
  return iter(dataset)


def _rows(cache, sizes, *, batch_size, pack, buckets, seed, only):
  """Batch -> the numbers of the examples of each of its rows."""
  parts = [
    lengths_lib.parts(one, targets_length=sizes["targets_length"])
    for one in cache.lengths
  ]
  limits = lengths_lib.limits(**sizes)
  first = np.cumsum([0, *map(len, parts)])
  numbers, rates = [], []
  for entry, begin, size in zip(cache.train, first, parts, strict=False):
    if only in (None, entry):
      numbers.append(begin + np.flatnonzero((size <= limits).all(axis=1)))
      rates.append(entry.rate)
  mixed, parts = order.Order(numbers, rates, seed=seed), np.concatenate(parts)
  if buckets:
    bucketed = bucketing.Bucketed(
      mixed,
      lambda numbers: parts[numbers, 0],
      buckets=buckets,
      batch_size=batch_size,
    )
    return lambda batch: bucketed(batch)[:, None].tolist()
  span = lambda batch: (batch * batch_size, (batch + 1) * batch_size)  # noqa: E731
  if not pack:
    return lambda batch: mixed(*span(batch))[:, None].tolist()
  packed = packing.Packed(lambda *span: parts[mixed(*span)], limits)

  def rows(batch):
    begin = packed(*span(batch))
    examples = mixed(begin[0], begin[-1]).tolist()
    return [
      examples[one - begin[0] : two - begin[0]]
      for one, two in itertools.pairwise(begin)
    ]

  return rows


def _converter(cache, sizes, *, pack, buckets, prefix):
  """Rows of examples -> a batch."""
  whole = _whole_batch(cache, sizes, pack=pack, prefix=prefix)
  if not buckets:
    return whole
  return lambda rows: features.trimmed(whole(rows), buckets)


def _whole_batch(cache, sizes, *, pack, prefix):
  if sizes["targets_length"] is None:
    length = sizes["length"]
    return functools.partial(
      features.decoder, length=length, pack=pack, prefix=prefix
    )
  end, labels = cache.manifest["tokenizer"]["eos_id"], cache.manifest["labels"]
  pairs = functools.partial(
    features.encoder_decoder, **sizes, pack=pack, end=end
  )
  if labels is None:
    return pairs
  values = None
  if cache.manifest["numbers"]:
    values = np.array([float(label) for label in labels], np.float32)
  return lambda rows: features.labelled(pairs(rows), values)


class _Batches:
  """Batches by index, as grain's sources are; endless."""

  def __init__(self, cache, *, rows, convert, start):
    self._records, self._ids = cache.records, cache.manifest["ids"]
    self._rows, self._convert, self._start = rows, convert, start

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> run_data.Batch:
    rows = self._rows(self._start + int(index))
    numbers = [number for row in rows for number in row]
    found = iter(self._records.__getitems__(numbers))
    return self._convert(
      [[layout.decode(next(found), self._ids) for _ in row] for row in rows]
    )
