"""What README says runs, and what it maps exists."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests import tiny_base

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Lines such as "    python train.py --flag=value      # what it does".
COMMANDS = [
  line.split("#")[0].strip()
  for line in re.findall(
    r"^    (?:pip install .* && )?(python .*)$", README, flags=re.M
  )
]


def test_commands_are_found():
  scripts = {command.split()[1] for command in COMMANDS}
  assert scripts == {"train.py", "eval.py", "-m"}
  assert "python -m pytest" in COMMANDS
  assert re.search(r"^    pip install -r requirements.txt", README, re.M)


@pytest.mark.timeout(900)
def test_commands_run(tmp_path):
  """Each script line, in README's order, on a tiny base and three steps."""
  file = tmp_path / "tiny.gguf"
  small = [
    f"--config.base.uri={file}",
    f"--config.base.sha256={tiny_base.write(file)}",
    # The tiny base has two layers, the quickstart adapts the tenth and up.
    r"--config.rules.attention.path=layers\.\d+\.self_attn\.[qkvo]_proj",
    r"--config.rules.mlp.path=layers\.\d+\.mlp\.(gate|up|down)_proj",
    "--config.training.steps=3",
    "--config.optimizer.warmup_steps=1",
    "--config.batches.batch_size=2",
    "--config.evaluation.examples=1",
    "--config.decoding.max_new_tokens=2",
  ]
  for command in COMMANDS:
    if command == "python -m pytest":
      continue
    words = shlex.split(command)[1:]
    if words[0] != "-m":
      words[0] = str(ROOT / words[0])
    config = [word for word in words if word.startswith("--config=")]
    words = [word for word in words if word not in config]
    if words[0].endswith("train.py"):
      default = str(ROOT / "configs" / "quickstart.py")
      path = config[0].partition("=")[2] if config else default
      words[1:1] = [f"--config={ROOT / path}", *small]
    done = subprocess.run(
      [sys.executable, *words],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=False,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, (command, done.stderr[-2000:])
  made = {path.name for path in (tmp_path / "runs").iterdir()}
  assert made == {"quickstart", "quickstart-lora", "quickstart-sora", "eight"}


def test_wrong_field_is_named(tmp_path):
  """README's example of a mistake gets the answer that it promises."""
  command = re.search(r"`python (train.py --config\.\S+expert=8)`", README)[1]
  done = subprocess.run(
    [sys.executable, *command.split()],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode != 0
  assert 'Did you mean "experts"' in done.stdout + done.stderr


def test_python_example_runs(capsys):
  code = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
  exec(compile(code, "README.md", "exec"), {})
  assert "('layers.0', (32, 64), 1792)" in capsys.readouterr().out


def test_map_is_true():
  """Every file of the package is in the map, and nothing else is."""
  text = README.split("## Map")[1].split("\n## ")[0]
  named = set(re.findall(r"\b(\w+\.py)\b", text))
  folders = set(re.findall(r"^\s+(\w+)/", text, flags=re.M))
  package = ROOT / "sira_jax"
  files = {
    path.name
    for path in package.rglob("*.py")
    if path.name != "__init__.py" and path.parent.name != "data"
  }
  assert named == files | {"train.py", "eval.py"}
  rooms = {path.name for path in package.iterdir() if path.is_dir()}
  rooms -= {"__pycache__"}
  assert folders == rooms | {"configs", "sira_jax", "tests", "benchmarks"}


def test_benchmarks_are_listed():
  """Every benchmark is in their README, and nothing else is."""
  text = (ROOT / "benchmarks" / "README.md").read_text()
  listed = set(re.findall(r"`(\w+\.py)`", text))
  files = {file.name for file in (ROOT / "benchmarks").glob("*.py")}
  assert listed == files - {"__init__.py"}
