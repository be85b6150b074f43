"""The command that writes a cache: once, whole, and only what can be read."""

import dataclasses
import itertools
import json

import pytest

from configs import own_labels
from sira_jax import assembly
from sira_jax.cached import layout, reader
from sira_jax.data import cache, tasks
from tests import tiny_encoder, tiny_run, tiny_t5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


def config(base, **more):
  small = {"mixture.tasks": ("dates",), "mixture.rates": None}
  return tiny_run.config("lora", base | small | more)


def contents(folder):
  return {
    p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()
  }


def test_twice(base, tmp_path):
  out = tmp_path / "cache"
  assert "Wrote" in cache.write(config(base), str(out))
  before = contents(out)
  # Batches are no part of it, nor is the place of the base.
  again = config(base, **{"batches.length": 99, "batches.pack": False})
  assert "left as it is" in cache.write(again, str(out), jobs=2)
  with pytest.raises(ValueError, match=r"other data.*\n  config.evaluation.ex"):
    cache.write(config(base, **{"evaluation.examples": 1}), str(out))
  assert contents(out) == before
  assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_all_or_nothing(base, tmp_path, monkeypatch):
  out = tmp_path / "cache"

  def fail(*_):
    raise OSError("no space left")

  monkeypatch.setattr(layout, "write_manifest", fail)
  with pytest.raises(OSError, match="no space"):
    cache.write(config(base), str(out))
  assert list(tmp_path.iterdir()) == []
  out.mkdir()
  with pytest.raises(ValueError, match="is there and is no cache"):
    cache.write(config(base), str(out))
  with pytest.raises(ValueError, match="on a disk of this machine to write"):
    cache.write(config(base), "gs://bucket/cache")


def test_a_metric_without_a_name(base, tmp_path, monkeypatch):
  def letters(targets, predictions):
    return {"letters": 1.0}

  own = dataclasses.replace(tasks.TASKS["dates"], metric_fns=(letters,))
  monkeypatch.setitem(tasks.TASKS, "dates", own)
  with pytest.raises(ValueError, match="metric letters, which cannot be cach"):
    cache.write(config(base), str(tmp_path / "cache"))
  assert list(tmp_path.iterdir()) == []


def test_what_a_run_refuses(base, tmp_path):
  short = config(base, **{"batches.length": 8, "batches.too_long": "error"})
  with pytest.raises(ValueError, match="None is ever cut"):
    cache.write(short, str(tmp_path / "cache"))


@pytest.mark.parametrize("pack", [False, True])
def test_an_encoder_decoder(tmp_path, pack):
  """The examples of an epoch, as they are streamed."""
  changes = {
    "base.uri": str(tiny_t5.byte_folder(tmp_path)),
    "batches.length": 128,
    "batches.targets_length": 96,
    "batches.pack": pack,
    "batches.batch_size": 32,
    "mixture.tasks": ("dates",),
    "mixture.rates": None,
  }
  found = tiny_run.config("lora", changes, path=r".*attention\.q")
  streamed = assembly.build(found, tmp_path).data
  cache.write(found, str(tmp_path / "cache"))
  found.cache.folder = str(tmp_path / "cache")
  read = assembly.build(found, tmp_path).data
  assert read.sets == streamed.sets
  manifest = reader.opened(folder=found.cache.folder).manifest
  assert manifest["encoder"] and manifest["ids"] == "uint16"
  one, two = next(read.batches(0, 0)), next(streamed.batches(0, 0))
  kinds = [
    {name: (array.dtype, array.shape) for name, array in batch.items()}
    for batch in (one, two)
  ]
  assert kinds[0] == kinds[1]
  (entry,) = read.train
  # Two epochs; seqio's run into each other.
  batches = 2 * entry.examples // 32 + 1
  whole = pairs_of(read, batches)
  assert len(whole) == entry.examples
  other = pairs_of(streamed, batches)
  assert other <= whole and len(other) > len(whole) / 2


@pytest.mark.parametrize("numbers", [False, True])
def test_a_head(tmp_path, numbers):
  """Labels, or numbers, of a packed encoder; from a file of one's own."""
  rows = [
    {"text": f"w{i} {word} w{i % 7}", "label": label, "grade": str(grade)}
    for i in range(20)
    for word, label, grade in (("good", "yes", 1.5), ("bad", "no", -1.5))
  ]
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  found = own_labels.get_config()
  target = "{grade}" if numbers else "{label}"
  metrics = ("pearson",) if numbers else ("accuracy", "macro_f1")
  found.update_from_flattened_dict(
    {
      "base.uri": str(tiny_encoder.folder(tmp_path / "base")),
      "files.own.path": str(tmp_path / "rows.jsonl"),
      "files.own.targets": target,
      "files.own.metrics": metrics,
      "head.labels": () if numbers else ("no", "yes"),
      "batches.length": 32,
      "batches.targets_length": 4,
      "batches.batch_size": 4,
      "batches.pack": True,
    }
  )
  streamed = assembly.build(found, tmp_path).data
  cache.write(found, str(tmp_path / "cache"))
  (tmp_path / "rows.jsonl").unlink()  # the cache is all there is to read
  found.cache.folder = str(tmp_path / "cache")
  read = assembly.build(found, tmp_path).data
  assert read.sets == streamed.sets
  texts = [texts_of(data, numbers) for data in (read, streamed)]
  (entry,) = read.train
  assert texts[0] == texts[1] and len(texts[0]) == entry.examples
  assert {target for _, target in texts[0]} == (
    {1.5, -1.5} if numbers else {0, 1}
  )
  found.head.labels = ("yes", "no")
  with pytest.raises(ValueError, match=r"config.head.labels: "):
    assembly.prepare(found)


def texts_of(data, numbers):
  """The texts in some batches, each with its target."""
  name = "decoder_target_values" if numbers else "decoder_target_tokens"
  found, batches = set(), data.batches(0, 0)
  for batch in itertools.islice(batches, 30):
    assert set(batch) == {
      *("encoder_input_tokens", "encoder_segment_ids", "encoder_positions"),
      *("decoder_loss_weights", name),
    }
    for row, ids in enumerate(batch["encoder_input_tokens"]):
      for number in range(int(batch["decoder_loss_weights"][row].sum())):
        at = batch["encoder_segment_ids"][row] == number + 1
        found.add((tuple(ids[at].tolist()), batch[name][row][number].item()))
  return found


def pairs_of(data, count):
  """The inputs and targets of the examples in some batches."""
  found = set()
  batches = data.batches(0, 0)
  for _ in range(count):
    batch = next(batches)
    sides = [
      (
        batch[f"{side}_{kind}_tokens"],
        batch.get(f"{side}_segment_ids", batch[f"{side}_{kind}_tokens"] > 0),
      )
      for side, kind in (("encoder", "input"), ("decoder", "target"))
    ]
    for row in range(len(sides[0][0])):
      for number in range(1, int(sides[0][1][row].max()) + 1):
        found.add(
          tuple(
            tuple(tokens[row][own[row] == number].tolist())
            for tokens, own in sides
          )
        )
  return found
