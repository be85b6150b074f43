# SPDX-License-Identifier: Apache-2.0
"""Which of the tokens that chose an expert it serves, when its places are few.

Legend: batch, length, experts. Places are counted for each training example.
"""

import fractions
import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from sira_jax.adapters import groups as groups_lib
from sira_jax.adapters import top_k

PRIORITIES = ("choice", "position", "probability")


@functools.lru_cache(maxsize=64)
def places(
  length: int,
  experts: int,
  k: int,
  *,
  capacity: int | None,
  capacity_factor: float | None,
) -> np.ndarray | None:
  """The places of each expert for examples of 0 .. length tokens, exactly.

  None where nothing is limited. The factor is taken as the decimal number that
  was written, so that 1.1 * 10 is 11 and its ceiling is no 12.
  """
  if capacity is not None:
    return np.full(length + 1, capacity, np.int32)
  if capacity_factor is None:
    return None
  share = fractions.Fraction(str(capacity_factor)) * fractions.Fraction(
    k, experts
  )
  return np.array([math.ceil(share * n) for n in range(length + 1)], np.int32)


def serve(
  q: Float[Array, "batch length experts"],
  k: int,
  *,
  eligible: Bool[Array, "batch length experts"],
  limit: Int[Array, "batch #length 1"],
  groups: groups_lib.Groups,
  priority: str,
) -> tuple[
  Bool[Array, "batch length experts"],
  Bool[Array, "batch length experts"],
  Float[Array, "batch #length experts"],
]:
  """What was chosen, what of it is served, and the choices of the example.

  Args:
    q: router probabilities after expert dropout.
    k: experts a token is sent to.
    eligible: False for padding and for dropped experts.
    limit: places of each expert in the token's example.
    groups: the examples.
    priority: whom a full expert turns away. "choice": all first choices come
      before second ones, each from left to right (GShard). "position": tokens
      from left to right, with all their choices; with an absolute number of
      places, no token's fate depends on a later one. "probability": as
      "choice", but each in the order of the tokens' largest probabilities over
      experts (V-MoE's batch priority, Riquelme et al. 2021, within an
      example).
  """
  if priority == "position":
    chosen = top_k.mask(q, k) & eligible
    before, total = groups.counts(chosen)
    return chosen, chosen & (before < limit), total
  choices = [choice & eligible for choice in top_k.choices(q, k)]
  order = None
  if priority == "probability":
    order = groups.order(-q.max(axis=-1))
    choices = [_permute(choice, order) for choice in choices]
  before, total = groups.counts(jnp.concatenate(choices, axis=-1))
  before, total = (jnp.split(x, k, axis=-1) for x in (before, total))
  served, taken = jnp.zeros_like(choices[0]), 0
  for choice, earlier, all_of_it in zip(choices, before, total, strict=True):
    served |= choice & (taken + earlier < limit)
    taken = taken + all_of_it
  chosen = functools.reduce(jnp.logical_or, choices)
  if order is not None:
    back = jnp.argsort(order, axis=1)
    chosen, served = _permute(chosen, back), _permute(served, back)
  return chosen, served, taken


def _permute(marks, order):
  return jnp.take_along_axis(marks, order[..., None], axis=1)
