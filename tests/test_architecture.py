"""What every file keeps: its size, its name, its imports."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "sira_jax").rglob("*.py"))
FOLDERS = ("sira_jax", "tests", "configs", "benchmarks", "examples")
FILES = sorted(
  [*ROOT.glob("*.py"), *(f for n in FOLDERS for f in (ROOT / n).rglob("*.py"))]
)
FORBIDDEN = {"utils", "util", "helpers", "common", "misc", "base"}
HEAVY = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"}


def name(file):
  return file.relative_to(ROOT).as_posix()


def imported(file):
  """Every module that a file imports, by its full name, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name(file)}: a relative import"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def lines(function):
  """A function's lines, without those of its docstring."""
  total = function.end_lineno - function.lineno + 1
  if ast.get_docstring(function):
    docstring = function.body[0]
    total -= docstring.end_lineno - docstring.lineno + 1
  return total


def room(module):
  """sira_jax.adapters.x -> adapters; None for others' modules."""
  parts = module.split(".")
  return parts[1] if parts[0] == "sira_jax" and len(parts) > 1 else None


@pytest.mark.parametrize("file", FILES, ids=name)
def test_file(file):
  text = file.read_text()
  assert len(text.splitlines()) <= 400
  assert file.stem not in FORBIDDEN
  tree = ast.parse(text)
  if name(file).partition("/")[0] != "tests":
    assert ast.get_docstring(tree), "no docstring"
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      assert lines(node) <= 60, f"{node.name} is too long"


@pytest.mark.parametrize("file", PACKAGE, ids=name)
def test_licence(file):
  first = file.read_text().partition("\n")[0]
  assert first == "# SPDX-License-Identifier: Apache-2.0"


# What knows several rooms.
ABOVE = {
  "assembly",
  "adapted",
  "generate",
  "scoring",
  "export",
  "export_check",
  "starting",
  "validation",
}
# What the rooms of the package may not import of it.
WALLS = {
  "adapters": {"models", "data", "cached", "training", "formats", *ABOVE},
  "models": {"adapters", "data", "cached", "training", "formats", *ABOVE},
  "training": {"models", "data", "cached", "formats", *ABOVE},
  "formats": {"data", "cached", "training", *ABOVE},
  "metrics": {
    *("adapters", "models", "data", "cached", "training", "formats"),
    *ABOVE,
  },
  "data": {"adapters", "models", "training", "formats", *ABOVE},
  "cached": {"adapters", "models", "data", "training", "formats", *ABOVE},
}
# The command of a room that puts a config's data together as a run does.
COMMAND = "sira_jax/data/cache.py"


@pytest.mark.parametrize("file", PACKAGE, ids=name)
def test_walls(file):
  own = file.relative_to(ROOT / "sira_jax").parts[0]
  rooms = {room(module) for module in imported(file)}
  assert name(file) == COMMAND or not rooms & WALLS.get(own, set())


def test_who_knows_the_data():
  """seqio and its TensorFlow stay behind sira_jax.data."""
  knowing = {
    name(file)
    for file in [*PACKAGE, *ROOT.glob("*.py")]
    if any(
      m.partition(".")[0] in HEAVY or room(m) == "data" for m in imported(file)
    )
  }
  outside = {n for n in knowing if not n.startswith("sira_jax/data/")}
  assert outside == {"sira_jax/assembly.py", "sira_jax/validation.py"}


def test_who_knows_the_cache():
  """The data room, and whoever reads one or the other."""
  knowing = {
    name(file)
    for file in [*PACKAGE, *ROOT.glob("*.py")]
    if any(room(m) == "cached" for m in imported(file))
  }
  own = ("sira_jax/cached/", "sira_jax/data/")
  outside = {n for n in knowing if not n.startswith(own)}
  assert outside == {"sira_jax/assembly.py", "sira_jax/validation.py"}


def run(program):
  return subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_import_takes_no_tensorflow():
  done = run(
    "import sys, sira_jax.training.step, sira_jax.generate\n"
    f"print(sorted({HEAVY!r} & set(sys.modules)))"
  )
  assert done.stdout.strip() == "[]", done.stderr


# As if they were not installed, which some packages ask.
BLOCKER = f"""
import sys

sys.modules |= dict.fromkeys({HEAVY!r})
try:
  import seqio
except ImportError:
  print("blocked")
"""

WITHOUT = f"""{BLOCKER}
import optax
from sira_jax.training import step as training
from tests import tiny

model, optimizer = tiny.adapted("sira", experts=2, k=1), optax.adam(0.1)
state = training.init(model, optimizer, seed=0)
state, metrics = training.make(model, optimizer)(state, tiny.batch())
print(0 < float(metrics["loss"]) < 10)
"""


def test_a_step_takes_no_tensorflow():
  done = run(WITHOUT)
  assert done.stdout.split() == ["blocked", "True"], done.stderr
