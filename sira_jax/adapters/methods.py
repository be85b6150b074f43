# SPDX-License-Identifier: Apache-2.0
"""The methods: functions from a paper's hyper-parameters to an adapter."""

from collections.abc import Mapping
import inspect
from typing import Any

from sira_jax.adapters import routers
from sira_jax.adapters.adapter import AdapterFactory


def lora(*, rank: int = 8, alpha: float | None = None) -> AdapterFactory:
  """LoRA: y = x W0 + (alpha / rank) x A B.

  Source: Hu et al. 2021, eq. 3; init as in the authors' code.

  Args:
    rank: of A and B.
    alpha: the scale's numerator; None for `rank`, that is a scale of 1.
  """
  return AdapterFactory("lora", rank, _scale(alpha, rank))


def sira(
  *,
  experts: int = 16,
  rank: int = 4,
  k: int = 4,
  alpha: float | None = None,
  compensate: bool = True,
  capacity_factor: float | None = None,
  capacity: int | None = None,
  expert_dropout: float = 0.1,
  balance_coefficient: float = 1e-2,
  execution: str = "rank_space",
) -> AdapterFactory:
  """SiRA: a sparse mixture of LoRA experts with a capacity limit.

  y = x W0 + s * sum over the token's k experts of q_e (x A_e) B_e; see
  `routers.TopK` for q and the limit.

  Source: Zhu et al. 2023 (arXiv 2311.09179). Ours are the defaults of

  * `expert_dropout`, lower than the paper's because short training suffers;
  * `compensate`: weights that are not renormalised are about 1 / experts each,
    and the plain scale learns slowly;
  * `balance_coefficient`, of which the paper's value is not known to us;
  * `capacity_factor`: no limit. A limit per example lets a token see the
    future: places follow from the example's length, answer included, and
    second choices wait for the first choices of later tokens. A decoder-only
    model learns its answer's end from it and decodes without; set a limit for
    encoders, or measure (`docs/fidelity.md` has our measurement).

  Args:
    experts: LoRA experts at each adapted layer.
    rank: of each expert.
    k: experts a token is sent to.
    alpha: s = alpha / rank; None for `rank`.
    compensate: multiply s by `experts`; False is the paper's plain form.
    capacity_factor: see `routers.TopK`; in training only.
    capacity: see `routers.TopK`; give this or the factor.
    expert_dropout: see `routers.TopK`; in training only.
    balance_coefficient: weight of the balance loss.
    execution: "rank_space" or "dispatch"; see `execution`.
  """
  router = routers.TopK(
    k=k,
    capacity_factor=capacity_factor,
    capacity=capacity,
    expert_dropout=expert_dropout,
    balance_coefficient=balance_coefficient,
  )
  scale = _scale(alpha, rank) * (experts if compensate else 1)
  return AdapterFactory("sira", rank, scale, experts, router, execution)


METHODS = {"lora": lora, "sira": sira}


def create(method: str, **settings: Any) -> AdapterFactory:
  """The adapter factory of a method named in `METHODS`.

  Raises:
    ValueError: no such method, or a setting that it does not have.
  """
  known = defaults(method)
  unknown = sorted(set(settings) - set(known))
  if unknown:
    raise ValueError(
      f"{method} has no setting {', '.join(unknown)}; it has"
      f" {', '.join(known)}."
    )
  return METHODS[method](**settings)


def defaults(method: str) -> Mapping[str, Any]:
  """A method's settings and their defaults, from its signature.

  Raises:
    ValueError: no such method.
  """
  if method not in METHODS:
    raise ValueError(f"Unknown method {method!r}; there are {sorted(METHODS)}.")
  parameters = inspect.signature(METHODS[method]).parameters
  return {name: parameter.default for name, parameter in parameters.items()}


def _scale(alpha, rank):
  return 1.0 if alpha is None else alpha / max(rank, 1)
