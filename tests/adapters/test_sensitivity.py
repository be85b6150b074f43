"""The probe against `jax.grad` of the weights."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax.adapters import methods, sensitivity, surgery
from sira_jax.training import probing
from tests import tiny

PROJECTIONS = r"layers\.\d+\..*_proj"


class Mixed(nnx.Module):
  """Layers with and without bias, on three axes and on two."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.first = nnx.Linear(6, 5, rngs=rngs)
    self.second = nnx.Linear(5, 7, use_bias=False, rngs=rngs)
    self.unused = nnx.Linear(6, 6, rngs=rngs)
    self.last = nnx.Linear(7, 3, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    x = self.second(jnp.tanh(self.first(x)))
    return self.last(self.dropout(jnp.tanh(x.mean(axis=1))))


def mixed_loss(model, batch):
  return jnp.square(model(batch["x"]) - batch["y"]).sum()


def mixed_batch(seed=0, rows=4):
  rng = np.random.default_rng(seed)
  return {
    "x": rng.normal(size=(rows, 8, 6)).astype(np.float32),
    "y": rng.normal(size=(rows, 3)).astype(np.float32),
  }


def is_kernel(path, _):
  # Not of a last layer: `per_example_loss` has no gradient there.
  return path[-1] == "kernel" and path[0] != "lm_head"


def expected(model, loss, batches, *, per_sample):
  """path -> the sum of squares of what jax.grad finds."""
  graph, kernels, rest = nnx.split(model, is_kernel, ...)

  @jax.jit
  def gradients(batch):
    return jax.grad(
      lambda kernels: loss(nnx.merge(graph, kernels, rest, copy=True), batch)
    )(kernels)

  totals = {}
  for batch in batches:
    rows = range(len(next(iter(batch.values()))))
    for row in rows if per_sample else [slice(None)]:
      part = {k: v[row, None] if per_sample else v for k, v in batch.items()}
      for path, gradient in nnx.to_flat_state(gradients(part)):
        site = ".".join(map(str, path[:-1]))
        square = np.square(np.asarray(gradient[...], np.float64)).sum()
        totals[site] = totals.get(site, 0.0) + square
  return totals


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize(
  "settings", [dict(tied=True, remat=False), dict(tied=False, remat=True)]
)
def test_decoder(settings, per_sample):
  batches = [tiny.batch(0), tiny.batch(1)]
  model = tiny.base(**settings)
  wanted = expected(
    model, probing.per_example_loss, batches, per_sample=per_sample
  )
  found = sensitivity.sensitivity(
    model,
    probing.per_example_loss,
    batches,
    sites=PROJECTIONS,
    per_sample=per_sample,
  )
  assert len(found) == 2 * 7 and set(found) == set(wanted)
  for site, score in found.items():
    assert score == pytest.approx(wanted[site], rel=1e-5), site


@pytest.mark.parametrize("per_sample", [True, False])
def test_bias_and_axes(per_sample):
  model, batches = Mixed(), [mixed_batch(0), mixed_batch(1, rows=2)]
  found = sensitivity.sensitivity(
    model, mixed_loss, batches, sites="first|second|last", per_sample=per_sample
  )
  model.eval()
  wanted = expected(model, mixed_loss, batches, per_sample=per_sample)
  assert set(found) == set(wanted) - {"unused"}
  for site, score in found.items():
    assert score == pytest.approx(wanted[site], rel=1e-5), site


def test_forms_differ():
  """Else the tests above would not tell them apart."""
  both = [
    sensitivity.sensitivity(
      Mixed(), mixed_loss, [mixed_batch()], sites="last", per_sample=per_sample
    )["last"]
    for per_sample in (True, False)
  ]
  assert abs(both[0] / both[1] - 1) > 0.1


def test_bfloat16():
  """Scores of a bfloat16 model are sums in float32, close to the gradients."""
  model = tiny.base(dtype=jnp.bfloat16)
  batches = [tiny.batch()]
  wanted = expected(model, probing.per_example_loss, batches, per_sample=True)
  found = sensitivity.sensitivity(
    model, probing.per_example_loss, batches, sites=PROJECTIONS
  )
  for site, score in found.items():
    # jax.grad rounds each gradient to bfloat16.
    assert score == pytest.approx(wanted[site], rel=1e-2), site
    assert score != float(jnp.bfloat16(score))


def test_small_half_precision_gradients():
  """Their squares are zero in float16: 1e-4 squared is 1e-8."""
  model = nnx.Linear(
    2, 2, use_bias=False, param_dtype=jnp.float16, rngs=nnx.Rngs(0)
  )
  x = jnp.full((1, 1, 2), 1e-4, jnp.float16)
  found = sensitivity.sensitivity(
    nnx.Sequential(model), lambda model, x: model(x).sum(), [x], sites=".*"
  )
  assert list(found.values()) == pytest.approx([4e-8], rel=1e-2)


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_alone(fails):
  def loss(model, batch):
    value = mixed_loss(model, batch)
    if fails:
      raise RuntimeError("in the loss")
    return value

  model = Mixed()
  before = nnx.split(model, nnx.Param, ...)
  attributes = {path: set(vars(m)) for path, m in nnx.iter_modules(model)}
  try:
    sensitivity.sensitivity(model, loss, [mixed_batch()], sites="first|last")
  except RuntimeError:
    assert fails
  assert type(model.first) is type(model.last) is nnx.Linear
  assert not model.dropout.deterministic
  assert attributes == {p: set(vars(m)) for p, m in nnx.iter_modules(model)}
  after = nnx.split(model, nnx.Param, ...)
  assert before[0] == after[0]
  jax.tree.map(np.testing.assert_array_equal, before[1], after[1])


def test_compiles_once():
  traces = []

  def loss(model, batch):
    traces.append(None)
    return mixed_loss(model, batch)

  model = Mixed()
  measure = functools.partial(
    sensitivity.sensitivity, model, loss, sites="first|last"
  )
  with jax.transfer_guard("disallow"):
    first = measure([mixed_batch(0), mixed_batch(1)])
  # Another task, and other weights.
  model.last.kernel[...] = 2 * model.last.kernel[...]
  second = measure([mixed_batch(0), mixed_batch(1)])
  assert len(traces) == 1
  assert second["first"] > 1.5 * first["first"]


def test_memory():
  """No two of the weights' gradients exist together."""
  width, layers = 256, 8
  model = nnx.Sequential(
    *[nnx.Linear(width, width, rngs=nnx.Rngs(i)) for i in range(layers)]
  )
  loss = lambda model, x: jnp.square(model(x)).sum()  # noqa: E731
  x = jnp.ones((4, 8, width))
  graph, state = nnx.split(model)
  graph_rest, kernels, rest = nnx.split(model, is_kernel, ...)

  def gradients(kernels, rest, x):
    return jax.grad(lambda k: loss(nnx.merge(graph_rest, k, rest), x))(kernels)

  def memory(lowered):
    stats = lowered.compile().memory_analysis()
    return stats.temp_size_in_bytes + stats.output_size_in_bytes

  one = 4 * width * width
  whole = memory(jax.jit(gradients).lower(kernels, rest, x))
  assert whole >= layers * one
  probes = {f"layers.{i}": jnp.zeros(2) for i in range(layers)}
  for per_sample in (True, False):
    probed = memory(
      sensitivity._measure.lower(
        probes, state, x, graph=graph, loss=loss, per_sample=per_sample
      )
    )
    # The rest is of inputs and their cotangents, 32 KiB each.
    assert one < probed < 3 * one


def run(model=None, loss=mixed_loss, batch=None, *, sites):
  return sensitivity.sensitivity(
    model or Mixed(), loss, [batch or mixed_batch()], sites=sites
  )


def test_pattern_that_matches_nothing():
  with pytest.raises(ValueError, match=r"'fist' matches no layer.*4 .*'first'"):
    run(sites="fist")
  with pytest.raises(ValueError, match=r"is no regex"):
    run(sites="(")


def test_adapted_model():
  model = Mixed()
  surgery.adapt(
    model, [surgery.Rule("last", methods.lora(rank=1))], rngs=nnx.Rngs(0)
  )
  with pytest.raises(
    ValueError, match=r"'last', of type Adapted.*before adapt"
  ):
    run(model, sites=".*")
  assert set(run(model, sites="first")) == {"first"}


class Tied(nnx.Module):
  """One layer of two names, which runs once, or by both."""

  def __init__(self):
    self.one = self.two = nnx.Linear(6, 6, rngs=nnx.Rngs(0))


def test_layer_of_two_names():
  once = lambda model, batch: jnp.square(model.two(batch["x"])).sum()  # noqa: E731
  both = run(Tied(), once, sites="one|two")
  assert set(both) == {"one"}
  assert run(Tied(), once, sites="two") == {"two": both["one"]}

  def twice(model, batch):
    return once(model, batch) + model.one(batch["x"]).sum()

  with pytest.raises(ValueError, match=r"'one' once.* came 2 times"):
    run(Tied(), twice, sites="one")


def test_layers_that_run_twice_or_never():
  with pytest.raises(ValueError, match=r"'unused' once.* came 0 times"):
    run(sites=".*")

  def twice(model, batch):
    return mixed_loss(model, batch) + mixed_loss(model, batch)

  with pytest.raises(ValueError, match=r"'first' once.* came 2 times"):
    run(loss=twice, sites="first")

  def row_by_row(model, batch):
    return jax.vmap(lambda x: model.last(model.second(model.first(x))))(
      batch["x"]
    ).sum()

  with pytest.raises(ValueError, match=r"first axis is the batch.* 4 times"):
    run(loss=row_by_row, sites="first")


def test_no_batch():
  with pytest.raises(ValueError, match=r"at least one batch"):
    sensitivity.sensitivity(Mixed(), mixed_loss, [], sites="first")


def test_infinite_gradient():
  batch = mixed_batch()
  batch["y"][0, 0] = np.inf
  with pytest.raises(ValueError, match=r"'first' is (nan|inf).*not finite"):
    run(batch=batch, sites="first")
