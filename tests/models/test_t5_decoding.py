# SPDX-License-Identifier: Apache-2.0
"""T5's cached decoding against its full forward, token by token."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import decoding
from sira_jax.adapters.variables import RoutingRecord
from tests import tiny, tiny_t5
from tests.tiny_t5 import error, golden, tokens_of

NO_TOKEN = -1
LENGTHS = (3, 18, 1, 7, 16)


@pytest.fixture(scope="module", params=["tiny_t5_relu", "tiny_umt5"])
def model(request):
  return golden(request.param)[0]


@nnx.jit
def forward(model, inputs, outputs):
  return model(inputs, outputs)


@nnx.jit(static_argnames="room")
def start(model, prompts, lengths, *, room):
  return model.start(prompts, lengths, room=room)


@nnx.jit
def extend(model, tokens, positions, cache):
  return model.extend(tokens, positions, cache)


def prompts_of(*lengths: int) -> list[list[int]]:
  return [tokens_of(n, seed=n).tolist() for n in lengths]


def test_extend_equals_the_full_forward(model):
  lengths, total = np.array([3, 6, 1]), 15
  inputs, targets = tokens_of(3, 6), tokens_of(3, total, seed=1)
  real = np.arange(6) < lengths[:, None]
  expected = nnx.jit(lambda m, *tokens: m.hidden(*tokens))(
    model, np.where(real, inputs, 0), tiny_t5.shifted(targets)
  )
  # 63 is in the padding only: were it seen, the numbers would differ.
  hidden, at, cache = start(
    model, np.where(real, inputs, 63), lengths, room=total
  )
  assert error(hidden, expected[:, :1]) < 1e-5
  assert at.tolist() == [1, 1, 1]
  # Several tokens at once, then one by one, beyond the last bucket.
  steps = [slice(0, 4), *(slice(i, i + 1) for i in range(4, total - 1))]
  for step in steps:
    tokens = targets[:, step]
    positions = at[:, None] + np.arange(total)[None, step]
    hidden, cache = extend(model, tokens, positions, cache)
    wanted = expected[:, step.start + 1 : step.stop + 1]
    assert error(hidden, wanted) < 1e-5


def by_full_forward(model, prompt, count, eos_id) -> list[int]:
  """The definition: no cache, no batch."""
  inputs = np.zeros((1, 18), np.int32)
  inputs[0, : len(prompt)] = prompt
  ids = [0]
  for _ in range(count):
    # One shape, so that it compiles once; what follows is not seen.
    outputs = np.zeros((1, 10), np.int32)
    outputs[0, : len(ids)] = ids
    best = int(jnp.argmax(forward(model, inputs, outputs)[0, len(ids) - 1]))
    if best == eos_id:
      break
    ids.append(best)
  return ids[1:]


def test_greedy_equals_the_full_forward(model):
  prompts = prompts_of(*LENGTHS)
  expected = [by_full_forward(model, p, 9, NO_TOKEN) for p in prompts]
  assert len({tuple(ids) for ids in expected}) == len(prompts)

  def decode(**options):
    return decoding.greedy(model, prompts, max_new_tokens=9, **options)

  with jax.transfer_guard("disallow"):
    assert decode(eos_id=NO_TOKEN) == expected
  programs = decoding._decode._cache_size()
  assert decode(eos_id=NO_TOKEN, pad_id=5) == expected
  eos_id = expected[0][4]
  assert decode(eos_id=eos_id) == [
    by_full_forward(model, p, 9, eos_id) for p in prompts
  ]
  assert decoding._decode._cache_size() == programs
  # More prompts than rows, and rows left over.
  assert decode(eos_id=NO_TOKEN, batch_size=3) == expected


def test_no_prompt_is_too_long(model):
  (prompt,) = prompts_of(700)
  (ids,) = decoding.greedy(model, [prompt], max_new_tokens=1, eos_id=NO_TOKEN)
  assert len(ids) == 1
  with pytest.raises(ValueError, match="got 0 in prompt 0"):
    decoding.greedy(model, [[]], max_new_tokens=1, eos_id=NO_TOKEN)


def test_routed_layers_decode_as_they_train():
  """Experts at sites that read either side, whose routes are the same."""
  model = tiny_t5.base()
  tiny_t5.adapt(model, "sira", experts=4, k=2, rank=2)
  tiny.randomize(model)
  model.eval()
  lengths = np.array([5, 2])
  prompts = np.where(np.arange(5) < lengths[:, None], tokens_of(2, 5), 0)
  targets = tokens_of(2, 4, seed=1)

  def full(model):
    run = lambda model: model.hidden(prompts, tiny_t5.shifted(targets))  # noqa: E731
    return nnx.capture(run, RoutingRecord)(model)

  expected, records = nnx.jit(full)(model)
  assert len(jax.tree.leaves(records)) > 0
  hidden, at, cache = start(model, prompts, lengths, room=4)
  assert error(hidden, expected[:, :1]) < 1e-5
  hidden, _ = extend(
    model, targets[:, :3], at[:, None] + np.arange(3)[None], cache
  )
  assert error(hidden, expected[:, 1:]) < 1e-5
