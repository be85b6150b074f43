# SPDX-License-Identifier: Apache-2.0
"""The methods: functions from a paper's hyper-parameters to an adapter.

Every method is a setting of one formula; see `adapter`, and `adamix` and
`rescaling` for the two that are not. What a docstring does not source is ours.
"""

from collections.abc import Mapping
import inspect
from typing import Any

from sira_jax.adapters import routers
from sira_jax.adapters.adamix import AdaMixFactory
from sira_jax.adapters.adapter import AdapterFactory, Gate
from sira_jax.adapters.rescaling import RescalingFactory
from sira_jax.adapters.surgery import Factory
from sira_jax.adapters.tuning import FullFactory


def lora(
  *, rank: int = 8, alpha: float | None = None, rank_stabilised: bool = False
) -> AdapterFactory:
  """LoRA: y = x W0 + (alpha / rank) x A B.

  Source: Hu et al. 2021, eq. 3; init as in the authors' code. rsLoRA:
  Kalajdzievski 2023.

  Args:
    rank: of A and B.
    alpha: the scale's numerator; None for `rank`, that is a scale of 1.
    rank_stabilised: divide by the root of the rank (rsLoRA).
  """
  scale = _scale(alpha, rank)
  if rank_stabilised:
    scale *= rank**0.5
  return AdapterFactory("lora", rank, scale)


def sora(
  *,
  rank: int = 8,
  alpha: float | None = None,
  gate: float = 1.0,
  gate_std: float = 0.0,
) -> AdapterFactory:
  """SoRA: y = x W0 + s (x A * g) B, with an L1 penalty on g.

  g is trained by proximal steps (`training.proximal`, the config's group
  `sparsity`), which set it to exactly zero where a rank is not worth its
  penalty; `pruning.prune` removes such ranks.

  Source: Ding et al. 2023 (SoRA, arXiv 2311.11696). s = alpha / rank of the
  largest rank, kept while ranks die, as in the released code.

  Args:
    rank: the largest, of A and B.
    alpha: the scale's numerator; None for `rank`, that is a scale of 1; the
      released code has 16.
    gate: mean of the gates' start; the released code has 0.
    gate_std: deviation of the gates' start; the released code has 1.
  """
  start = Gate(gate, gate_std)
  return AdapterFactory("sora", rank, _scale(alpha, rank), gate=start)


def molora(
  *,
  experts: int = 10,
  rank: int = 4,
  alpha: float | None = 16.0,
  activation: str = "identity",
) -> AdapterFactory:
  """MoLoRA: y = x W0 + s * sum over all experts of p_e (x A_e) B_e.

  p = softmax(x W_r): dense, not limited, and no balance loss.

  Source: Zadouri et al. 2023 (arXiv 2309.05444); the defaults are those of the
  released configuration for T5-large.

  Args:
    experts: LoRA experts at each adapted layer.
    rank: of each expert.
    alpha: s = alpha / rank; None for `rank`.
    activation: of x A; see `execution.ACTIVATIONS`.
  """
  return AdapterFactory(
    "molora",
    rank,
    _scale(alpha, rank),
    experts,
    routers.TopK(k=experts),
    activation=activation,
  )


def sira(
  *,
  experts: int = 16,
  rank: int = 4,
  k: int = 4,
  alpha: float | None = None,
  compensate: bool = True,
  renormalise: bool = False,
  level: str = "token",
  capacity_factor: float | None = None,
  capacity: int | None = None,
  priority: str = "choice",
  expert_dropout: float = 0.1,
  balance_coefficient: float = 1e-2,
  balance_served: bool = False,
  z_coefficient: float = 0.0,
  shared_router: bool = False,
  gate: float | None = None,
  gate_std: float = 0.0,
  activation: str = "identity",
  execution: str = "rank_space",
) -> AdapterFactory:
  """SiRA: a sparse mixture of LoRA experts with a capacity limit.

  y = x W0 + s * sum over the token's k experts of q_e (x A_e) B_e; see
  `routers.TopK` for q and the limit.

  Source: Zhu et al. 2023 (arXiv 2311.09179). Ours are the defaults of

  * `expert_dropout`, because short training suffers from much of it;
  * `compensate`: weights that are not renormalised are about 1 / experts each,
    and the plain scale learns slowly;
  * `balance_coefficient`, of which the paper's value is not known to us;
  * `capacity_factor`: no limit. A limit per example lets a token see the
    future: places follow from the example's length, answer included, and
    second choices wait for the first choices of later tokens. A decoder-only
    model learns its answer's end from it and decodes without. There, take an
    absolute `capacity` with priority "position", which is causal; encoders
    may take any.

  Args:
    experts: LoRA experts at each adapted layer.
    rank: of each expert.
    k: experts a token is sent to.
    alpha: s = alpha / rank; None for `rank`.
    compensate: multiply s by `experts`, unless the weights are renormalised;
      False is the paper's plain form.
    renormalise: see `routers.TopK`, as all that follow but:
    shared_router: one router for all layers of a block that read the same
      input.
    gate: SoRA's gates inside the experts start here; None for no gates.
    gate_std: and this far around it.
    activation: of x A; see `execution.ACTIVATIONS`.
    execution: "rank_space", "dispatch", "gather" or "auto"; see `execution`.
  """
  router = routers.TopK(
    k=k,
    renormalise=renormalise,
    level=level,
    capacity_factor=capacity_factor,
    capacity=capacity,
    priority=priority,
    expert_dropout=expert_dropout,
    balance_coefficient=balance_coefficient,
    balance_served=balance_served,
    z_coefficient=z_coefficient,
    shared=shared_router,
  )
  factor = experts if compensate and not renormalise else 1
  return AdapterFactory(
    "sira",
    rank,
    _scale(alpha, rank) * factor,
    experts,
    router,
    gate=None if gate is None else Gate(gate, gate_std),
    activation=activation,
    execution=execution,
  )


def smoe_dropout(
  *,
  experts: int = 16,
  rank: int = 4,
  first_k: int = 8,
  k: int = 16,
  alpha: float | None = None,
  activation: str = "identity",
) -> AdapterFactory:
  """SMoE-Dropout over LoRA experts: a frozen random router, and k that grows.

  The weights are a softmax over the logits of the chosen experts. k grows
  linearly over the training from `first_k`; evaluation takes `k`.

  Source: Chen et al. 2023 (arXiv 2303.01610), who split an MLP into experts;
  16 experts with k from 8 to 16 are of their released Transformer-XL script.
  Its router's bias starts at zero and is frozen too, so there is none here.

  Args:
    experts: LoRA experts at each adapted layer.
    rank: of each expert.
    first_k: experts a token is sent to at the first step.
    k: and at the last.
    alpha: s = alpha / rank; None for `rank`.
    activation: of x A; see `execution.ACTIVATIONS`.
  """
  router = routers.TopK(k=k, first_k=first_k, renormalise=True, trained=False)
  return AdapterFactory(
    "smoe_dropout",
    rank,
    _scale(alpha, rank),
    experts,
    router,
    activation=activation,
  )


def adamix(
  *,
  experts: int = 8,
  rank: int = 4,
  alpha: float | None = 32.0,
  shared_b: bool = True,
  consistency: float = 1.0,
) -> AdaMixFactory:
  """AdaMix over LoRA: one random expert a step; their average afterwards.

  Source: Wang et al. 2022 (arXiv 2205.12410); see `adamix`. The defaults are
  those of the released GPT-2 script, but for the weight of its consistency
  loss, which is 1 in the released RoBERTa code and 100 in the GPT-2 one.

  Args:
    experts: of A, and of B unless it is shared.
    rank: of each.
    alpha: s = alpha / rank; None for `rank`.
    shared_b: one B for all experts.
    consistency: weight of the loss between two random passes; 0 makes one pass.
  """
  scale = _scale(alpha, rank)
  return AdaMixFactory("adamix", experts, rank, scale, shared_b, consistency)


def lora_smoe(
  *,
  experts: int = 8,
  rank: int = 8,
  k: int = 2,
  alpha: float | None = 16.0,
  balance_coefficient: float = 0.0,
  execution: str = "rank_space",
) -> AdapterFactory:
  """LoRA-SMoE: a top-k mixture whose number of experts differs by layer.

  `allocation` decides on the numbers, from the sensitivity of the frozen
  weights. The weights of a token's experts are renormalised to sum to 1.

  Source: Xu et al. 2025 (arXiv 2505.06272) and its released code, which lacks
  the mixture's layer: router and k are those of MoLA (Gao et al. 2024), its
  nearest relative; rank and alpha are defaults of the released fine-tuning
  script.

  Args:
    experts: LoRA experts at an adapted layer.
    rank: of each expert.
    k: experts a token is sent to; all, where there are fewer.
    alpha: s = alpha / rank; None for `rank`.
    balance_coefficient: weight of the balance loss.
    execution: "rank_space", "dispatch", "gather" or "auto"; see `execution`.
  """
  router = routers.TopK(
    k=min(k, experts) if experts > 0 else k,
    renormalise=True,
    balance_coefficient=balance_coefficient,
  )
  return AdapterFactory(
    "lora_smoe",
    rank,
    _scale(alpha, rank),
    experts,
    router,
    execution=execution,
  )


def bottleneck(
  *, rank: int = 8, alpha: float | None = None, activation: str = "relu"
) -> AdapterFactory:
  """A parallel bottleneck adapter: y = x W0 + s * act(x A) B.

  Source: He et al. 2022 (arXiv 2110.04366), without biases. `sira`, `molora`
  and `smoe_dropout` take an `activation` for mixtures of them.

  Args:
    rank: width of the bottleneck.
    alpha: s = alpha / rank; None for `rank`, that is a scale of 1.
    activation: see `execution.ACTIVATIONS`.
  """
  return AdapterFactory(
    "bottleneck", rank, _scale(alpha, rank), activation=activation
  )


def mov(*, experts: int = 10) -> RescalingFactory:
  """MoV: y = x W0 * (1 + sum_e p_e delta_e), p = softmax(x W_r).

  One expert has no router and is (IA)3.

  Source: Zadouri et al. 2023 (arXiv 2309.05444), on keys, values and the MLP's
  activated factor; see `rescaling`.

  Args:
    experts: vectors at each adapted layer.
  """
  router = routers.TopK(k=experts) if experts > 1 else None
  return RescalingFactory("mov", experts, router)


def full() -> FullFactory:
  """Full fine-tuning: the parameters of the matched modules are trained."""
  return FullFactory("full")


METHODS = {
  "lora": lora,
  "sora": sora,
  "molora": molora,
  "sira": sira,
  "smoe_dropout": smoe_dropout,
  "adamix": adamix,
  "lora_smoe": lora_smoe,
  "bottleneck": bottleneck,
  "mov": mov,
  "full": full,
}


def create(method: str, **settings: Any) -> Factory | FullFactory:
  """The adapter factory of a method named in `METHODS`.

  Raises:
    ValueError: no such method, or a setting that it does not have.
  """
  known = defaults(method)
  unknown = sorted(set(settings) - set(known))
  if unknown:
    raise ValueError(
      f"{method} has no setting {', '.join(unknown)}; it has"
      f" {', '.join(known) or 'none'}."
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
