"""The benchmark of starts, on a tiny base and a step of few layers."""

import pytest

from benchmarks import startup
from sira_jax.data import cache
from tests import tiny_run


def test_starts(tmp_path, monkeypatch):
  """Cold and warm starts are divided into parts that add up."""
  settings = tiny_run.SETTINGS | tiny_run.base(tmp_path)
  # Starts that read no data are quicker.
  folder = str(tmp_path / "data")
  cache.write(tiny_run.config("sira", settings), folder)
  settings["cache.folder"] = folder
  monkeypatch.setenv("SIRA_JAX_CACHE", str(tmp_path / "own"))
  (tmp_path / "own").mkdir()
  path = r"layers\.\d+\.mlp\.up_proj"
  settings |= {"rules.attention.path": path, "rules.mlp.path": path}
  settings["training.checkpoint_every"] = 1
  arguments = [f"--config.{name}={value}" for name, value in settings.items()]
  start, steps = startup.start, []

  def noted(arguments, workdir, cache):
    row = start(arguments, workdir, cache)
    kept = (cache / "compilations").glob("jit_step-*-cache")
    steps.append([file.name for file in kept])
    return row

  monkeypatch.setattr(startup, "start", noted)
  found = startup.starts(arguments, rounds=1, folder=tmp_path)
  assert list(found) == ["cold", "warm"]
  for (row,) in found.values():
    *parts, whole = row.values()
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(whole, abs=0.1)
  # A warm start finds its step compiled.
  _, cold, warm = steps
  assert len(cold) == 1 and warm == cold
  table = startup.start_table(found).splitlines()
  assert table[0].startswith("| start | imports, base and data |")
  assert len(table) == 4


def test_a_run_that_fails_is_said(tmp_path):
  with pytest.raises(
    RuntimeError, match=r"No first step was taken(.|\n)*expert"
  ):
    startup.start(["--config.rules.mlp.expert=1"], tmp_path / "run", tmp_path)


def test_compile_table():
  """A ratio is to the first row's own way."""
  found = {(8, False): 2.0, (8, True): 4.0, (32, False): 7.0, (32, True): 5.0}
  assert startup.compile_table(found).splitlines()[2:] == [
    "| 8 | 2.0 | 1.00 | 4.0 | 1.00 |",
    "| 32 | 7.0 | 3.50 | 5.0 | 1.25 |",
  ]
