# SPDX-License-Identifier: Apache-2.0
"""Our whole training steps on random weights, compiled."""

from collections.abc import Callable, Mapping, Sequence

from flax import nnx
import jax

from benchmarks import step_models
from sira_jax import meshes
from sira_jax import plan as plans
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import AdapterConstant, Trainable
from sira_jax.training import optimizers, proximal
from sira_jax.training import step as training


class Step:
  """A compiled step, with what it is called with."""

  def __init__(self, compiled: jax.stages.Compiled, state, *arguments):
    self.compiled = compiled
    self._state, self._arguments = state, arguments

  def __call__(self, times: int = 1) -> float:
    """The loss after so many steps, each sent off before the last one ends."""
    for _ in range(times):
      if self._state is None:
        loss = self.compiled(*self._arguments)
      else:
        self._state, metrics = self.compiled(self._state, *self._arguments)
        loss = metrics["loss"]
    return float(loss)

  @property
  def arguments(self) -> int:
    """Bytes of weights, state and batch."""
    return self.compiled.memory_analysis().argument_size_in_bytes

  @property
  def temporary(self) -> int:
    """XLA's bytes of temporaries."""
    return self.compiled.memory_analysis().temp_size_in_bytes


def forward(model: nnx.Module, given: Mapping[str, jax.Array]) -> Step:
  """The loss of the base, and nothing else."""
  graph, variables = nnx.split(model)

  def loss(variables, given):
    return training.batch_loss(nnx.merge(graph, variables), given)[0]

  compiled = jax.jit(loss).lower(variables, given).compile()
  return Step(compiled, None, variables, given)


def adapted(model: nnx.Module, pattern: str, settings: Mapping) -> nnx.Module:
  """A model of the same arrays, with adapters beside."""
  model = nnx.merge(*nnx.split(model))
  rule = surgery.Rule(pattern, methods.create(**settings))
  surgery.adapt(model, [rule], rngs=nnx.Rngs(1))
  return model


def optimizer(settings: Mapping):
  """AdamW as a run has it; its rate is too small to matter."""
  gates = proximal.Gates(penalty=0.01) if settings["method"] == "sora" else None
  return optimizers.adamw(steps=10_000, learning_rate=1e-5, gates=gates)[0]


def train(
  model: nnx.Module,
  given: Mapping[str, jax.Array],
  *,
  pattern: str,
  settings: Mapping,
) -> Step:
  """The step that `training.step` makes, compiled."""
  model, rule = adapted(model, pattern, settings), optimizer(settings)
  state = training.init(model, rule, seed=0)
  graph, _, _, frozen = nnx.split(model, Trainable, AdapterConstant, ...)

  def step(state, frozen, given):
    model = nnx.merge(graph, state.trainable, state.constants, frozen)
    return training.make(model, rule)(state, given)

  lowered = jax.jit(step, donate_argnums=0).lower(state, frozen, given)
  return Step(lowered.compile(), state, frozen, given)


def frozen(
  model: nnx.Module, given: Mapping[str, jax.Array], *, pattern: str
) -> Step:
  """A step that runs all of the base and trains one rank of what is matched.

  `pattern` is a setting's `PROBE`: the first block's queries are adapted, so
  that gradients come down to it through all of the base, as they do where
  every layer is adapted.
  """
  settings = dict(method="lora", rank=1)
  return train(model, given, pattern=pattern, settings=settings)


def planned(setting: step_models.Setting, settings: Mapping) -> plans.Plan:
  """What `sira_jax.plan` says of the same step on one device."""
  shapes = nnx.eval_shape(
    lambda: adapted(step_models.base(setting), setting.pattern, settings)
  )
  return plans.plan(
    shapes,
    optimizer(settings),
    batch=step_models.batch(setting),
    mesh=meshes.mesh(devices=jax.devices()[:1]),
  )


def matmul(dtype: str, side: int, times: int) -> tuple[Callable, int]:
  """A chain of products of square matrices, and its FLOPs.

  The most that products of this dtype reach here, by the same library.
  """
  key = jax.random.key(0)
  a = (jax.random.normal(key, (side, side)) / side**0.5).astype(dtype)

  def chain(a):
    return jax.lax.fori_loop(0, times, lambda _, x: x @ a, a)

  compiled = jax.jit(chain).lower(a).compile()

  def run(times: int = 1) -> None:
    for _ in range(times):
      last = compiled(a)
    last.block_until_ready()

  return run, 2 * side**3 * times


def ours(experts: int, total: int, names: Sequence[str]) -> dict[str, dict]:
  """Name -> settings of the methods compared, all of one total rank."""
  rank = total // experts
  sira = dict(method="sira", experts=experts, rank=rank, k=min(4, experts))
  known = {
    "lora": dict(method="lora", rank=total),
    "sira": sira,
    "molora": dict(method="molora", experts=experts, rank=rank),
    "sora": dict(method="sora", rank=total),
    "dispatch": {**sira, "execution": "dispatch"},
    "gather": {**sira, "execution": "gather"},
  }
  return {name: known[name] for name in names if name in known}
