"""The step's program is there before the run is, and is what it would be."""

import dataclasses
import functools
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import own_labels
from sira_jax import adapted, ahead, assembly, first_step, sharding
from sira_jax.formats import sources
from sira_jax.training import step as training
from tests import tiny_encoder, tiny_run, tiny_t5
import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


def decoder(base, method="sira", **changes):
  changes = {name.replace("__", "."): one for name, one in changes.items()}
  return tiny_run.config(method, base | changes)


def encoder_decoder(folder):
  changes = {
    "base.uri": str(tiny_t5.byte_folder(folder)),
    "batches.length": 128,
    "batches.targets_length": 96,
  }
  return tiny_run.config("sira", changes, path=r".*attention\.q")


def encoder(folder):
  config = own_labels.get_config("lora")
  rows = [
    {"text": f"w{i % 20} {word} w{i % 7}", "label": label, "grade": "1"}
    for i in range(60)
    for word, label in (("good", "yes"), ("bad", "no"))
  ]
  file = folder / "rows.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config.update_from_flattened_dict(
    {
      "base.uri": str(tiny_encoder.folder(folder / "roberta")),
      "files.own.path": str(file),
      "files.own.bad_rows": "skip",
      "batches.length": 16,
      "batches.batch_size": 4,
      "training.steps": 4,
      "optimizer.warmup_steps": 0,
      "rules.blocks.path": r"blocks\.\d\.attention\.v",
    }
  )
  return config


def begun(config, workdir):
  mesh, rules = tiny_run.layout(config)
  return first_step.FirstStep(config, workdir, mesh=mesh, rules=rules)


CONFIGS = {
  "sira": lambda base, _: decoder(base),
  "divided": lambda base, _: decoder(base, mesh__fsdp=2),
  "sora": lambda base, _: decoder(base, "sora"),
  "adamix": lambda base, _: decoder(base, "adamix"),
  "full": lambda base, _: decoder(base, "full"),
  "unpacked": lambda base, _: decoder(base, "lora", batches__pack=False),
  "prefix": lambda base, _: decoder(base, "lora", base__prefix=True),
  "goes on": lambda base, _: decoder(base, "lora", training__nonfinite="skip"),
  "in parts": lambda base, _: decoder(base, training__microbatches=2),
  "encoder-decoder": lambda _, folder: encoder_decoder(folder),
  "encoder": lambda _, folder: encoder(folder),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_left_to_compile(name, base, tmp_path, monkeypatch):
  """Shapes, places and graph are the run's: it takes what is there."""
  found = []  # whether it was this thread that compiled a step

  def listen(event, seconds, **about):
    if "backend_compile" in event and about.get("fun_name") == "jit(step)":
      found.append(threading.current_thread() is threading.main_thread())

  jax.monitoring.register_event_duration_secs_listener(listen)
  config = CONFIGS[name](base, tmp_path)
  devices = max(config.mesh.data, 1) * config.mesh.fsdp
  layout = functools.partial(tiny_run.layout, devices=devices)
  monkeypatch.setattr(adapted, "layout", layout)
  mesh, rules = layout(config)
  early = first_step.FirstStep(config, tmp_path / "run", mesh=mesh, rules=rules)
  with sharding.use(mesh, rules):
    run = assembly.build(config, tmp_path / "run")
    run = dataclasses.replace(run, program=early.program)
    assert run.program() is not None
    state = train.restore(run, config, tmp_path / "run", run.stages[0])
    step, _ = train.learner(run, config, run.stages[0])
    stops = config.training.nonfinite == "stop"
    held = sharding.born(lambda: jnp.zeros(())) if stops else None
    rows = ahead.Ahead(run.data.batches(0, 0)).rows
    for _ in range(2):
      state, metrics = step(state, rows, held)
      held = metrics["skipped"] if stops else None
  assert found == [False]
  assert np.isfinite(metrics["loss"])


def test_another_model_takes_its_own_program(base, tmp_path, monkeypatch):
  """As after pruning, or where the config is not that of the program."""
  monkeypatch.setattr(adapted, "layout", tiny_run.layout)
  made = begun(decoder(base, "lora"), tmp_path).program()
  run = assembly.build(decoder(base, "sira"), tmp_path)
  optimizer, _ = assembly.optimizer(decoder(base), run.stages[0])
  step = training.make(run.base.model, optimizer, made=made)
  state = training.init(run.base.model, optimizer, seed=0)
  _, metrics = step(state, next(run.data.batches(0, 0)))
  assert "balance_loss" in metrics


def test_later_stages_do_not_take_the_first_ones_program(
  base, tmp_path, monkeypatch
):
  """Whose learning rate and penalty are others, though the model be alike."""
  monkeypatch.setattr(adapted, "layout", tiny_run.layout)
  config = decoder(base, "sora", sparsity__penalties=(0.1, 0.2))
  run = assembly.build(config, tmp_path)
  early = begun(config, tmp_path)
  run = dataclasses.replace(run, program=early.program)
  taken, make = [], training.make

  def noted(*args, made, **settings):
    taken.append(made)
    return make(*args, **settings)

  monkeypatch.setattr(training, "make", noted)
  for stage in run.stages:
    train.learner(run, config, stage)
  assert taken == [early.program(), None]


@pytest.mark.parametrize("method", ["frozen", "lora_smoe"])
def test_what_cannot_be_known_is_not_compiled(
  method, base, tmp_path, monkeypatch
):
  """No step; experts that are still to be allocated."""
  monkeypatch.setattr(adapted, "layout", tiny_run.layout)
  early = begun(decoder(base, method), tmp_path)
  assert early.program() is None


def test_a_later_stage_has_other_shapes(base, tmp_path, monkeypatch):
  """So a run that goes on there compiles nothing that it cannot take."""
  monkeypatch.setattr(adapted, "layout", tiny_run.layout)
  config = decoder(base, "sora", sparsity__penalties=(0.1, 0.2))
  (tmp_path / "stage_1").mkdir()
  assert begun(config, tmp_path).program() is None


def test_a_base_is_not_fetched_twice(base, tmp_path, monkeypatch):
  """The run fetches what is not here, and says so; a thread would too."""
  asked = []
  monkeypatch.setattr(sources, "fetch", lambda *args, **_: asked.append(args))
  config = decoder(base, base__uri="pypi://none==1.0/model.gguf")
  assert begun(config, tmp_path).program() is None
  assert not asked


def test_a_config_that_cannot_be(base, tmp_path, monkeypatch):
  """What is wrong is said by the run itself."""
  monkeypatch.setattr(adapted, "layout", tiny_run.layout)
  config = decoder(base, "lora", batches__length=10**6)
  assert begun(config, tmp_path).program() is None
  with pytest.raises(SystemExit, match="must be within the"):
    tiny_run.main(monkeypatch, config, tmp_path / "run")
