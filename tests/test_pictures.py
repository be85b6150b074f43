"""Pictures say what they were given."""

import sys

import pytest

from sira_jax import pictures

pytest.importorskip("matplotlib")

SITE = {"load": [[0.75, 0.25], [1.0, 0.0]], "entropy": [0.1, 0.2]}
OTHER = {"load": [[0.25, 0.75], [1.0, 0.0]], "entropy": [0.3, 0.4]}
ROUTING = {
  "sets": ["task/en", "task/de"],
  "zero_shot": [False, True],
  "sites": {"layers.0.q": SITE, "layers.1.q": OTHER, "layers.0.v": SITE},
}
COUNTS = {"layers.0.q": 3, "layers.0.v": 0, "layers.1.v": 12}
STUDY = [
  {
    "parameters": parameters,
    "generalisation": {"a": 50.0 + parameters, "b": 0.0},
    "memorisation": {"a": 80.0, "b": 1.0},
  }
  for parameters in (30, 20, 10)
]


@pytest.fixture
def canvases(monkeypatch):
  """Every figure that is saved."""
  from matplotlib import figure

  found = []

  class Figure(figure.Figure):
    def savefig(self, file, **settings):
      found.append(self)
      super().savefig(file, **settings)

  monkeypatch.setattr(figure, "Figure", Figure)
  return found


def labels(ticks):
  return [label.get_text() for label in ticks]


def test_routing(canvases, tmp_path):
  pictures.routing(ROUTING, tmp_path / "routing.png")
  q, v, _ = canvases[0].axes
  assert labels(q.get_yticklabels()) == ["task/en", "task/de"]
  assert q.get_title() == "q  (entropy 0.25 nats)"
  # The layers' mean load, times the number of experts: 1 is uniform.
  assert q.images[0].get_array().tolist() == [[1, 1], [2, 0]]
  assert v.get_title().startswith("v")
  assert (tmp_path / "routing.png").read_bytes()[:4] == b"\x89PNG"


def test_allocation(canvases, tmp_path):
  """Each count stands in its module's column of its layer's row."""
  pictures.allocation(COUNTS, tmp_path / "allocation.png")
  axis, _ = canvases[0].axes
  assert labels(axis.get_xticklabels()) == ["q", "v"]
  assert labels(axis.get_yticklabels()) == ["layers.0", "layers.1"]
  # (column, row): layer 1 has no q.
  texts = {text.get_position(): text.get_text() for text in axis.texts}
  assert texts == {(0, 0): "3", (1, 0): "0", (1, 1): "12"}


def test_sparsity(canvases, tmp_path):
  """Relative to the first stage; what is zero there has no line."""
  pictures.sparsity(STUDY, tmp_path / "sparsity.png")
  generalisation, memorisation = canvases[0].axes
  (line,) = generalisation.lines
  assert line.get_xdata().tolist() == [30, 20, 10]
  assert line.get_ydata().tolist() == [100, 87.5, 75]
  assert [line.get_label() for line in memorisation.lines] == ["a", "b"]


@pytest.mark.parametrize(
  "draw, what, subject",
  [
    (pictures.routing, ROUTING, "expert load"),
    (pictures.allocation, COUNTS, "expert allocation"),
    (pictures.sparsity, STUDY, "a sparsity study"),
  ],
)
def test_without_matplotlib(draw, what, subject, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(ValueError, match=rf"{subject}.*sira_jax\[plots\]"):
    draw(what, tmp_path / "picture.png")
