# SPDX-License-Identifier: Apache-2.0
"""The pure training step over the Trainable variables of a model.

A model here is anything with `FEATURES` (the batch's entries that it reads),
`hidden(**features)` and `logits(hidden)`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools

from flax import nnx
import jax
from jax.experimental import xla_metadata
import jax.numpy as jnp
import optax

from sira_jax import ambient, sharding
from sira_jax.adapters import adamix
from sira_jax.adapters.variables import (
  AdapterConstant,
  RoutingRecord,
  Trainable,
)
from sira_jax.training import losses

Batch = Mapping[str, jax.Array]
Metrics = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step changes, and the key that it draws from.

  Attributes:
    step: steps taken.
    trainable: the model's Trainable variables.
    constants: its AdapterConstants, which no step changes; they are here to be
      saved with what was trained beside them.
    optimizer: the optimizer's state, for the Trainable variables alone.
    key: of the run; each step folds its own number in.
  """

  step: jax.Array
  trainable: nnx.State
  constants: nnx.State
  optimizer: optax.OptState
  key: jax.Array


def init(
  model: nnx.Module, optimizer: optax.GradientTransformation, *, seed: int
) -> TrainState:
  """The state before the first step.

  Raises:
    ValueError: the model has nothing Trainable.
  """
  trainable = nnx.state(model, Trainable)
  if not jax.tree.leaves(trainable):
    raise ValueError(
      "The model has no Trainable variables: adapt it before training."
    )

  def build(trainable, constants):
    # Copied, because the step donates its state and the model keeps these.
    trainable, constants = jax.tree.map(jnp.copy, (trainable, constants))
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      trainable=trainable,
      constants=constants,
      optimizer=optimizer.init(trainable),
      key=jax.random.key(seed),
    )

  return sharding.born(build, trainable, nnx.state(model, AdapterConstant))


@dataclasses.dataclass(frozen=True)
class Program:
  """The jitted step of every model with one graph.

  Attributes:
    graph: what such models have in common, all but their numbers.
    step: (state, frozen, batch, skipped) -> (state, metrics), where `frozen`
      is as `frozen` gives it; the state is donated.
  """

  graph: nnx.GraphDef
  step: Callable[..., tuple[TrainState, Metrics]]


def make(
  model: nnx.Module,
  optimizer: optax.GradientTransformation,
  *,
  steps: int | None = None,
  microbatches: int = 1,
  made: Program | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The jitted step: (state, batch) -> (state, metrics); its state is donated.

  loss = cross-entropy per target token + mean over routed layers of their
  penalties (+ AdaMix's consistency); the gradient is taken of the Trainable
  variables alone, and the frozen ones are arguments of the program, not
  constants in it.

  Where the loss, the gradient or the update is no finite number, the step
  changes nothing but its own count, and the metric `skipped` is 1, else 0. So
  it is where a third argument, the `skipped` of the step before, is not 0:
  whoever waits for no step's metrics before sending off the next can still end
  at the first one that was left out.

  Args:
    model: adapted; put into training mode here.
    optimizer: of the Trainable variables.
    steps: of the whole run; for routers with a growing k.
    microbatches: the rows of a batch are taken in so many parts, one after
      another, and the activations of one part exist at a time. The gradient is
      that of the whole batch, but for penalties of routers, which are means
      over the parts, and for what dropout draws.
    made: by `program`, of the same settings; it is taken if it is of this
      model's graph, so that what it has compiled already is not again.
  """
  graph, rest = frozen(model)
  if made is None or made.graph != graph:
    made = program(model, optimizer, steps=steps, microbatches=microbatches)
  step = made.step
  return lambda state, batch, skipped=None: step(state, rest, batch, skipped)


def frozen(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State]:
  """A model's graph in training mode, and what no TrainState has of it."""
  model.train()
  graph, _, _, rest = nnx.split(model, Trainable, AdapterConstant, ...)
  return graph, rest


def program(
  model: nnx.Module,
  optimizer: optax.GradientTransformation,
  *,
  steps: int | None = None,
  microbatches: int = 1,
  places: TrainState | None = None,
) -> Program:
  """The program of `make`, for a model of numbers or of shapes alone.

  `places` are the shardings of the state, if it is compiled before there is a
  state: what a step gives is then where the next one has to find it.
  """
  graph, _ = frozen(model)

  kept = None if places is None else (places, None)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=kept)
  def step(state, frozen, batch, skipped):
    key = jax.random.fold_in(state.key, state.step)
    progress = None if steps is None else state.step / steps

    targets = batch["decoder_loss_weights"].astype(jnp.float32).sum()

    def loss(trainable, part, key):
      # copy: the capture below may write to this trace's variables alone.
      merged = nnx.merge(graph, trainable, state.constants, frozen, copy=True)
      with ambient.DROPOUT_KEY(key), ambient.PROGRESS(progress):
        return batch_loss(merged, part, targets=targets, parts=microbatches)

    slope = functools.partial(jax.grad(loss, has_aux=True), state.trainable)
    grads, metrics = _in_parts(slope, batch, key, microbatches)
    update = _apart(functools.partial(_updated, optimizer))
    taken, metrics["gradient_norm"], metrics["skipped"] = update(
      (state.trainable, state.optimizer), grads, metrics["loss"], skipped
    )
    trainable, optimizer_state = taken
    state = TrainState(
      step=state.step + 1,
      trainable=trainable,
      constants=state.constants,
      optimizer=optimizer_state,
      key=state.key,
    )
    return state, metrics

  return Program(graph, step)


def _updated(optimizer, before, grads, loss, skipped):
  """What is trained and the optimizer's state after a step, if it counts.

  Also the gradient's norm, and whether the step is left out.
  """
  variables, state = before
  updates, state = optimizer.update(grads, state, variables)
  norm = optax.global_norm(grads)
  takes = jnp.isfinite(loss + norm + optax.global_norm(updates))
  if skipped is not None:
    takes &= skipped == 0
  taken = jax.tree.map(
    lambda new, old: jnp.where(takes, new, old),
    (optax.apply_updates(variables, updates), state),
    before,
  )
  return taken, norm, (~takes).astype(jnp.float32)


def _apart(function):
  """Keeps a function a computation of its own in a CPU's program.

  XLA reads a compiled program in a time that grows with the square of the
  kernels of each computation, and an optimizer has several for each array.
  """
  if sharding.platform() != "cpu":
    return function

  def call(*args):
    *rest, last = jax.jit(function)(*args)
    # Which marks the call that made it.
    return *rest, xla_metadata.set_xla_metadata(last, inlineable="false")

  return call


def _in_parts(slope, batch, key, parts):
  """The sum of `slope(part, key)` over parts of the batch's rows."""
  if parts == 1:
    return slope(batch, key)

  def split(array):
    # Every parts-th row, so that a device's rows stay on it.
    array = array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
    return sharding.constrain(array, None, "batch", *[None] * (array.ndim - 2))

  def add(total, part):
    number, rows = part
    found = slope(rows, jax.random.fold_in(key, number))
    return jax.tree.map(jnp.add, total, found), None

  split_batch = jax.tree.map(split, batch)
  numbered = (jnp.arange(parts), split_batch)
  first = jax.tree.map(lambda x: x[0], split_batch)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(slope, first, key)
  )
  return jax.lax.scan(add, zeros, numbered)[0]


def batch_loss(
  model: nnx.Module,
  batch: Batch,
  *,
  targets: jax.Array | None = None,
  parts: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of one batch, and its metrics.

  The targets are `decoder_target_tokens`, or labels of a model with a head, or
  numbers, `decoder_target_values`, whose loss is the squared error.

  Metrics: loss (cross-entropy per target token, nats), accuracy (of the next
  target token; of numbers, absolute_error instead), targets (their number),
  tokens (real ones); where the model
  routes, balance_loss (mean over layers) and dropped_fraction (of the expert
  choices); where AdaMix trains, consistency (per target token).

  Of a part of a batch, loss and metrics are such that those of all parts add
  up to the batch's; the routers' then are means over the parts.

  Args:
    model: adapted.
    batch: what it reads, and the targets.
    targets: the number of targets of the whole batch; by default, of this one.
    parts: of the whole batch.
  """
  coefficient = _consistency(model)
  features = {name: batch[name] for name in model.FEATURES if name in batch}
  hidden, records = nnx.capture(
    lambda model: model.hidden(**features), RoutingRecord
  )(model)
  weights = batch["decoder_loss_weights"].astype(jnp.float32)
  everywhere = _trains_logits(model, hidden)
  second, total, other = _errors(model, hidden, batch, weights, everywhere)
  targets = jnp.maximum(weights.sum() if targets is None else targets, 1.0)
  metrics = {
    "loss": total / targets,
    second: other / targets,
    "targets": weights.sum(),
    "tokens": sum(
      (features[name] != 0).sum()
      for name in ("encoder_input_tokens", "decoder_target_tokens")
      if name in features
    ),
  }
  loss = metrics["loss"]
  stats = routing_stats(records)
  if stats:
    mean = lambda name: jnp.stack([getattr(s, name) for s in stats]).mean()  # noqa: E731
    loss = loss + mean("penalty") / parts
    metrics["balance_loss"] = mean("balance_loss") / parts
    chosen = sum(s.chosen.sum() for s in stats)
    dropped = sum(s.dropped.sum() for s in stats)
    metrics["dropped_fraction"] = dropped / jnp.maximum(chosen, 1.0) / parts
  if coefficient and second != "accuracy":
    raise ValueError(
      "AdaMix's consistency is of two distributions, and a number has none:"
      " give its rules consistency=0."
    )
  if coefficient:
    with ambient.DROPOUT_KEY(_other(ambient.DROPOUT_KEY.get())):
      again = model.hidden(**features)
    consistency = losses.consistency_at_targets
    if everywhere:
      consistency = losses.consistency
    total = consistency(model.logits, hidden, again, weights=weights)
    metrics["consistency"] = total / targets
    loss = loss + coefficient * metrics["consistency"]
  return loss, metrics


def _errors(model, hidden, batch, weights, everywhere):
  """The loss of all targets, and another sum of theirs, with its name."""
  given = {"weights": weights}
  if "decoder_target_values" in batch:
    given["targets"] = batch["decoder_target_values"]
    sums = losses.squared_error(model.logits, hidden, **given)
    return "absolute_error", *sums
  given["targets"] = batch["decoder_target_tokens"]
  entropy = losses.cross_entropy_at_targets
  if everywhere:
    entropy = losses.cross_entropy
  return "accuracy", *entropy(model.logits, hidden, **given)


def _consistency(model) -> float:
  """The weight of the loss between two random passes; 0 where it has none.

  Raises:
    ValueError: AdaMix adapters of the model disagree.
  """
  found = {
    module.factory.consistency
    for _, module in nnx.iter_modules(model)
    if isinstance(module, adamix.AdaMix) and not module.deterministic
  }
  if len(found) > 1:
    raise ValueError(
      "The consistency loss is one of the whole model, but its AdaMix adapters"
      f" weigh it {sorted(found)}: give all rules the same consistency."
    )
  return found.pop() if found else 0.0


def _other(key):
  """The key of a second pass; the first has the step's own."""
  return None if key is None else jax.random.fold_in(key, 1)


def _trains_logits(model, hidden) -> bool:
  """Whether the logits depend on anything Trainable but `hidden`."""
  graph, trainable, rest = nnx.split(model, Trainable, ...)
  shapes = jax.eval_shape(lambda: (trainable, hidden[:1, :1]))
  jaxpr = jax.make_jaxpr(
    lambda trainable, hidden: nnx.merge(graph, trainable, rest).logits(hidden)
  )(*shapes).jaxpr
  read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
  count = len(jax.tree.leaves(trainable))
  return any(id(v) in read for v in jaxpr.invars[:count])


def routing_stats(records: nnx.State) -> list:
  """The `RoutingStats` of each routed layer that one capture recorded."""
  values = jax.tree.leaves(
    records, is_leaf=lambda leaf: isinstance(leaf, RoutingRecord)
  )
  return [stats for record in values for stats in record.get_value()]
