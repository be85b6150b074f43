# SPDX-License-Identifier: Apache-2.0
"""Id 0 pads, also where a base has a token of text there."""

import json
import shutil

from flax import nnx
import jax
import numpy as np
import pytest
import tokenizers

from sira_jax import sharding
from sira_jax.formats import bases, huggingface, huggingface_writer, padding
from tests.tiny_t5 import GOLDEN

TEXT = "Hey! Turn the lights on, now! Really!"
RESERVED = "<|reserved_special_token_0|>"


def byte_level(*special):
  """As Llama 3's and Qwen's: "!" is the first of all bytes."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=262,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator([TEXT] * 3, trainer)
  made.add_special_tokens(list(special))
  return made


def test_ids_change_places():
  before = byte_level("<|end|>", RESERVED)
  assert before.token_to_id("!") == 0
  spare = padding.spare(before)
  assert spare == before.token_to_id(RESERVED) > 261
  after = padding.swapped(before, spare)
  places = {0: spare, spare: 0}
  for text in (TEXT, f"{TEXT}<|end|>", f"!{RESERVED}!"):
    ids = before.encode(text).ids
    assert after.encode(text).ids == [places.get(i, i) for i in ids]
    assert after.decode(after.encode(text).ids, skip_special_tokens=False) == (
      before.decode(ids, skip_special_tokens=False)
    )
  assert 0 not in after.encode(TEXT).ids
  assert after.get_vocab_size() == before.get_vocab_size()
  assert after.token_to_id("<|end|>") == before.token_to_id("<|end|>")
  # Nothing is left to change.
  assert padding.spare(after) is None


def test_where_nothing_changes():
  assert padding.spare(byte_level("<|end|>")) is None  # none is free
  words = {"<unk>": 0, "a": 1}
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(words, unk_token="<unk>")
  )
  made.add_special_tokens(["<pad>"])
  assert padding.spare(made) is None  # 0 is no text
  pieces = [("a", -1.0), ("b", -2.0)]
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, False))
  made.add_special_tokens(["<pad>"])
  assert padding.spare(made) is None  # its ids are places


@pytest.fixture
def folder(tmp_path):
  """A base of 300 tokens, some of them of a tokenizer with "!" at 0."""
  source = tmp_path / "source"
  shutil.copytree(GOLDEN / "tiny_llama_sharded", source)
  for file in source.glob("model*"):
    file.unlink()
  config = json.loads((source / "config.json").read_text())
  config |= {"vocab_size": 300, "eos_token_id": 262}
  (source / "config.json").write_text(json.dumps(config))
  byte_level("<|end|>", RESERVED).save(str(source / "tokenizer.json"))
  model, rng = huggingface.model_shapes(source), np.random.default_rng(0)
  random = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
  nnx.update(model, jax.tree.map(random, nnx.state(model)))
  made = tmp_path / "base"
  huggingface_writer.write(made, model, source=source, tokenizer=None, eos_id=1)
  return made


def test_the_model_changes_alike(folder):
  plain = huggingface.load_model(folder)
  base = bases.load(uri=str(folder))
  assert base.spare == 263 and base.eos_id == 262
  ids = huggingface.tokenizer(folder).encode(TEXT).ids
  assert 0 in ids
  own = base.tokenizer.encode(TEXT).ids
  expected, got = (
    np.array(model(np.array([tokens])))
    for model, tokens in ((plain, ids), (base.model, own))
  )
  expected[..., [0, 263]] = expected[..., [263, 0]]
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert np.abs(got[..., 0] - got[..., 263]).max() > 0.1


def test_slices_of_tables_change_alike(folder):
  """Each device reads its rows; of four, the first and the last change."""
  mesh, rules = sharding.layout(data=1, fsdp=4, tensor=2)
  whole = huggingface.load_model(folder, spare=263)
  with sharding.use(mesh, rules):
    parts = huggingface.load_model(folder, spare=263)
  for one, two in zip(
    nnx.to_flat_state(nnx.state(whole)),
    nnx.to_flat_state(nnx.state(parts)),
    strict=True,
  ):
    np.testing.assert_array_equal(one[1][...], two[1][...])


def test_written_weights_are_back_in_place(folder, tmp_path):
  base = bases.load(uri=str(folder))
  made = tmp_path / "made"
  huggingface_writer.write(
    made,
    base.model,
    source=folder,
    tokenizer=base.tokenizer,
    eos_id=base.eos_id,
    spare=base.spare,
  )
  for name in ("tokenizer.json", "model.safetensors"):
    assert (made / name).read_bytes() == (folder / name).read_bytes()
