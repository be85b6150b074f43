# SPDX-License-Identifier: Apache-2.0
"""Our whole training steps on random weights, compiled, and their FLOPs."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sira_jax import meshes
from sira_jax import plan as plans
from sira_jax.adapters import methods, surgery
from sira_jax.adapters.variables import AdapterConstant, Trainable
from sira_jax.models import decoder
from sira_jax.training import optimizers, proximal
from sira_jax.training import step as training

SMOLLM2_135M = decoder.DecoderConfig(
  vocabulary_size=49_152,
  layers=30,
  d_model=576,
  heads=9,
  kv_heads=3,
  head_dim=64,
  d_ff=1536,
  rope_theta=10_000.0,
  norm_epsilon=1e-5,
  tied_embeddings=True,
  max_length=8192,
)
LLAMA_1B = decoder.DecoderConfig(
  vocabulary_size=128_256,
  layers=16,
  d_model=2048,
  heads=32,
  kv_heads=8,
  head_dim=64,
  d_ff=8192,
  rope_theta=500_000.0,
  norm_epsilon=1e-5,
  tied_embeddings=True,
  max_length=131_072,
)
TINY = dataclasses.replace(
  SMOLLM2_135M,
  vocabulary_size=128,
  layers=2,
  d_model=32,
  heads=4,
  kv_heads=2,
  head_dim=8,
  d_ff=64,
)
CONFIGS = {"135m": SMOLLM2_135M, "1b": LLAMA_1B, "tiny": TINY}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# In the order in which a block runs them; those of one stage read one input.
STAGES = (
  ATTENTION[:3],
  ATTENTION[3:],
  ("gate_proj", "up_proj"),
  ("down_proj",),
)
# What "frozen" trains: all of the base runs, forward and backward.
_PROBE = r"layers\.0\.self_attn\.q_proj"


@dataclasses.dataclass(frozen=True)
class Setting:
  """A model and a batch.

  Attributes:
    model: a name in `CONFIGS`.
    layers: instead of the model's own number; None keeps that.
    rows: of the batch.
    length: tokens of a row.
    share: of the positions, that have a target.
    dtype: of the base and of the computation.
    modules: which projections are adapted.
    scan: see `decoder.Decoder`.
  """

  model: str
  rows: int
  length: int
  layers: int | None = None
  share: float = 1.0
  dtype: str = "float32"
  modules: tuple[str, ...] = ATTENTION
  scan: bool = False

  @property
  def config(self) -> decoder.DecoderConfig:
    """The model's sizes."""
    config = CONFIGS[self.model]
    if self.layers is not None:
      config = dataclasses.replace(config, layers=self.layers)
    return config

  @property
  def tokens(self) -> int:
    """Of the batch."""
    return self.rows * self.length

  @property
  def pattern(self) -> str:
    """A rule's path."""
    return rf".*\.({'|'.join(self.modules)})"

  def __str__(self):
    return (
      f"{self.model}, {self.config.layers} layers, {self.rows} x {self.length},"
      f" {self.share:.0%} targets, {self.dtype}"
    )


def batch(setting: Setting) -> dict[str, np.ndarray]:
  """Random tokens; each row's targets are its last ones, as an answer's are."""
  rng = np.random.default_rng(0)
  shape = (setting.rows, setting.length)
  size = setting.config.vocabulary_size
  first = setting.length - max(1, round(setting.share * setting.length))
  weights = np.broadcast_to(np.arange(setting.length) >= first, shape)
  return {
    "decoder_input_tokens": rng.integers(1, size, shape, dtype=np.int32),
    "decoder_target_tokens": rng.integers(1, size, shape, dtype=np.int32),
    "decoder_loss_weights": weights.astype(np.float32),
  }


def base(setting: Setting) -> nnx.Module:
  """The model with random weights; programs share its arrays."""
  return decoder.Decoder(
    setting.config,
    rngs=nnx.Rngs(0),
    dtype=jnp.dtype(setting.dtype),
    scan=setting.scan,
  )


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


def frozen(model: nnx.Module, given: Mapping[str, jax.Array]) -> Step:
  """A step that runs all of the base and trains one rank of one layer.

  The first block's queries are adapted, so that gradients come down to it
  through all of the base, as they do where every layer is adapted.
  """
  settings = dict(method="lora", rank=1)
  return train(model, given, pattern=_PROBE, settings=settings)


def planned(setting: Setting, settings: Mapping) -> plans.Plan:
  """What `sira_jax.plan` says of the same step on one device."""
  shapes = nnx.eval_shape(
    lambda: adapted(base(setting), setting.pattern, settings)
  )
  return plans.plan(
    shapes,
    optimizer(settings),
    batch=plans.batch(setting.rows, setting.length),
    mesh=meshes.mesh(devices=jax.devices()[:1]),
  )


def step_flops(setting: Setting) -> dict[str, int]:
  """FLOPs of the base in a step, products alone, each 2 m n k.

  `matmuls`: every weight forward, and backward in its input, once for each
  token; no frozen weight has a gradient. Backward leaves out the first block's
  weights that no adapter is before. The last layer counts where there are
  targets. `attention`: scores and mixing, forward and twice that backward, of
  pairs that see each other alone; a kernel that computes scores again has no
  credit for it.
  """
  config = setting.config
  d, f = config.d_model, config.d_ff
  q, kv = (n * config.head_dim for n in (config.heads, config.kv_heads))
  sizes = {"q_proj": d * q, "k_proj": d * kv, "v_proj": d * kv, "o_proj": q * d}
  sizes |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), d * f)
  first = next(i for i, s in enumerate(STAGES) if set(s) & set(setting.modules))
  spared = sum(sizes[name] for s in STAGES[: first + 1] for name in s)
  blocks = config.layers * sum(sizes.values())
  targets = setting.share * setting.tokens
  pairs = setting.rows * setting.length * (setting.length + 1) // 2
  return {
    "matmuls": 2 * setting.tokens * (2 * blocks - spared)
    + round(4 * targets * d * config.vocabulary_size),
    "attention": 3 * 4 * config.layers * q * pairs,
  }


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
