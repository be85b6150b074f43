"""What a checkpoint brings back, and what it refuses."""

import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sira_jax import checkpoints
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import Trainable
from sira_jax.training import step as training

META = {"base": "base" * 16, "data": "data" * 16}


class Model(nnx.Module):
  """Linear layers in a list, whose paths hold numbers."""

  FEATURES = ("x",)

  def __init__(self, d=4):
    self.layers = nnx.List(
      [nnx.Linear(d, d, rngs=nnx.Rngs(seed)) for seed in range(2)]
    )

  def hidden(self, x):
    for layer in self.layers:
      x = layer(x)
    return x

  def logits(self, hidden):
    return hidden


def build(d=4, path=r"layers\..", method="lora", **settings):
  model = Model(d)
  factory = methods.create(method, **(dict(rank=2) | settings))
  surgery.adapt(model, [surgery.Rule(path, factory)], rngs=nnx.Rngs(0))
  return model


OPTIMIZER = optax.adam(0.1)


def fresh(**settings):
  return training.init(build(**settings), OPTIMIZER, seed=7)


@jax.jit
def _change(state, number):
  add = lambda leaf: (leaf + number).astype(leaf.dtype)  # noqa: E731
  return training.TrainState(
    step=add(state.step),
    trainable=jax.tree.map(add, state.trainable),
    constants=state.constants,
    optimizer=jax.tree.map(add, state.optimizer),
    key=jax.random.fold_in(state.key, number),
  )


def arrays(state):
  """All numbers of a state by path, copied."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(
    (
      state.step,
      state.trainable,
      state.optimizer,
      jax.random.key_data(state.key),
    )
  )
  return {jax.tree_util.keystr(p): np.array(leaf) for p, leaf in leaves}


def assert_equal(got, expected):
  assert got.keys() == expected.keys()
  for path, array in expected.items():
    assert got[path].dtype == array.dtype
    np.testing.assert_array_equal(got[path], array, path)


def save(folder, state, *, step=3, keep=2, **meta):
  with checkpoints.Checkpoints(folder, keep=keep) as saved:
    saved.save(state, step=step, meta=META | meta)


def restore(folder, like, **meta):
  with checkpoints.Checkpoints(folder) as saved:
    return saved.restore(like, **(META | meta))


def test_restored_equals_saved(tmp_path):
  state = _change(fresh(), 3)
  save(tmp_path, state)
  got = restore(tmp_path, fresh())
  assert_equal(arrays(got), arrays(state))
  assert jax.tree.structure(got) == jax.tree.structure(state)
  assert got.key.dtype == state.key.dtype


def test_training_goes_on_while_a_save_is_written(tmp_path):
  """The step donates its state: its memory is written over at once."""
  d = 512  # large enough that the writing takes a while
  model = build(d, rank=64)
  state = training.init(model, OPTIMIZER, seed=7)
  step = training.make(model, OPTIMIZER)
  batch = {
    "x": jnp.ones((1, 2, d)),
    "decoder_target_tokens": jnp.ones((1, 2), jnp.int32),
    "decoder_loss_weights": jnp.ones((1, 2)),
  }
  for _ in range(2):
    state, _ = step(state, batch)
  expected = arrays(state)
  with checkpoints.Checkpoints(tmp_path) as saved:
    saved.save(state, step=2, meta=META)
    for _ in range(5):
      state, _ = step(state, batch)
  assert int(state.step) == 7
  assert not np.array_equal(
    arrays(state)["[1]['layers'][0]['adapter']['B'].value"],
    expected["[1]['layers'][0]['adapter']['B'].value"],
  )
  like = training.init(model, OPTIMIZER, seed=7)
  assert_equal(arrays(restore(tmp_path, like)), expected)


def test_restored_state_trains_on_the_same(tmp_path):
  model = build()
  step = training.make(model, OPTIMIZER)
  batch = {
    "x": jnp.ones((1, 2, 4)),
    "decoder_target_tokens": jnp.ones((1, 2), jnp.int32),
    "decoder_loss_weights": jnp.ones((1, 2)),
  }
  state = training.init(model, OPTIMIZER, seed=7)
  for number in range(4):
    if number == 2:
      save(tmp_path, state, step=number)
    state, _ = step(state, batch)
  resumed = restore(tmp_path, training.init(model, OPTIMIZER, seed=8))
  for _ in range(2):
    resumed, _ = step(resumed, batch)
  assert_equal(arrays(resumed), arrays(state))


def test_restores_the_adapter_alone(tmp_path):
  state = _change(fresh(), 3)
  save(tmp_path, state)
  model = build()
  kernel = np.array(model.layers[0].kernel)
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.restore_adapter(model, base=META["base"]) == 3
  got = nnx.state(model, Trainable)
  jax.tree.map(np.testing.assert_array_equal, got, state.trainable)
  np.testing.assert_array_equal(model.layers[0].kernel, kernel)


@pytest.mark.parametrize("alone", [False, True])
def test_another_base_is_refused(tmp_path, alone):
  save(tmp_path, fresh())
  with (
    checkpoints.Checkpoints(tmp_path) as saved,
    pytest.raises(
      ValueError, match=rf"another base model.*{META['base']}.*new"
    ),
  ):
    if alone:
      saved.restore_adapter(build(), base="new")
    else:
      saved.restore(fresh(), base="new", data=META["data"])


def test_other_data_are_refused(tmp_path):
  save(tmp_path, fresh())
  with pytest.raises(
    ValueError, match=r"trained on other data.*datadatadata.*new"
  ):
    restore(tmp_path, fresh(), data="new")


@pytest.mark.parametrize(
  "settings",
  [
    dict(rank=3),
    dict(d=5),
    dict(path=r"layers\.0"),
    dict(method="sira", experts=3, k=2),
  ],
  ids=["rank", "width", "fewer layers", "method"],
)
@pytest.mark.parametrize("alone", [False, True])
def test_other_shapes_are_refused(tmp_path, settings, alone):
  save(tmp_path, fresh())
  with (
    checkpoints.Checkpoints(tmp_path) as saved,
    pytest.raises(ValueError, match="does not fit the adapters") as error,
  ):
    if alone:
      saved.restore_adapter(build(**settings), base=META["base"])
    else:
      saved.restore(fresh(**settings), **META)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 600


def test_more_layers_are_refused(tmp_path):
  save(tmp_path, fresh(path=r"layers\.0"))
  with pytest.raises(ValueError, match="does not fit the adapters"):
    restore(tmp_path, fresh())


def test_no_checkpoint_is_an_error(tmp_path):
  with checkpoints.Checkpoints(tmp_path / "new") as saved:
    assert saved.latest() is None
    with pytest.raises(ValueError, match=r"no checkpoint.*train first"):
      saved.restore(fresh(), **META)
    with pytest.raises(ValueError, match=r"no checkpoint.*train first"):
      saved.restore_adapter(build(), base=META["base"])


def test_an_interrupted_save_is_not_seen(tmp_path):
  state = _change(fresh(), 3)
  save(tmp_path, state)
  # What a killed process leaves: a folder not yet renamed, half of it there.
  half = tmp_path / "4.orbax-checkpoint-tmp-1"
  shutil.copytree(tmp_path / "3" / "adapter", half / "adapter")
  (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.latest() == 3
    assert_equal(arrays(saved.restore(fresh(), **META)), arrays(state))
    saved.save(_change(state, 1), step=4, meta=META)
  assert_equal(arrays(restore(tmp_path, fresh())), arrays(_change(state, 1)))


def test_keeps_the_newest(tmp_path):
  state = fresh()
  with checkpoints.Checkpoints(tmp_path, keep=2) as saved:
    for step in (1, 2, 5):
      saved.save(state, step=step, meta=META)
    assert saved.latest() == 5
  folders = {int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()}
  assert folders == {2, 5}


def test_a_saved_step_is_not_saved_again(tmp_path):
  state = fresh()
  save(tmp_path, state)
  save(tmp_path, _change(state, 1))
  assert_equal(arrays(restore(tmp_path, fresh())), arrays(state))


def test_saves_nothing_of_the_base(tmp_path):
  """The base here is 2 x 256 x 256 numbers, the adapter 2 x 1024."""
  save(tmp_path, fresh(d=256))
  size = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
  assert size < 256 * 256 * 4


def test_an_interrupted_write_is_removed_at_once(tmp_path):
  left = tmp_path / "3.orbax-checkpoint-tmp"
  left.mkdir()
  (left / "half").touch()
  with checkpoints.Checkpoints(tmp_path, writable=False):
    assert left.exists()
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert not left.exists()
    assert saved.latest() is None
