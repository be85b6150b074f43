# SPDX-License-Identifier: Apache-2.0
"""An analysis as one HTML page that needs nothing else."""

import base64
from collections.abc import Iterator
import html

import numpy as np
from scipy import special

from sira_jax import routing_figures as figures
from sira_jax.routing_numbers import LABELS, Numbers

_STYLE = """
body { font-family: sans-serif; max-width: 72em; margin: 2em auto;
  padding: 0 1em; color: #222; line-height: 1.4 }
img { max-width: 100% }
figure { margin: 1em 0 }
figcaption { color: #555; font-size: 0.9em }
table { border-collapse: collapse; font-size: 0.85em }
td, th { padding: 0.15em 0.6em; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
tr:nth-child(even) { background: #f3f3f3 }
.wide { overflow-x: auto }
"""

_LOAD = """The share of all choices that each expert gets, times the number of
experts: 1 is an even share, 2 or more is the darkest red, 0 the darkest blue
(an expert that nobody chooses). A row a block, a column an expert; without
unit."""
_ENTROPY = """How undecided the routers are: the entropy of a token's
probabilities over the experts, mean over tokens, in nats. 0 is one expert for
sure; the even distribution over N experts has log N, here {most}."""
_MARGIN = """How clear the choice is: the k-th largest router logit less the
next one, mean over tokens, in nats (it is the logarithm of the ratio of the two
probabilities). Near 0, rounding may decide between the two experts. Layers
whose k is all experts choose nothing, and have no line."""
_AWAY = """What the capacity of the training would cost here: the share of these
choices that exceed the places of their expert, 0 to 1. Evaluation itself has no
capacity, and turns nothing away."""
_SHARES = """{module}: the share of each {name}'s choices that each expert gets,
times the number of experts. A panel a block, a row a {name}, a column an
expert; 1 is even, and rows that look alike are routed alike. Without unit."""
_INFORMATION = """How much the expert of one choice tells of the {name} of its
example: their mutual information (blue), in nats, by block. 0 is nothing; more
than {most} cannot be. The orange band is what {permutations} permutations of
the {name}s over examples of the same {other} have, from their mean to their
95 % quantile: only what is above it is more than chance."""
_SIMILARITY = """{module}: the cosine between what two experts add to the
layer's weight, B A, for each pair. A panel a block; 1 is the same direction, 0
unrelated, -1 opposite; blank where an expert is zero or pruned. Without
unit."""
_CLUSTERS = """Languages by how they are routed. The distance between two is
the share of the choices of one that would have to go to other experts to be
routed as the other is: 0 to 1, mean over layers and over {tasks}. Left, average
linkage: languages that join at a small distance are routed alike; right, all
distances. Few examples make distances larger than they are, for all pairs
alike."""


def page(numbers: Numbers, *, title: str) -> str:
  """The page.

  Raises:
    ValueError: matplotlib is not installed.
  """
  name = html.escape(title)
  body = "\n".join(_sections(numbers))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f"<title>Routing of {name}</title>\n<style>{_STYLE}</style>\n</head>\n"
    f"<body>\n<h1>Routing of {name}</h1>\n{body}\n</body>\n</html>\n"
  )


def _sections(numbers) -> Iterator[str]:
  yield "".join(f"<p>{html.escape(x)}</p>" for x in sentences(numbers))
  layers = numbers.layers.values()
  yield "<h2>Load</h2>" + _figure(figures.load(numbers), _LOAD)
  most = sorted({len(layer.load) for layer in layers})
  most = ", ".join(f"{np.log(n):.2f} for {n}" for n in most)
  yield "<h2>Entropy</h2>" + _figure(
    figures.lines(numbers, "entropy", "nats"), _ENTROPY.format(most=most)
  )
  if any(layer.margin is not None for layer in layers):
    picture = figures.lines(numbers, "margin", "nats")
    yield "<h2>Margin</h2>" + _figure(picture, _MARGIN)
  if any(layer.turned_away is not None for layer in layers):
    picture = figures.lines(numbers, "turned_away", "share of choices")
    yield "<h2>Drop rate</h2>" + _figure(picture, _AWAY)
  for name in LABELS:
    yield from _label(numbers, name)
  if numbers.clusters is not None:
    tasks = html.escape(", ".join(numbers.clusters.tasks))
    picture = figures.clusters(numbers.clusters)
    caption = _CLUSTERS.format(tasks=tasks)
    yield "<h2>Languages</h2>" + _figure(picture, caption)
  pictures = [
    _figure(picture, _SIMILARITY.format(module=html.escape(module)))
    for module, picture in figures.similarity(numbers)
  ]
  if pictures:
    yield "<h2>Experts</h2>" + "\n".join(pictures)
  yield _table(numbers)


def _label(numbers, name) -> Iterator[str]:
  labels = numbers.labels[name]
  if len(labels) > 1:
    other = next(one for one in LABELS if one != name)
    share = np.array(numbers.tokens[name]) / sum(numbers.tokens[name])
    caption = _INFORMATION.format(
      name=name,
      other=other,
      permutations=numbers.permutations,
      most=f"{special.entr(share).sum():.2f}",
    )
    picture = figures.information(numbers, name)
    yield f"<h2>Experts and {name}s</h2>" + _figure(picture, caption)
  else:
    yield (
      f"<h2>Experts and {name}s</h2><p>There is one {name},"
      f" {html.escape(labels[0])}: experts can tell nothing of it.</p>"
    )
  for module, picture in figures.shares(numbers, name):
    caption = _SHARES.format(module=html.escape(module), name=name)
    yield _figure(picture, caption)


def sentences(numbers: Numbers) -> list[str]:
  """What the numbers say of the whole run."""
  layers = list(numbers.layers.values())
  routers = {layer.router for layer in layers}
  dense = [layer for layer in layers if layer.k == len(layer.load)]
  tokens = sum(numbers.tokens[LABELS[0]])
  said = [
    f"{len(layers)} routed layers with {len(routers)} routers; the prompts of"
    f" {numbers.examples} examples, {tokens:,} tokens; padding and answers are"
    " not counted."
  ]
  if dense:
    said.append(
      f"In {len(dense)} layers each token goes to all experts: there, the"
      " weights of the mixture stand for choices."
    )
  for name, p in numbers.mean_p.items():
    if p is not None:
      nats = [layer.information[name]["nats"] for layer in layers]
      base = [layer.information[name]["baseline"] for layer in layers]
      said.append(
        f"Experts and {name}s share {np.mean(nats):.4f} nats, mean over layers;"
        f" permuted {name}s have {np.mean(base):.4f} (p = {p:.3g})."
      )
  limited = any(layer.turned_away is not None for layer in layers)
  if numbers.dropped is not None and limited:
    said.append(
      f"In the last tenth of the training, {numbers.dropped:.1%} of the choices"
      " exceeded the places of their expert."
    )
  return said


def _table(numbers) -> str:
  header = ["layer", "experts", "k", "most loaded", "entropy", "margin"]
  header += ["drop rate"]
  for name in LABELS:
    if numbers.mean_p[name] is not None:
      header += [f"{name}: nats", "permuted", "95 %", "p"]
  rows = []
  for path, layer in numbers.layers.items():
    row = [html.escape(path), str(len(layer.load)), str(layer.k)]
    row += [f"{layer.load.max() * len(layer.load):.2f}"]
    row += [f"{layer.entropy:.3f}", _or_not(layer.margin)]
    row += [_or_not(layer.turned_away)]
    for name in LABELS:
      found = layer.information[name]
      if found is not None:
        keys = ("nats", "baseline", "quantile")
        row += [f"{found[key]:.4f}" for key in keys] + [f"{found['p']:.3g}"]
    rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
  head = "".join(f"<th>{cell}</th>" for cell in header)
  return (
    "<h2>All layers</h2><p>A row a layer: the largest load (1 is even);"
    " entropy, margin and mutual information in nats; the drop rate as a share"
    " of the choices; the permuted labels' mean and 95 % quantile; and p, how"
    " often they have as much. Of many layers, one in twenty has p below 0.05"
    ' by chance.</p><div class="wide"><table><thead><tr>'
    f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def _or_not(value):
  return "-" if value is None else f"{value:.3f}"


def _figure(picture: bytes, caption: str) -> str:
  source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
  return (
    f'<figure><img src="{source}" alt="described below">'
    f"<figcaption>{caption}</figcaption></figure>"
  )
