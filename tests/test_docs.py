"""What the pages in docs/ say of methods, costs and commands is true."""

import importlib.util
import pathlib
import re
import shlex
import sys

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import pytest

import sira_jax
from sira_jax import adapted as adapted_lib
from sira_jax import configuration, distributed, validation
from sira_jax.adapters import methods

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text()
FIDELITY = (ROOT / "docs" / "fidelity.md").read_text()
COSTS = {
  cells[0].strip("`"): [cell.strip("`") for cell in cells[1:]]
  for line in re.findall(r"^\| `\w+` \|.*\|$", PAGE, re.M)
  for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
  if len(cells) == 5
}
ADAPTERS = sorted(set(methods.METHODS) - {"full"})
LETTERS = {"experts": "N", "rank": "r", "k": "k"}
# (d, f), N, r, k; of a matrix as tall as wide, wider and taller.
SIZES = [
  dict(zip("dfNrk", sizes, strict=True))
  for sizes in ((576, 576, 16, 4, 4), (576, 192, 5, 8, 1), (192, 768, 8, 3, 8))
]


def value(formula, sizes):
  """Of "N r (d + f)": letters side by side are multiplied."""
  return eval(re.sub(r"(?<=[\w)]) +(?=[\w(])", "*", formula), {}, sizes)


def factory(method, sizes):
  known = methods.defaults(method)
  settings = {s: sizes[x] for s, x in LETTERS.items() if s in known}
  if "first_k" in known:
    settings["first_k"] = 1
  return methods.create(method, **settings)


def test_every_method_has_its_costs():
  assert set(COSTS) == set(methods.METHODS)
  assert value("2 N r (d + f) + 2 N d", dict(N=3, r=5, d=7, f=11)) == 582


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_costs(method, sizes):
  made, d, f = factory(method, sizes), sizes["d"], sizes["f"]
  expected = [made.parameters(d, f), made.active(d, f), made.flops(d, f)]
  assert [value(formula, sizes) for formula in COSTS[method][:3]] == expected


def test_a_single_vector():
  """The page's (IA)3: f numbers, no matmul."""
  made = methods.create("mov", experts=1)
  assert (made.parameters(5, 7), made.active(5, 7), made.flops(5, 7)) == (
    (7, 7, 0)
  )


def test_a_gate_in_the_experts():
  plain, gated = (
    methods.create("sira", experts=6, rank=5, k=2, gate=gate)
    for gate in (None, 1.0)
  )
  assert gated.parameters(8, 9) - plain.parameters(8, 9) == 6 * 5
  assert gated.active(8, 9) - plain.active(8, 9) == 2 * 5


def adapted(method, sizes):
  model = nnx.Sequential(
    nnx.Linear(sizes["d"], sizes["f"], use_bias=False, rngs=nnx.Rngs(0))
  )
  full = method == "full"
  made = methods.create("full") if full else factory(method, sizes)
  rule = sira_jax.Rule(r"layers\.0", made)
  (site,) = sira_jax.adapt(model, [rule], rngs=nnx.Rngs(1))
  model.eval()
  return model, site


@pytest.mark.parametrize("method", methods.METHODS)
def test_merging_and_what_is_trained(method):
  sizes = dict(d=6, f=4, N=3, r=2, k=2)
  model, site = adapted(method, sizes)
  trained, _, _, merges = COSTS[method]
  assert site.parameters == value(trained, sizes)
  leaves = jax.tree.leaves(nnx.state(model, sira_jax.Trainable))
  assert sum(leaf.size for leaf in leaves) == value(trained, sizes)
  if merges == "yes":
    sira_jax.merge(model)
    assert type(model.layers[0]) is nnx.Linear
  else:
    assert merges == "no"
    with pytest.raises(ValueError, match="cannot be merged"):
      sira_jax.merge(model)


@pytest.mark.parametrize("method", ADAPTERS)
def test_flops_are_what_xla_counts(method):
  """Of matmuls; what else a layer of this size computes is 2 % at most."""
  tokens, sizes = 512, dict(d=768, f=512, N=16, r=4, k=4)
  model, _ = adapted(method, sizes)
  graph, state = nnx.split(model.layers[0].adapter)
  x, frozen = jnp.ones((4, 128, 768)), jnp.ones((4, 128, 512))
  program = jax.jit(lambda state, *xs: nnx.merge(graph, state)(*xs))
  counted = program.lower(state, x, frozen).compile().cost_analysis()["flops"]
  claimed = tokens * value(COSTS[method][2], sizes)
  assert claimed <= counted < 1.02 * claimed


COMMANDS = [
  shlex.split(line)
  for page in sorted((ROOT / "docs").glob("*.md"))
  for line in re.findall(
    r"^(?:    )?(python .*)$", page.read_text().replace("\\\n", ""), re.M
  )
]
# Not commands but forms of them.
FORMS = re.compile(r"\b(METHOD|SEED)\b")


def test_commands_are_found():
  assert len(COMMANDS) > 10
  assert {words[1] for words in COMMANDS} <= {"train.py", "eval.py", "-m"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_accepted(words, monkeypatch):
  """The config exists, has the fields, and takes the values."""
  if words[1] == "-m":
    assert importlib.util.find_spec(words[2])
  if words[1] != "train.py" or FORMS.search(" ".join(words)):
    return
  configuration.let_flags_say_none()
  own, arguments = flags.FlagValues(), ["train.py", *words[2:]]
  monkeypatch.setattr(sys, "argv", arguments)  # config_flags reads it
  monkeypatch.chdir(ROOT)
  config_flags.DEFINE_config_file(
    "config", "configs/quickstart.py", flag_values=own, lock_config=True
  )
  for name in ("workdir", "topology"):
    flags.DEFINE_string(name, None, "", flag_values=own)
  flags.DEFINE_boolean("plan", False, "", flag_values=own)
  distributed.define_flags(own)
  assert own(arguments) == ["train.py"]
  validation.check(own.config)
  validation.check_rows(own.config, adapted_lib.layout(own.config)[0])


def section(page, title):
  (text,) = re.findall(
    rf"^##+ {title}\n(.*?)(?=^##|\Z)", page, re.M | re.S
  ) or [""]
  return text


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_is_described(method):
  assert section(PAGE, rf"`{method}`[^\n]*").strip()


LINES = ["Equation", "Paper", "Released code", "Here", "Source"]


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_has_the_same_lines_of_fidelity(method):
  text = section(FIDELITY, rf"[^\n]*`{method}`")
  assert re.findall(r"^- \*\*([\w ]+)\.\*\*", text, re.M)[:5] == LINES


def test_every_router_setting_is_described():
  """Of SiRA's settings, those of its router."""
  table = section(PAGE, "SiRA: the router's options")
  named = set(re.findall(r"`(\w+)`", table))
  layer = {"experts", "rank", "alpha", "gate", "gate_std", "activation"}
  layer |= {"execution"}
  assert set(methods.defaults("sira")) - layer <= named
