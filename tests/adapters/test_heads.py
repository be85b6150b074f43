"""A head on an encoder: trained, saved, exported and merged with adapters."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax import checkpoints, meshes, sharding
from sira_jax.adapters import heads, methods, surgery
from sira_jax.adapters.variables import HeadParam
from sira_jax.formats import huggingface, huggingface_writer, native
from sira_jax.training import losses
from sira_jax.training import step as training
from tests import tiny
from tests.tiny_t5 import GOLDEN, error

ROWS, LENGTH = 8, 10
FOLDER = GOLDEN / "encoders" / "bert"
LORA = surgery.Rule(
  r"blocks\.1\.attention\.[qv]", methods.create("lora", rank=2)
)


def headed(labels=("a", "b", "c"), pooling="mean", *, rules=(LORA,)):
  model = huggingface.load_model(FOLDER)
  heads.attach(
    model, heads.HeadFactory(labels=labels, pooling=pooling), rngs=nnx.Rngs(0)
  )
  if rules:
    surgery.adapt(model, rules, rngs=nnx.Rngs(1))
  return model


def batch(*, numbers=False, packed=False):
  """The label, or the number, says which of three tokens begins a text."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(8, 64, (ROWS, LENGTH)).astype(np.int32)
  label = np.arange(ROWS) % 3
  tokens[:, 0] = 5 + label
  lengths = LENGTH - np.arange(ROWS) % 4
  tokens[np.arange(LENGTH) >= lengths[:, None]] = 0
  made = {
    "encoder_input_tokens": tokens,
    "decoder_loss_weights": np.ones((ROWS, 1), np.float32),
  }
  targets = label[:, None]
  if packed:  # two rows in one
    made["encoder_input_tokens"] = tokens.reshape(ROWS // 2, -1)
    real = tokens != 0
    ids = real * (1 + np.arange(ROWS) % 2)[:, None]
    made["encoder_segment_ids"] = ids.reshape(ROWS // 2, -1).astype(np.int32)
    targets = targets.reshape(ROWS // 2, 2)
    made["decoder_loss_weights"] = np.ones((ROWS // 2, 2), np.float32)
  if numbers:
    made["decoder_target_values"] = np.float32(targets) * 2 - 1
  else:
    made["decoder_target_tokens"] = targets.astype(np.int32)
  return made


@nnx.jit
def logits(model, tokens):
  return model(tokens)


def train(model, batch, steps=12):
  optimizer = optax.adam(0.03)
  state = training.init(model, optimizer, seed=0)
  step, found = training.make(model, optimizer), []
  for _ in range(steps):
    state, metrics = step(state, batch)
    found.append({k: float(v) for k, v in metrics.items()})
  nnx.update(model, state.trainable, state.constants)
  return state, found


@pytest.mark.parametrize("numbers", [False, True])
def test_training_finds_labels_and_numbers(numbers):
  model = headed(() if numbers else ("a", "b", "c"), "first")
  before = jax.tree.map(np.array, nnx.state(model, nnx.Param))
  rows = batch(numbers=numbers)
  _, metrics = train(model, rows, steps=60)
  first, last = metrics[0], metrics[-1]
  assert last["loss"] < first["loss"] / 4
  assert first["targets"] == ROWS
  assert first["tokens"] == (rows["encoder_input_tokens"] != 0).sum()
  if numbers:
    assert last["absolute_error"] < 0.5 and "accuracy" not in last
  else:
    assert last["accuracy"] == 1.0
    # At first nearly uniform: log 3.
    assert abs(first["loss"] - np.log(3)) < 0.1
  after = jax.tree.map(np.array, nnx.state(model, nnx.Param))
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_packed_rows_train_alike():
  """Their loss is the rows' own; a place without a text has none."""
  losses_ = []
  for packed in (False, True):
    model, rows = headed(), batch(packed=packed)
    if packed:
      more = {"decoder_loss_weights": 0.0, "decoder_target_tokens": 0}
      rows |= {
        name: np.pad(rows[name], ((0, 0), (0, 1)), constant_values=value)
        for name, value in more.items()
      }
    loss, metrics = nnx.jit(training.batch_loss)(model, rows)
    losses_.append((float(loss), float(metrics["targets"])))
  assert losses_[0] == pytest.approx(losses_[1], rel=1e-5)


def test_squared_error():
  """(1 - 3)^2 * 1 + (5 - 2)^2 * 0.5 = 8.5; |.|: 2 + 1.5; the third is none."""
  hidden = jnp.array([[[1.0], [5.0], [np.inf]]])
  got = losses.squared_error(
    lambda x: x,
    hidden,
    targets=jnp.array([[3.0, 2.0, 0.0]]),
    weights=jnp.array([[1.0, 0.5, 0.0]]),
  )
  np.testing.assert_allclose(got, (8.5, 3.5))


def test_a_head_is_a_site():
  model = headed()
  *layers, head = surgery.sites(model)
  assert (head.path, head.shape, head.parameters) == ("head", (16, 3), 51)
  assert len(layers) == 2
  assert head.factory.describe() == "head of 3 labels, by mean"
  # And no rule adapts it.
  model = headed(rules=[surgery.Rule(r".*", methods.create("lora", rank=1))])
  assert not isinstance(model.head, surgery.Adapted)
  with pytest.raises(ValueError, match="matches no layer"):
    headed(rules=[surgery.Rule("head", methods.create("full"))])


def test_checkpoints_have_the_head(tmp_path):
  model = headed()
  model.head.kernel[...] = np.random.default_rng(0).normal(size=(16, 3))
  state = training.init(model, optax.adam(0.03), seed=0)
  with checkpoints.Checkpoints(tmp_path) as saved:
    saved.save(state, step=2, meta={"base": "b", "data": "d"})
  like = training.init(headed(), optax.adam(0.03), seed=5)
  with checkpoints.Checkpoints(tmp_path) as saved:
    found = saved.restore(like, base="b", data="d")
  kernel = found.trainable["head"]["kernel"]
  assert type(kernel) is HeadParam
  np.testing.assert_array_equal(kernel[...], model.head.kernel[...])
  fresh = headed()
  with checkpoints.Checkpoints(tmp_path, writable=False) as saved:
    assert saved.restore_adapter(fresh, base="b") == 2
  rows = batch()["encoder_input_tokens"]
  np.testing.assert_array_equal(logits(fresh, rows), logits(model, rows))
  # Another count of labels is refused.
  other = headed(labels=("a", "b"))
  with (
    checkpoints.Checkpoints(tmp_path, writable=False) as saved,
    pytest.raises(ValueError, match=r"head\.bias is float32\[3\] there"),
  ):
    saved.restore_adapter(other, base="b")


@pytest.mark.parametrize("rules", [(LORA,), ()])
def test_native_folders_have_the_head(rules, tmp_path):
  """Also of a head alone, on a frozen encoder."""
  model = headed(("no", "yes"), "first", rules=rules)
  tiny.randomize(model)
  native.write(tmp_path, model, base={"uri": "u", "fingerprint": "f"})
  again = huggingface.load_model(FOLDER)
  sites = native.read(tmp_path, again, fingerprint="f")
  assert sites == surgery.sites(model)
  assert again.head.factory == heads.HeadFactory(
    labels=("no", "yes"), pooling="first"
  )
  rows = batch()["encoder_input_tokens"]
  np.testing.assert_array_equal(logits(again, rows), logits(model, rows))


@pytest.mark.parametrize("labels", [("a", "b", "c"), ()])
def test_a_merged_head_is_hugging_faces(labels, tmp_path):
  """Over the pooler, BERT's own classifier is what was trained."""
  model = headed(labels, pooling="pooler")
  tiny.randomize(model)
  rows = batch()["encoder_input_tokens"]
  expected = logits(model, rows)
  surgery.merge(model)
  assert heads.of(model) is None
  huggingface_writer.write(
    tmp_path, model, source=FOLDER, tokenizer=None, eos_id=1
  )
  again = huggingface.load_model(tmp_path)
  assert again.config.labels == (len(labels) or 1)
  entries = json.loads((tmp_path / "config.json").read_text())
  names = ["LABEL_0"] if not labels else list(labels)
  assert list(entries["id2label"].values()) == names
  assert error(logits(again, rows), expected) < 1e-5


def test_heads_that_no_checkpoint_has(tmp_path):
  model = headed(pooling="mean")
  surgery.merge(model)
  with pytest.raises(ValueError, match="reads the pooler, and this one mean"):
    huggingface_writer.write(
      tmp_path, model, source=FOLDER, tokenizer=None, eos_id=1
    )


def test_on_a_mesh():
  """Born in its slices, and as on one device."""
  rows, alone = batch(), headed()
  expected, _ = nnx.jit(training.batch_loss)(alone, rows)
  with sharding.use(meshes.mesh(data=2, fsdp=4)):
    model = huggingface.load_model(FOLDER)
    sharding.place(model)
    factory = heads.HeadFactory(labels=("a", "b", "c"))
    head = heads.attach(model, factory, rngs=nnx.Rngs(0))
    assert head.kernel[...].sharding.spec[0] == "fsdp"
    np.testing.assert_allclose(
      head.kernel[...], alone.head.kernel[...], rtol=1e-5
    )
    found, _ = nnx.jit(training.batch_loss)(model, sharding.rows(rows))
  assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_mistakes():
  with pytest.raises(ValueError, match="two labels at least"):
    heads.HeadFactory(labels=("a",))
  with pytest.raises(ValueError, match="two labels at least"):
    heads.HeadFactory(labels=("a", "a"))
  factory = heads.HeadFactory(pooling="last")
  with pytest.raises(ValueError, match="A Decoder takes no head"):
    heads.attach(nnx.eval_shape(tiny.base), factory, rngs=nnx.Rngs(0))
  model = huggingface.load_model(GOLDEN / "encoders" / "bert_words")
  for pooling, message in (
    ("last", "Unknown pooling 'last'"),
    ("pooler", "came without a pooler"),
  ):
    factory = heads.HeadFactory(pooling=pooling)
    with pytest.raises(ValueError, match=message):
      heads.attach(model, factory, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="has no head, so it scores no labels"):
    model.logits(jnp.ones((1, 1, 16)))


def test_a_number_has_no_consistency():
  rule = surgery.Rule(LORA.path, methods.create("adamix", rank=2, experts=2))
  model = headed((), rules=[rule])
  with pytest.raises(ValueError, match="a number has none: give"):
    train(model, batch(numbers=True), steps=1)
