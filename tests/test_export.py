"""What a run trained is written for others, and is the same there."""

import json
import types

import numpy as np
import pytest

from sira_jax import export, export_check, sharding
from sira_jax.formats import peft
from tests import tiny_run

PATH = r"layers\.\d+\.mlp\.up_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
  """Method -> config and workdir of a run of two steps, made when asked for."""
  made, patch = {}, pytest.MonkeyPatch()
  folder = tmp_path_factory.mktemp("runs")

  def run(method, **changes):
    if method not in made:
      config = tiny_run.config(method, base | changes, path=PATH)
      tiny_run.main(patch, config, folder / method)
      made[method] = config, folder / method
    return made[method]

  yield run
  patch.undo()


def exported(run, folder, kind, **options):
  config, workdir = run
  with sharding.use(*tiny_run.layout(config)):
    return export.export(
      config, workdir, folder, kind=kind, check=True, **options
    )


def test_a_routed_run(runs, tmp_path):
  run = runs("sira", **{"rules.mlp.experts": 4, "rules.mlp.k": 2})
  text = exported(run, tmp_path / "native", "native")
  assert "Checked: read again, its logits are 0.0e+00" in text
  text = exported(run, tmp_path / "experts", "experts", name="owner/tiny")
  config = json.loads((tmp_path / "experts/expert_3" / peft.CONFIG).read_text())
  assert config["base_model_name_or_path"] == "owner/tiny"
  assert "4 folders" in text and "Checked" in text
  text = exported(run, tmp_path / "average", "average")
  assert "AN APPROXIMATION" in text and "| intents | en" in text
  card = (tmp_path / "average" / "README.md").read_text()
  assert card.startswith("---\nbase_model: ") and text in card
  assert "library_name: peft" in card and "--format=average" in card
  assert (run[1] / "results.md").read_text().strip() in card
  layers = peft.read(tmp_path / "average")
  assert {a.shape[1] for a, _ in layers.values()} == {4 * 4}
  for kind in ("peft", "merged"):
    with pytest.raises(ValueError, match=r"layers\.0\.mlp.*sira routes each"):
      exported(run, tmp_path / kind, kind)
    assert not (tmp_path / kind).exists()


def test_a_merged_run_is_a_model(runs, tmp_path):
  run = runs("lora")
  exported(run, tmp_path / "merged", "merged")
  assert (tmp_path / "merged" / "config.json").exists()
  with pytest.raises(ValueError, match="is not empty"):
    exported(run, tmp_path / "merged", "peft")
  with pytest.raises(ValueError, match="lora has no router: take peft"):
    exported(run, tmp_path / "experts", "experts")


def test_a_sparse_run_is_a_smaller_lora(runs, tmp_path):
  settings = {
    # Gates of many sizes and small steps, so that they die one after another.
    "rules.mlp.gate": 0.03,
    "rules.mlp.gate_std": 0.02,
    "optimizer.learning_rate": 0.01,
    "sparsity.penalties": (0.0, 2.0),
    "sparsity.stage_steps": 3,
    "sparsity.learning_rate": 1.0,
    "rules.mlp.rank": 6,
    "training.steps": 4,
  }
  run = runs("sora", **settings)
  (study,) = json.loads((run[1] / "sparsity.json").read_text())[1:]
  assert 0 < study["ranks"] < 12
  text = exported(run, tmp_path / "ragged", "peft")
  assert "The largest rank is" in text and "Checked" in text
  layers = peft.read(tmp_path / "ragged")
  assert sum(a.shape[1] for a, _ in layers.values()) == study["ranks"]
  exported(run, tmp_path / "uniform", "peft-uniform")
  assert (
    len({a.shape[1] for a, _ in peft.read(tmp_path / "uniform").values()}) == 1
  )


def test_a_run_goes_on_from_an_export(
  runs, base, tmp_path, monkeypatch, capsys
):
  """Its scores before training are those that the other run ended with."""
  other = runs("lora")
  exported(other, tmp_path / "peft", "peft")
  capsys.readouterr()
  start = {"start.peft": (str(tmp_path / "peft"),)}
  config = tiny_run.config("lora", base | start, path=PATH)
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir)
  assert "2 layers as the adapters of config.start" in capsys.readouterr().out
  before = json.loads((workdir / "results.json").read_text())
  after = json.loads((other[1] / "results.json").read_text())
  assert [one["before"] for one in before] == [one["after"] for one in after]
  assert start["start.peft"][0] in (workdir / "config.json").read_text()
  with pytest.raises(SystemExit, match=r"config\.start\.peft: \[\] -> "):
    tiny_run.main(monkeypatch, config, tmp_path / "third", before=str(other[1]))


@pytest.mark.parametrize(
  ("base", "found", "message"),
  [
    (1.0, 1.0, "the adapters do nothing"),
    (0.0, 1.001, r"logits are 1\.0e-03 of the largest logit from the run's"),
    (0.0, 1.000001, None),
  ],
)
def test_what_the_check_sees(base, found, message, monkeypatch):
  """Adapters that do nothing, and those that do something else."""
  expected = np.ones((1, 2, 3), np.float32)
  job = types.SimpleNamespace(
    config=types.SimpleNamespace(base=types.SimpleNamespace(dtype="float32")),
    folder="folder",
  )
  answers = iter([base * expected, np.float32(found) * expected])
  monkeypatch.setattr(export_check, "fresh_base", lambda _: object())
  monkeypatch.setattr(export_check.starting, "adapt", lambda *_: None)
  monkeypatch.setattr(export_check, "logits", lambda *_: next(answers))
  if message is None:
    assert "Checked" in export_check.check(job, "peft", {}, expected)
  else:
    with pytest.raises(ValueError, match=message):
      export_check.check(job, "peft", {}, expected)
