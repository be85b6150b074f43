# SPDX-License-Identifier: Apache-2.0
"""Measures of what routers do, in numpy: each is a formula and its numbers.

Legend: examples, experts, labels. Choices are counts, or sums of weights, of
each example and expert.
"""

from collections.abc import Hashable, Sequence
import dataclasses

from jaxtyping import Float
import numpy as np
from scipy import special
from scipy.cluster import hierarchy
from scipy.spatial import distance

from sira_jax.adapters import capacity as capacity_lib

Choices = Float[np.ndarray, "examples experts"]
# Permutations whose tables are in memory at once.
_AT_ONCE = 50
# Rounding must not make a permutation that changes nothing look smaller.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Information:
  """Mutual information between a choice's expert and its example's label.

  Attributes:
    nats: of the labels as they are, by layer.
    baseline: mean over permuted labels.
    quantile: 95 % of the permutations have less or as much.
    p: how often permuted labels have as much or more; at least 1 / (n + 1).
    mean_p: the same of the mean over layers.
  """

  nats: Float[np.ndarray, "layers"]
  baseline: Float[np.ndarray, "layers"]
  quantile: Float[np.ndarray, "layers"]
  p: Float[np.ndarray, "layers"]
  mean_p: float


def shares(
  choices: Choices, labels: Sequence[Hashable], order: Sequence[Hashable]
) -> Float[np.ndarray, "labels experts"]:
  """Of the choices of all examples of a label, each expert's share.

  Args:
    choices: of each example.
    labels: of each example.
    order: of the labels; NaN for one that has no choices.
  """
  sums = _members(labels, order) @ np.float64(choices)
  total = sums.sum(axis=1, keepdims=True)
  return np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)


def mutual_information(
  joint: Float[np.ndarray, "*some labels experts"],
) -> Float[np.ndarray, "*some"]:
  """sum over l, e of p(l, e) log(p(l, e) / (p(l) p(e))), in nats.

  Args:
    joint: p(l, e), or anything in proportion to it.
  """
  p = joint / joint.sum(axis=(-2, -1), keepdims=True)
  entropy = lambda x, axis: special.entr(x).sum(axis=axis)  # noqa: E731
  both = entropy(p.sum(axis=-1), -1) + entropy(p.sum(axis=-2), -1)
  return np.maximum(both - entropy(p, (-2, -1)), 0.0)


def information(
  layers: Sequence[Choices],
  labels: Sequence[Hashable],
  *,
  strata: Sequence[Hashable],
  permutations: int,
  seed: int,
) -> Information:
  """`mutual_information` of experts and labels, beside that of chance.

  Few examples have some information by chance alone, and the tokens of one
  example are no independent draws. So labels are permuted over whole examples,
  and only among examples of the same stratum: of languages within a task, and
  of tasks within a language. What a label says because the other one is uneven
  is then part of the baseline.

  Args:
    layers: the choices of each.
    labels: of each example.
    strata: of each example.
    permutations: how many.
    seed: of the permutations, which all layers share.

  Raises:
    ValueError: no permutation, or a layer without choices.
  """
  if permutations < 1:
    raise ValueError(f"permutations must be at least 1, got {permutations}.")
  sizes = [choices.shape[1] for choices in layers]
  table = np.concatenate(layers, axis=1).astype(np.float64)
  ends = np.cumsum(sizes)[:-1]
  if any(part.sum() <= 0 for part in np.split(table, ends, axis=1)):
    raise ValueError("A layer has no choices, of which nothing can be said.")

  def of(members):
    """[*some labels examples] -> [*some layers]."""
    parts = np.split(members @ table, ends, axis=-1)
    return np.stack([mutual_information(part) for part in parts], axis=-1)

  members = _members(labels, sorted(set(labels)))
  found, random = of(members), np.random.default_rng(seed)
  groups = [
    np.flatnonzero([one == stratum for one in strata])
    for stratum in sorted(set(strata))
  ]
  chance = []
  for start in range(0, permutations, _AT_ONCE):
    some = min(_AT_ONCE, permutations - start)
    orders = np.empty((some, len(labels)), int)
    for group in groups:
      orders[:, group] = random.permuted(np.tile(group, (some, 1)), axis=1)
    chance.append(of(np.moveaxis(members[:, orders], 0, 1)))
  chance = np.concatenate(chance)
  return Information(
    nats=found,
    baseline=chance.mean(axis=0),
    quantile=np.quantile(chance, 0.95, axis=0),
    p=_p(chance, found),
    mean_p=float(_p(chance.mean(axis=1), found.mean())),
  )


def turned_away(
  choices: Choices,
  tokens: Float[np.ndarray, "examples"],
  *,
  k: int,
  capacity: int | None,
  capacity_factor: float | None,
) -> float:
  """The share of the choices that experts of few places would turn away.

      sum of max(0, c_e - places) / sum of c_e

  An expert of so many places serves so many of an example's choices, whatever
  its priority; see `adapters.capacity`. 0 without a limit.

  Args:
    choices: counts.
    tokens: of each example.
    k: experts a token is sent to.
    capacity: as of `routers.TopK`.
    capacity_factor: as of `routers.TopK`.
  """
  places = capacity_lib.places(
    int(tokens.max()),
    choices.shape[1],
    k,
    capacity=capacity,
    capacity_factor=capacity_factor,
  )
  if places is None:
    return 0.0
  over = choices - places[tokens.astype(int)][:, None]
  return float(np.maximum(over, 0).sum() / choices.sum())


def similarity(
  a: Float[np.ndarray, "d experts rank"],
  b: Float[np.ndarray, "experts rank f"],
) -> Float[np.ndarray, "experts experts"]:
  """Cosines of the weights A_e B_e of experts, which are never built.

      <A_e B_e, A_g B_g> = sum of (A_e^T A_g) * (B_e B_g^T)   rank x rank each

  NaN where a weight is zero.
  """
  a, b = np.float64(a), np.float64(b)
  downs = np.einsum("der,dgs->egrs", a, a, optimize=True)
  ups = np.einsum("erf,gsf->egrs", b, b, optimize=True)
  products = (downs * ups).sum(axis=(2, 3))
  norms = np.sqrt(np.diag(products))
  sizes = np.outer(norms, norms)
  nothing = np.full_like(products, np.nan)
  return np.divide(products, sizes, out=nothing, where=sizes > 0)


def distances(
  profiles: Sequence[Float[np.ndarray, "labels experts"]],
) -> Float[np.ndarray, "labels labels"]:
  """How differently labels are routed: total variation, mean over layers.

      1/2 sum over e of |p(e | l) - p(e | m)|

  The share of the choices of one that would have to go to other experts to be
  those of the other: 0 to 1.

  Args:
    profiles: the shares of each layer.
  """
  parts = [
    distance.squareform(distance.pdist(profile, "cityblock")) / 2
    for profile in profiles
  ]
  return np.mean(parts, axis=0)


def clusters(
  between: Float[np.ndarray, "labels labels"],
) -> Float[np.ndarray, "merges 4"]:
  """Average-linkage clusters, as `scipy.cluster.hierarchy` writes them.

  Neighbours in the order of the leaves are as near as the tree allows.

  Raises:
    ValueError: fewer than two labels.
  """
  if len(between) < 2:
    raise ValueError(f"Expected two labels at least, got {len(between)}.")
  return hierarchy.linkage(
    distance.squareform(between, checks=False),
    method="average",
    optimal_ordering=True,
  )


def leaves(merges: Float[np.ndarray, "merges 4"]) -> list[int]:
  """The labels in the order of the tree that `clusters` gives."""
  return [int(leaf) for leaf in hierarchy.leaves_list(merges)]


def _members(labels, order):
  """1 where an example has a label, [labels examples]."""
  return np.float64([[one == label for one in labels] for label in order])


def _p(chance, found):
  as_much = (chance >= found - _ROUNDING).sum(axis=0)
  return (1 + as_much) / (1 + len(chance))
