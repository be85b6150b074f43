"""What of a mesh a config says, and what is read straight into its places."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import meshes, sharding
from sira_jax.adapters import methods, surgery


def test_a_number_goes_to_all():
  with sharding.use(meshes.mesh()):
    assert sharding.rows({"n": np.array(3)})["n"].is_fully_replicated


def test_places():
  assert sharding.places() == 1
  with sharding.use(meshes.mesh(fsdp=2, tensor=2)):
    assert sharding.places() == 4
  with sharding.use(meshes.mesh(), {"batch": None}):
    assert sharding.places() == 1


def test_variables_are_filled_in_their_slices():
  array = np.arange(64, dtype=np.float32).reshape(16, 4)
  shape = jax.ShapeDtypeStruct((16, 4), jnp.float32)
  shapes = nnx.State({"w": nnx.Param(shape, axes=("d", "f"))})
  asked = []

  def read(path, index):
    asked.append(path)
    return array[index]

  (found,) = jax.tree.leaves(sharding.filled(shapes, read))
  assert (found == array).all() and asked == ["w"]
  with sharding.use(meshes.mesh(data=1, fsdp=4, tensor=2)):
    (found,) = jax.tree.leaves(sharding.filled(shapes, read))
  assert found.sharding.shard_shape((16, 4)) == (4, 2)
  np.testing.assert_array_equal(found, array)


def test_layout():
  mesh, rules = sharding.layout(fsdp=2, experts="data")
  assert mesh.devices.shape == (4, 2, 1) and rules == {"experts": "data"}
  with sharding.use(mesh, rules):
    factory = methods.create("sira", experts=4, rank=2, k=2)
    model = nnx.List([nnx.Linear(8, 8, rngs=nnx.Rngs(0))])
    surgery.adapt(model, [surgery.Rule("0", factory)], rngs=nnx.Rngs(0))
    a = model[0].adapter.A[...]
  assert a.sharding.shard_shape(a.shape) == (8, 1, 2)
  assert sharding.layout()[1] == {}
  # So many were asked for, and no others.
  few, _ = sharding.layout(data=2, tensor=2)
  assert few.devices.shape == (2, 1, 2)
  with pytest.raises(ValueError, match="data=9 x fsdp=1 x tensor=1"):
    sharding.layout(data=9)
  with pytest.raises(ValueError, match="'experts' -> 'pipeline' names"):
    sharding.layout(experts="pipeline")
