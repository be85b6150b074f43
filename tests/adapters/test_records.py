"""The margin of a choice, of logits written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import ambient
from sira_jax.adapters import groups, routers

LOGITS = np.float32([[[4, 3, 1, 0], [0, 5, 5, 2], [2, 2, 2, 2], [9, 1, 0, 0]]])
REAL = np.array([[1, 1, 1, 0]])


def margin(k, **settings):
  with ambient.SEGMENTS(ambient.Segments(jnp.asarray(REAL), packed=False)):
    routing = routers.route(
      jnp.asarray(LOGITS),
      routers.TopK(k=4, **settings),
      groups=groups.of_batch(1, 4),
      k=k,
    )
  return routing.stats.margin[0]


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize(
  # Of the three real tokens; the fourth is padding.
  "k, expected",
  [(1, 1 + 0 + 0), (2, 2 + 3 + 0), (3, 1 + 2 + 0), (4, 0)],
)
def test_margin(k, expected, trace):
  found = jax.jit(margin)(k) if trace else margin(k)
  assert float(found) == expected
