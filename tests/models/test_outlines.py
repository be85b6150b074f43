"""Models of shapes alone."""

import dataclasses
import functools

from flax import nnx
import jax
import pytest

from sira_jax.models import decoder, outlines, t5
from tests import tiny, tiny_t5

UNTIED = dataclasses.replace(tiny.CONFIG, tied_embeddings=False)
MODELS = {
  "decoder": functools.partial(decoder.Decoder, UNTIED, scan=True),
  "encoder-decoder": functools.partial(t5.T5, tiny_t5.CONFIG),
}


@pytest.mark.parametrize("name", MODELS)
def test_is_the_model_but_for_its_numbers(name, monkeypatch):
  graph, state = nnx.split(MODELS[name](rngs=nnx.Rngs(0)))

  def draw(self):
    raise AssertionError("A draw was counted, which takes long to trace.")

  monkeypatch.setattr(nnx.RngStream, "__call__", draw)
  outline, shapes = nnx.split(outlines.outline(MODELS[name]))
  assert outline == graph
  assert jax.tree.structure(shapes) == jax.tree.structure(state)
  for shape, array in zip(*map(jax.tree.leaves, (shapes, state)), strict=True):
    assert isinstance(shape, jax.ShapeDtypeStruct)
    assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
