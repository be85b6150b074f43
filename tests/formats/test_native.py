# SPDX-License-Identifier: Apache-2.0
"""Our own adapter folders keep every method bit for bit."""

import json

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sira_jax import export_check
from sira_jax.adapters import pruning, surgery
from sira_jax.adapters.variables import AdapterConstant, AdapterParam
from sira_jax.formats import native
from tests import tiny

BASE = {"uri": "tiny", "fingerprint": "abc"}
SITES = r"layers\.\d+\.mlp\.(gate|up)_proj"
METHODS = {
  "lora": dict(rank=3, alpha=7.0),
  "sora": dict(rank=3),
  "sira": dict(experts=4, rank=2, k=2, gate=1.0, shared_router=True),
  "smoe_dropout": dict(experts=4, rank=2, first_k=1, k=2),
  "adamix": dict(experts=3, rank=2),
  "mov": dict(experts=3),
  "bottleneck": dict(rank=3),
}


def trained(method):
  model = tiny.adapted(method, path=SITES, **METHODS[method])
  tiny.randomize(model)
  return model


def arrays(model):
  kinds = nnx.Any(AdapterParam, AdapterConstant)
  return dict(nnx.to_flat_state(nnx.state(model, kinds)))


@pytest.mark.parametrize("method", METHODS)
def test_round_trip(method, tmp_path):
  model = trained(method)
  native.write(tmp_path, model, base=BASE)
  again = tiny.base()
  sites = native.read(tmp_path, again, fingerprint="abc")
  assert sites == surgery.sites(model)
  one, two = arrays(model), arrays(again)
  assert one.keys() == two.keys()
  for path, variable in one.items():
    np.testing.assert_array_equal(variable[...], two[path][...])


def test_pruned_layers_round_trip(tmp_path):
  """Of ranks, and of experts, of their own; and one layer has none left."""
  model = trained("sira")
  first, second = model.layers[0].mlp, model.layers[1].mlp
  g = jnp.asarray([[1.0, 0.0], [0, 0], [0.5, 0], [0, 2]])
  first.up_proj.adapter.g[...] = g
  second.up_proj.adapter.g[...] = jnp.zeros_like(g)
  pruning.prune(model)
  native.write(tmp_path, model, base=BASE)
  again = tiny.base()
  native.read(tmp_path, again)
  assert type(again.layers[1].mlp.up_proj) is nnx.Linear
  tokens = {"decoder_input_tokens": tiny.batch()["decoder_input_tokens"]}
  got, expected = (export_check.logits(one, tokens) for one in (again, model))
  np.testing.assert_array_equal(got, expected)
  assert np.abs(expected - export_check.logits(tiny.base(), tokens)).max() > 0.1


def test_models_without_adapters_are_refused(tmp_path):
  with pytest.raises(ValueError, match="got 0 adapters, and 0 modules"):
    native.write(tmp_path, tiny.base(), base=BASE)
  model = tiny.base()
  full = tiny.methods.create("full")
  rule = surgery.Rule(r"layers\.0\.mlp\.up_proj", full)
  surgery.adapt(model, [rule], rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"1 modules .*up_proj"):
    native.write(tmp_path, model, base=BASE)
  assert not any(tmp_path.iterdir())


def test_folders_that_do_not_fit_are_refused(tmp_path):
  native.write(tmp_path, trained("lora"), base=BASE)
  with pytest.raises(ValueError, match=r"for the base .*abc.*not for the one"):
    native.read(tmp_path, tiny.base(), fingerprint="abd")
  file = tmp_path / native.WEIGHTS
  tensors = safetensors.load_file(file)
  name = "layers.0.mlp.up_proj.A"
  for change, message in (
    ({name: tensors[name][:-1]}, r"up_proj\.A is float32 \(15, 1, 3\)"),
    ({name: tensors[name].astype(np.float16)}, r"up_proj\.A is float16"),
    ({"more": np.ones(1)}, "left over: more"),
    ({name: None}, "missing: layers"),
  ):
    changed = {k: v for k, v in (tensors | change).items() if v is not None}
    safetensors.save_file(changed, file)
    with pytest.raises(ValueError, match=message):
      native.read(tmp_path, tiny.base())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"format": 2}, "expected format 1, got 2"),
    ({"layers": {"x": {"kind": "new"}}}, "its layers cannot be read"),
    ({"layers": 3}, "its layers cannot be read"),
  ],
)
def test_unknown_configs_are_refused(tmp_path, change, message):
  native.write(tmp_path, trained("lora"), base=BASE)
  file = tmp_path / native.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    native.read(tmp_path, tiny.base())
