"""What of a cache is refused: damage, other configs, other bases."""

import dataclasses
import json
import shutil

import pytest
import tokenizers

from sira_jax import assembly
from sira_jax.cached import layout, reader
from sira_jax.data import cache


@pytest.fixture
def copy(cached, tmp_path):
  return shutil.copytree(cached.folder, tmp_path / "cache")


def test_a_copy_is_as_good(cached, copy):
  found = reader.opened(folder=str(copy))
  assert found.manifest == cached.opened.manifest
  assert sorted(found.manifest["files"]) == sorted(
    p.name for p in copy.iterdir() if p.name != "cache.json"
  )
  assert reader.opened(folder=None) is None is reader.opened(folder="")


@pytest.mark.parametrize(
  "name", ["intents_de.array_record", "dates_en.npy", "evaluation.json"]
)
def test_damage_is_found(copy, name):
  file = copy / name
  whole = file.read_bytes()
  middle = len(whole) // 2
  changed = bytes([whole[middle] ^ 1])
  file.write_bytes(whole[:middle] + changed + whole[middle + 1 :])
  with pytest.raises(ValueError, match=f"{name} is damaged.*sha256.*anew"):
    reader.opened(folder=str(copy))
  file.write_bytes(whole[:-1])
  message = f"{name} is damaged: expected {len(whole)} bytes, got"
  with pytest.raises(ValueError, match=message):
    reader.opened(folder=str(copy))
  file.unlink()
  with pytest.raises(ValueError, match=f"lacks its file {name}"):
    reader.opened(folder=str(copy))


def test_no_cache(copy, tmp_path):
  file = copy / "cache.json"
  for text, message in (
    (file.read_text()[:-9], "cannot be read"),
    ("[]", "cannot be read"),
    (json.dumps({"format": 1}), "has the format 1, expected 2"),
  ):
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
      reader.opened(folder=str(copy))
  with pytest.raises(ValueError, match=r"no cache in .*Write it where Tensor"):
    reader.opened(folder=str(tmp_path / "none"))


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("mixture.languages", ("en",), r"mixture.languages: \['en', 'de'\] -> "),
    ("mixture.temperature", 2.0, r"mixture.temperature: 1.0 -> 2.0"),
    ("evaluation.examples", 3, r"evaluation.examples: 2 -> 3"),
    ("evaluation.split", "validation", r"evaluation.split: 'test' -> 'valid"),
  ],
)
def test_another_config(cached, settings, field, value, message):
  config = settings(**{field: value, "cache.folder": str(cached.folder)})
  with pytest.raises(ValueError, match=rf"expected, as .*\n  config.{message}"):
    assembly.prepare(config)


def test_files_and_heads_are_of_the_config(cached, settings):
  config = settings(**{"cache.folder": str(cached.folder)})
  config.head = dict(labels=("no", "yes"), pooling="mean")
  with pytest.raises(ValueError, match=r"config.head: None -> \{'labels': "):
    assembly.prepare(config)
  del config.head
  config.files = dict(own=dict(path="a.jsonl"))
  with pytest.raises(ValueError, match=r"config.files.own: None -> .*a.jsonl"):
    assembly.prepare(config)


def test_another_base(cached):
  prepared = assembly.prepare(cached.config)
  read = lambda base: assembly.read(prepared, cached.config, base)  # noqa: E731
  elsewhere = dataclasses.replace(cached.base, uri="elsewhere.gguf")
  assert read(elsewhere).fingerprint == cached.data.fingerprint
  with pytest.raises(ValueError, match=r"tokenizer.eos_id: 2 -> 7"):
    read(dataclasses.replace(cached.base, eos_id=7))
  other = tokenizers.Tokenizer.from_str(cached.base.tokenizer.to_str())
  other.add_tokens(["quux"])
  with pytest.raises(ValueError, match=r"tokenizer.vocabulary: '\w+' -> '"):
    read(dataclasses.replace(cached.base, tokenizer=other))
  # The same tokens, divided otherwise.
  apart = json.loads(cached.base.tokenizer.to_str())
  apart["model"]["merges"] = apart["model"]["merges"][:100]
  apart = tokenizers.Tokenizer.from_str(json.dumps(apart))
  with pytest.raises(ValueError, match=r"got:\n  the ids of '.*': \[.* -> \["):
    read(dataclasses.replace(cached.base, tokenizer=apart))


def test_lengths_are_the_configs_own(cached, settings):
  """Free when it is read, and checked against the examples there are."""
  config = settings(
    **{"cache.folder": str(cached.folder), "batches.too_long": "error"}
  )
  prepared = assembly.prepare(config)
  with pytest.raises(ValueError, match=r"of at most 64 tokens(.*\n)*None is"):
    assembly.read(prepared, config, cached.base)
  config.batches.length = 128
  data = assembly.read(assembly.prepare(config), config, cached.base)
  assert next(data.batches(0, 0))["decoder_target_tokens"].shape == (2, 128)


def test_sets_are_the_streamed_ones(cached, settings):
  streamed = assembly.read(
    assembly.prepare(settings()), settings(), cached.base
  )
  assert cached.data.sets == streamed.sets
  found = layout.read_sets(cached.opened.folder)
  assert found["sets"] == streamed.sets
  assert {(one.task, one.language) for one in found["memory"]} == {
    (one.task, one.language) for one in cached.data.train
  }
  assert found["validation"] == []
  assert cached.data.memory == ()


def test_what_checkpoints_are_chosen_by(cached, settings, tmp_path):
  """It is in a cache of a config that chooses; else the config is another."""
  chosen = dict(metric="exact_match", examples=3, patience=1)
  config = settings()
  config.selection = chosen
  cache.write(config, str(tmp_path / "cache"))
  streamed = assembly.read(assembly.prepare(config), config, cached.base)
  config.cache.folder = str(tmp_path / "cache")
  config.selection.patience = 2  # which a cache has nothing to do with
  read = assembly.read(assembly.prepare(config), config, cached.base)
  assert read.validation == list(streamed.validation)
  assert [len(one.inputs) for one in read.validation] == [3] * 4
  config.selection.examples = 4
  with pytest.raises(ValueError, match=r"selection.examples: 3 -> 4"):
    assembly.prepare(config)
  config.cache.folder = str(cached.folder)
  with pytest.raises(ValueError, match=r"selection: None -> "):
    assembly.prepare(config)


def test_few_examples(cached, settings, tmp_path):
  """A cache has the limited rows, and is of these limits alone."""
  limits = {"mixture.limits.intents": 5, "mixture.limits.dates": 7}
  config = settings(**limits)
  cache.write(config, str(tmp_path / "cache"))
  streamed = assembly.read(assembly.prepare(config), config, cached.base)
  config.cache.folder = str(tmp_path / "cache")
  read = assembly.read(assembly.prepare(config), config, cached.base)
  assert [one.examples for one in read.train] == [5, 7, 5, 7]
  assert list(read.train) == list(streamed.train)
  assert read.lengths == streamed.lengths
  assert read.sets == streamed.sets
  opened = reader.opened(folder=config.cache.folder)
  assert len(opened.records) == 24
  for value, message in ((6, "5 -> 6"), (None, "5 -> None")):
    config.mixture.limits.intents = value
    message = rf"another config.*\n  config.mixture.limits.intents: {message}\n"
    with pytest.raises(ValueError, match=message):
      assembly.prepare(config)
  config.cache.folder = str(cached.folder)
  with pytest.raises(ValueError, match=r"limits.dates: None -> 7\n"):
    assembly.prepare(config)


def test_a_cache_of_before_there_were_limits(cached, settings, copy):
  file = copy / "cache.json"
  manifest = json.loads(file.read_text())
  del manifest["config"]["mixture"]["limits"]
  file.write_text(json.dumps(manifest))
  config = settings(**{"cache.folder": str(copy)})
  data = assembly.read(assembly.prepare(config), config, cached.base)
  assert data.fingerprint == cached.data.fingerprint
  config.mixture.limits.intents = 5
  message = r"config.mixture.limits: None -> \{.*'intents': 5"
  with pytest.raises(ValueError, match=message):
    assembly.prepare(config)
