"""The page needs nothing else, says what it shows, and serves every method."""

import base64
import re

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import routing_figures as figures
from sira_jax import routing_numbers, routing_report
from sira_jax.adapters import methods, surgery
from tests import tiny
from tests.test_analysis import Model, adapted, gathered, some_set

pytest.importorskip("matplotlib")

SETS = [
  some_set("en", [1, 2, 1, 1], [2, 1]),
  some_set("de", [3, 4, 5], [1, 1], zero_shot=True),
  some_set("f<r>", [2, 4]),
]


def numbers(model, sets=SETS):
  tiny.randomize(model)
  return routing_numbers.numbers(model, gathered(model, sets), permutations=9)


def page(found):
  """The page, whose pictures are in it and are explained, each."""
  text = routing_report.page(found, title="a & b")
  assert "<h1>Routing of a &amp; b</h1>" in text
  assert not re.search(r"https?:|<script|<link|@import|url\(", text)
  pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', text)
  assert len(pictures) == len(re.findall("<img|<image|<svg", text)) > 0
  assert all(base64.b64decode(p)[:4] == b"\x89PNG" for p in pictures)
  captions = re.findall(r"<img[^>]*><figcaption>(.*?)</figcaption>", text, re.S)
  assert len(captions) == len(pictures)
  for caption in captions:
    assert re.search(r"\bnats\b|[Ww]ithout\s+unit|0 to 1", caption), caption
  assert "{" not in "".join(captions)
  return text


def headings(text):
  return re.findall("<h2>(.*?)</h2>", text)


def test_a_sparse_mixture():
  model = adapted("sira", experts=4, k=2, rank=2, capacity=1)
  found = numbers(model)
  text = page(found)
  assert headings(text) == [
    *("Load", "Entropy", "Margin", "Drop rate", "Experts and tasks"),
    *("Experts and languages", "Languages", "Experts", "All layers"),
  ]
  assert "There is one task, task" in text
  assert "f<r>" not in text
  # Of each layer a row, after that of names.
  assert text.count("<tr>") == 3
  layer = found.layers["first"]
  pairs = model.first.adapter.expert_pairs()
  weights = [np.ravel(pair.product()) for pair in pairs.values()]
  unit = np.stack([w / np.linalg.norm(w) for w in weights])
  np.testing.assert_allclose(layer.similarity, unit @ unit.T, atol=1e-5)
  written = routing_numbers.plain(found)["layers"]["first"]
  assert written["information"]["task"] is None
  np.testing.assert_allclose(written["load"], layer.load, atol=1e-6)


def test_a_dense_mixture():
  """Weights stand for choices, and there is no margin."""
  model = adapted("molora", experts=3, rank=2)
  router = model.first.adapter.router
  kernel = np.zeros((8, 3), np.float32)
  kernel[1] = np.log([0.5, 0.25, 0.25])
  kernel[2] = np.log([0.1, 0.1, 0.8])
  router.kernel[...] = jnp.asarray(kernel)
  found = numbers(model, [some_set("en", [1, 2]), some_set("de", [1])])
  layer = found.layers["first"]
  expected = [[0.3, 0.175, 0.525], [0.5, 0.25, 0.25]]
  np.testing.assert_allclose(layer.shares["language"], expected, atol=1e-6)
  assert layer.margin is None and layer.turned_away is None
  text = page(found)
  assert "In 2 layers each token goes to all experts" in text
  assert "Margin" not in headings(text)


@pytest.mark.parametrize(
  "method, settings, similar",
  [
    ("smoe_dropout", dict(experts=4, first_k=1, k=2, rank=2), True),
    ("mov", dict(experts=3), True),
    ("sira", dict(experts=3, k=1, rank=1, activation="relu"), False),
    ("sira", dict(experts=3, k=1, rank=1, gate=1.0), True),
    ("sira", dict(experts=3, k=1, rank=1, shared_router=True), True),
  ],
)
def test_methods(method, settings, similar):
  model = adapted(method, **settings)
  found = numbers(model)
  text = page(found)
  assert ("Experts" in headings(text)) == similar
  routers = 1 if settings.get("shared_router") else 2
  assert f"2 routed layers with {routers} routers" in text
  for layer in found.layers.values():
    if similar:
      np.testing.assert_allclose(np.diag(layer.similarity), 1)
    else:
      assert layer.similarity is None


def test_layers_of_different_experts():
  """As LoRA-SMoE allocates them; one has a single expert."""
  model = Model()
  rules = [
    surgery.Rule(name, methods.sira(experts=n, k=min(n, 2), rank=2))
    for name, n in (("first", 1), ("second", 3))
  ]
  surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  model.eval()
  found = numbers(model)
  one, three = found.layers.values()
  assert one.load.tolist() == [1] and len(three.load) == 3
  assert one.information["language"]["nats"] == 0
  assert one.information["language"]["p"] == 1
  page(found)


def test_pictures_show_their_numbers(monkeypatch):
  """Shares times the number of experts, a row a label."""
  from matplotlib import figure

  made = []
  monkeypatch.setattr(
    figure.Figure, "savefig", lambda self, *_, **__: made.append(self)
  )
  found = numbers(adapted("sira", experts=4, k=2, rank=2))
  list(figures.shares(found, "language"))
  axis = made[0].axes[0]
  layer = found.layers["first"]
  np.testing.assert_allclose(
    axis.images[0].get_array(), 4 * layer.shares["language"]
  )
  names = [label.get_text() for label in axis.get_yticklabels()]
  assert names == ["en", "de (zero-shot)", "f<r>"]
  figures.information(found, "language")
  line = made[-1].axes[0].lines[0]
  nats = layer.information["language"]["nats"]
  assert line.get_ydata()[0] == pytest.approx(nats)
  # The second panel has the highest point, and all of it is seen.
  told = found.layers["second"].information["language"]
  told["nats"] = 5.0
  figures.information(found, "language")
  for axis in made[-1].axes[:2]:
    assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > 5
  figures.clusters(found.clusters)
  tree, table, _ = made[-1].axes
  order = [label.get_text() for label in table.get_yticklabels()]
  # The tree's first leaf is below, the table's first row above.
  assert [t.get_text() for t in tree.get_yticklabels()] == order[::-1]
  at = [found.clusters.languages.index(name) for name in order]
  expected = found.clusters.distances[np.ix_(at, at)]
  np.testing.assert_allclose(table.images[0].get_array(), expected)
