"""BERT, RoBERTa and XLM-R give Hugging Face's states, however they are run."""

import functools
import json
import re
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.adapters import methods, surgery
from sira_jax.formats import huggingface, huggingface_writer, safetensors_file
from tests.formats.test_huggingface import changed
from tests.tiny_t5 import GOLDEN, error

NAMES = sorted(path.name for path in (GOLDEN / "encoders").iterdir())
LENGTHS = (20, 13, 6)
ENCODERS = pytest.mark.parametrize("name", NAMES)


@functools.cache
def golden(name, **options):
  """A model, what it reads and what Hugging Face says of it."""
  folder = GOLDEN / "encoders" / name
  arrays = dict(np.load(folder / "expected.npz"))
  features = {
    key: arrays.pop(key).astype(np.int32)
    for key in ("encoder_input_tokens", "encoder_type_ids")
  }
  return huggingface.load_model(folder, **options), features, arrays


@functools.partial(nnx.jit, static_argnames="poolings")
def run(model, features, poolings=()):
  """States, scores if there are any, and texts' vectors by each pooling."""
  found = {"states": model.states(**features)}
  if model.head is not None:
    found["logits"] = model(**features)[:, 0]
  for pooling in poolings:
    model.pool_by(pooling)
    found[pooling] = model.hidden(**features)
  return found


def texts(rows):
  """The rows without their padding, one after the other."""
  return jnp.concatenate(
    [row[:length] for row, length in zip(rows, LENGTHS, strict=True)]
  )


def packed(features):
  """Two texts in one row, and one in another; row 1 has padding."""
  rows = {}
  for key, value in features.items():
    one, two, three = (v[:n] for v, n in zip(value, LENGTHS, strict=True))
    rows[key] = np.stack(
      [np.pad(np.concatenate([one, three]), (0, 0)), np.pad(two, (0, 13))]
    )
  ids = np.stack([np.repeat([1, 2], [20, 6]), np.repeat([1, 0], [13, 13])])
  return rows | {"encoder_segment_ids": ids.astype(np.int32)}


@ENCODERS
def test_states_and_logits_equal_hugging_face(name):
  model, features, expected = golden(name)
  pooled = "pooled" in expected and model.head is None
  got = run(model, features, ("pooler",) if pooled else ())
  assert error(texts(got["states"]), texts(expected["states"])) < 1e-5
  assert ("logits" in got) == ("logits" in expected) == ("classifier" in name)
  if "logits" in got:
    assert got["logits"].dtype == jnp.float32
    assert error(got["logits"], expected["logits"]) < 1e-5
  if pooled:
    assert error(got["pooler"][:, 0], expected["pooled"]) < 1e-5


@pytest.mark.parametrize("given", [False, True])
def test_packed_equals_unpacked(given):
  """With positions that are counted by the model, and that are given."""
  model, features, expected = golden("bert" if given else "roberta")
  rows = packed(features)
  one, two, three = expected["states"]
  anew = np.stack([np.r_[:20, :6], np.r_[:13, [0] * 13]]).astype(np.int32)
  if given:
    rows["encoder_positions"] = anew
  got = run(model, rows)["states"]
  assert error(got[0, :20], one) < 1e-5
  assert error(got[0, 20:], three[:6]) < 1e-5
  assert error(got[1, :13], two[:13]) < 1e-5


def test_a_vector_for_each_text():
  """By numpy, of Hugging Face's states; packed as alone."""
  model, features, expected = golden("bert")
  alone = run(model, features, ("first", "mean"))
  rows = packed(features)
  with pytest.raises(ValueError, match="need decoder_loss_weights"):
    model.hidden(**rows)
  weights = np.ones((2, 3), np.float32)
  graph, state = nnx.split(model)

  @jax.jit
  def both(state, rows):
    model, found = nnx.merge(graph, state), {}
    for pooling in ("first", "mean"):
      model.pool_by(pooling)
      found[pooling] = model.hidden(**rows, decoder_loss_weights=weights)
    return found

  together = both(state, rows)
  for pooling in ("first", "mean"):
    wanted = np.stack(
      [
        row[:length].mean(axis=0) if pooling == "mean" else row[0]
        for row, length in zip(expected["states"], LENGTHS, strict=True)
      ]
    )
    assert error(alone[pooling][:, 0], wanted) < 1e-5
    got = together[pooling]
    assert got.shape == (2, 3, 16)
    assert error(got[[0, 1, 0], [0, 0, 1]], wanted) < 1e-5
    assert np.isfinite(got).all()  # also of texts that are not there


@pytest.mark.parametrize("options", [{"scan": True}, {"remat": True}])
def test_blocks_in_a_loop_or_twice(options):
  model, features, expected = golden("bert", **options)
  got = run(model, features)["states"]
  assert error(texts(got), texts(expected["states"])) < 1e-5


def test_padding_becomes_zero():
  """Where token 0 is text and another pads, they change places."""
  name = "xlm_roberta_classifier"
  model, features, expected = golden(name, spare=4)
  tokens = features["encoder_input_tokens"]
  places = np.arange(64)
  places[[0, 4]] = [4, 0]
  assert (tokens == 4).any() and model.config.padding == 0
  got = run(model, features | {"encoder_input_tokens": places[tokens]})
  assert error(got["logits"], expected["logits"]) < 1e-5


def test_lengths():
  """40 positions: RoBERTa's first is padding's row and one, here 1 + 1."""
  assert golden("bert")[0].max_length == 40
  model = golden("roberta")[0]
  assert model.max_length == 38
  with pytest.raises(ValueError, match="at most max_length=38 tokens, got 39"):
    model.states(jnp.ones((1, 39), jnp.int32))
  # Packed, padding may be longer than any text, and a text may not.
  padded = np.repeat([[1, 0]], [5, 60], axis=1).astype(np.int32)
  row = {"encoder_input_tokens": np.full((1, 65), 7, np.int32)}
  for ids, finite in ((padded, True), (np.ones_like(padded), False)):
    got = run(model, row | {"encoder_segment_ids": ids})
    assert jnp.isfinite(got["states"]).all() == finite


@pytest.mark.parametrize("name", ["bert_words", "xlm_roberta_classifier"])
def test_adapters_merge_and_are_written(name, tmp_path):
  """And all tensors go back to where they came from."""
  folder = GOLDEN / "encoders" / name
  model = huggingface.load_model(folder)
  _, features, _ = golden(name)
  rule = surgery.Rule(
    r"blocks\.1\.(attention\.[qo]|mlp\.wi)", methods.create("lora", rank=2)
  )
  surgery.adapt(model, [rule], rngs=nnx.Rngs(0))
  for _, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      shape = module.adapter.B.shape
      module.adapter.B[...] = jax.random.normal(jax.random.key(0), shape) / 9
  part = "states" if model.head is None else "logits"
  expected = run(model, features)[part]
  assert error(golden(name)[2][part], expected) > 0.03
  surgery.merge(model)
  huggingface_writer.write(
    tmp_path, model, source=folder, tokenizer=None, eos_id=1
  )
  again = huggingface.load_model(tmp_path)
  assert error(run(again, features)[part], expected) < 1e-5
  there, here = map(safetensors_file.read_folder, (folder, tmp_path))
  words = {n for n in there if n.startswith("cls.")}
  without = {n.removeprefix("bert.") for n in there.keys() - words}
  assert set(here) == (without if name == "bert_words" else set(there))


def test_tensors_of_before(tmp_path):
  """A prefix without a head, gamma and beta, positions, and no pooler."""
  source = safetensors_file.read_folder(GOLDEN / "encoders" / "bert")
  old = {
    "bert."
    + name.replace("Norm.weight", "Norm.gamma").replace(
      "Norm.bias", "Norm.beta"
    ): np.array(tensor)
    for name, tensor in source.items()
    if not name.startswith("pooler")
  }
  old["bert.embeddings.position_ids"] = np.zeros((1, 40), np.float32)
  folder = changed(tmp_path, "encoders/bert", tensors=old, drop=set(source))
  model = huggingface.load_model(folder)
  assert model.pooler is None
  _, features, expected = golden("bert")
  got = run(model, features)["states"]
  assert error(texts(got), texts(expected["states"])) < 1e-5


def test_shapes_need_no_weights(tmp_path):
  file = GOLDEN / "encoders" / "bert_classifier" / "config.json"
  shutil.copy(file, tmp_path)
  made = huggingface.model_shapes(tmp_path)
  assert made.head.kernel.shape == (16, 3)
  assert json.loads(file.read_text())["id2label"]["2"] == "LABEL_2"


@pytest.mark.parametrize(
  ("name", "config", "message"),
  [
    ("bert", dict(is_decoder=True), "is_decoder = True is not"),
    ("bert", dict(hidden_act="mish"), "hidden_act = 'mish' is not"),
    (
      "bert",
      dict(position_embedding_type="relative_key"),
      "position_embedding_type = 'relative_key' is not",
    ),
    ("bert", dict(num_attention_heads=3), "must be a multiple of heads"),
    ("bert", dict(new_kind_of_norm=1), "['new_kind_of_norm'] are not known"),
    ("bert", dict(num_hidden_layers=2**31 - 1), "at most 10000"),
    ("roberta", dict(pad_token_id=-1), "expected pad_token_id to be a token"),
    ("roberta", dict(pad_token_id=39), "more than 40 positions"),
    ("bert_classifier", dict(num_labels=4), "num_labels = 4 and the 3 of id2"),
    (
      "bert_classifier",
      dict(id2label={"0": "a", "1": "b"}),
      "classifier.weight is (3, 16), expected (2, 16)",
    ),
    ("bert", dict(architectures=["BertLMHeadModel"]), "expected one architec"),
    # Of which the tensors are not there.
    (
      "bert",
      dict(architectures=["BertForSequenceClassification"]),
      "missing: classifier.weight",
    ),
  ],
)
def test_configs_that_are_refused(name, config, message, tmp_path):
  folder = changed(tmp_path, f"encoders/{name}", config=config)
  with pytest.raises(ValueError, match=re.escape(message)):
    huggingface.load_model(folder)


def test_a_tensor_that_is_there_twice(tmp_path):
  more = {"embeddings.LayerNorm.gamma": np.ones(16, np.float32)}
  folder = changed(tmp_path, "encoders/bert", tensors=more)
  with pytest.raises(ValueError, match=r"left over: embeddings\.LayerNorm\.g"):
    huggingface.load_model(folder)
