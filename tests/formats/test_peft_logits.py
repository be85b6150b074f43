# SPDX-License-Identifier: Apache-2.0
"""LoRA folders give PEFT's logits: ours as PEFT reads them, and PEFT's here."""

import re

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from sira_jax import export_check, starting
from sira_jax.adapters import methods, surgery
from sira_jax.formats import huggingface, peft
from tests.golden import peft_pairs
from tests.tiny_t5 import GOLDEN, error

LAYERS = {
  "tiny_llama_sharded": peft_pairs.LLAMA,
  "tiny_t5_gated": peft_pairs.T5,
}
MADE = GOLDEN / "peft"
NAMES = pytest.mark.parametrize("name", list(LAYERS))


@pytest.fixture(scope="module")
def of_ours():
  return dict(np.load(MADE / "of_ours.npz"))


def logits(model, name, stored):
  tokens = stored[f"{name}_input_ids"].astype(np.int32)
  if "t5" not in name:
    return export_check.logits(model, {"decoder_input_tokens": tokens})
  targets = stored[f"{name}_decoder_input_ids"].astype(np.int32)
  return export_check.logits(
    model, {"encoder_input_tokens": tokens, "decoder_input_tokens": targets}
  )


def adapted(name, folder):
  model = huggingface.load_model(GOLDEN / name)
  starting.adapt(model, folder)
  return model


def trained(name, *, alpha=7.0):
  """Our LoRA with the layers' values, each rank's own scale in B undone."""
  model = huggingface.load_model(GOLDEN / name)
  pairs = peft_pairs.pairs(LAYERS[name])
  rules = [
    surgery.Rule(
      re.escape(peft_pairs.PATHS[key]),
      methods.create("lora", rank=a.shape[1], alpha=alpha),
    )
    for key, (a, _) in pairs.items()
  ]
  surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  for path, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      at = ".".join(map(str, path))
      key = next(k for k in pairs if peft_pairs.PATHS[k] == at)
      a, b = pairs[key]
      module.adapter.A[...] = jnp.asarray(a[:, None])
      module.adapter.B[...] = jnp.asarray(b[None] * a.shape[1] / alpha)
  return model


@NAMES
def test_our_lora_gives_the_logits_of_peft(name, of_ours):
  model = trained(name)
  assert error(logits(model, name, of_ours), of_ours[name]) < 1e-5
  # The base's are far from them.
  assert error(of_ours[f"{name}_base"], of_ours[name]) > 0.1


@NAMES
def test_peft_is_given_what_its_logits_are_of(name, of_ours, tmp_path):
  """From our trained model to the very tensors that PEFT was given."""
  model = trained(name)
  pairs = {
    huggingface.module_name(model, path): [
      np.asarray(part) for part in layer.adapter.low_rank()
    ]
    for path, layer in surgery.adapted(model).items()
  }
  peft.write(tmp_path, pairs, base=name, encoder_decoder="t5" in name)
  read = peft.read(tmp_path)
  given = peft_pairs.pairs(LAYERS[name])
  assert read.keys() == given.keys()
  for key, pair in given.items():
    for one, two in zip(read[key], pair, strict=True):
      np.testing.assert_allclose(one, two, rtol=1e-6)
  # Ragged or filled up, PEFT got the same from it.
  assert error(of_ours[f"{name}_uniform"], of_ours[name]) < 1e-5
  model = adapted(name, tmp_path)
  assert error(logits(model, name, of_ours), of_ours[name]) < 1e-5


@NAMES
def test_folders_of_peft_give_its_logits(name, of_ours):
  """Of an alpha and a rank for some modules, and of rsLoRA's scale."""
  expected = np.load(MADE / name / "expected.npz")["logits"]
  model = adapted(name, MADE / name)
  assert error(logits(model, name, of_ours), expected) < 1e-5
  assert error(of_ours[f"{name}_base"], expected) > 0.1


@pytest.mark.parametrize(
  ("method", "settings"),
  [
    ("lora", dict(rank=6, alpha=3.0)),
    ("sora", dict(rank=5, gate=0.5)),
    ("adamix", dict(rank=5, experts=3, alpha=16.0)),
  ],
)
def test_adapters_start_as_a_lora(method, settings, of_ours):
  """Whatever its scale, its spare ranks and its gates."""
  name = "tiny_llama_sharded"
  model = huggingface.load_model(GOLDEN / name)
  rules = [surgery.Rule(r".*_proj", methods.create(method, **settings))]
  sites = surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  assert starting.begin(model, peft=(str(MADE / name),)) == 5 < len(sites)
  expected = np.load(MADE / name / "expected.npz")["logits"]
  assert error(logits(model, name, of_ours), expected) < 1e-5
  spare = model.layers[1].mlp.down_proj.adapter
  assert float(jnp.abs(spare.A[:, :, 4:]).min()) > 0  # it can still learn


@pytest.mark.parametrize("renormalise", [False, True])
def test_experts_start_as_a_lora(renormalise, of_ours):
  """All of them, so that a uniform router gives it, too."""
  name = "tiny_llama_sharded"
  model = huggingface.load_model(GOLDEN / name)
  sira = methods.create("sira", experts=8, rank=5, k=2, renormalise=renormalise)
  surgery.adapt(model, [surgery.Rule(r".*_proj", sira)], rngs=nnx.Rngs(0))
  starting.begin(model, peft=(str(MADE / name),))
  for _, module in nnx.iter_modules(model):
    if isinstance(module, surgery.Adapted):
      module.adapter.router.kernel[...] *= 0
  expected = np.load(MADE / name / "expected.npz")["logits"]
  assert error(logits(model, name, of_ours), expected) < 1e-5


def test_each_expert_starts_as_a_lora_of_its_own(tmp_path):
  model = huggingface.load_model(GOLDEN / "tiny_llama_sharded")
  sira = methods.create("sira", experts=3, rank=5, k=1, compensate=False)
  surgery.adapt(model, [surgery.Rule(r".*_proj", sira)], rngs=nnx.Rngs(0))
  given = [peft_pairs.pairs(peft_pairs.LLAMA, seed) for seed in (1, 2)]
  folders = [str(tmp_path / str(number)) for number in range(2)]
  for folder, pairs in zip(folders, given, strict=True):
    path = type(tmp_path)(folder)
    peft.write(path, pairs, base="x", encoder_decoder=False)
  starting.begin(model, peft=folders)
  found = model.layers[1].mlp.down_proj.adapter.expert_pairs()
  for expert, pairs in enumerate(given):
    a, b = pairs["model.layers.1.mlp.down_proj"]
    # At k / experts = 1 / 3 of the weight, it has three times the size.
    np.testing.assert_allclose(
      found[expert].product(), 3 * a @ b, rtol=1e-4, atol=1e-5
    )
  assert not np.asarray(found[2].product()).any()


@pytest.mark.parametrize(
  ("method", "settings", "path", "message"),
  [
    ("lora", dict(rank=6), ".*q_proj", "3 of its 5 layers have no adapter"),
    ("lora", dict(rank=2), ".*_proj", "the LoRA has rank 3, the adapter 2"),
    ("mov", dict(experts=2), ".*_proj", "mov cannot start as a LoRA"),
    ("bottleneck", dict(rank=6), ".*_proj", "bottleneck is not linear"),
    ("sora", dict(rank=6, gate=0.0, gate_std=1.0), ".*_proj", None),
  ],
)
def test_what_cannot_start_so_is_refused(method, settings, path, message):
  model = huggingface.load_model(GOLDEN / "tiny_llama_sharded")
  factory = methods.create(method, **settings)
  surgery.adapt(model, [surgery.Rule(path, factory)], rngs=nnx.Rngs(0))
  folder = str(MADE / "tiny_llama_sharded")
  if message is None:
    gate = model.layers[0].self_attn.q_proj.adapter.g
    gate[...] = gate[...].at[0, 1].set(0.0)
    message = "a gate that starts at 0"
  with pytest.raises(ValueError, match=message):
    starting.begin(model, peft=(folder,))


def test_what_does_not_fit_is_refused(tmp_path):
  model = huggingface.load_model(GOLDEN / "tiny_llama_sharded")
  rules = [surgery.Rule(".*_proj", methods.create("lora", rank=6))]
  surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  folder = str(MADE / "tiny_llama_sharded")
  with pytest.raises(ValueError, match="got 2 LoRA folders for 1 expert"):
    starting.begin(model, peft=(folder, folder))
  other = huggingface.load_model(GOLDEN / "tiny_t5_gated")
  with pytest.raises(ValueError, match=r"has no linear layer model\.layers"):
    starting.adapt(other, MADE / "tiny_llama_sharded")
  with pytest.raises(ValueError, match="a tuple of folders, got"):
    starting.begin(model, peft=folder)
  wide = {"model.layers.0.mlp.up_proj": (np.ones((9, 1)), np.ones((1, 24)))}
  peft.write(tmp_path, wide, base="x", encoder_decoder=False)
  with pytest.raises(ValueError, match="a layer of 9 to 24 features, and"):
    starting.begin(model, peft=(str(tmp_path),))
