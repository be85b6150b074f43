"""An encoder with a head from end to end: train.py, eval.py's way, export."""

import json

from flax import nnx
import numpy as np
import pytest

from configs import own_labels
from sira_jax import (
  adapted,
  assembly,
  configuration,
  export,
  first_step,
  runs,
  validation,
)
from sira_jax.data import files, mixtures, pipeline, vocabularies
from sira_jax.formats import bases, huggingface
from tests import tiny_encoder, tiny_run
from tests.tiny_t5 import error

ROWS = [
  {"text": f"w{i % 20} {word} w{i % 7}", "label": label, "grade": str(grade)}
  for i in range(60)
  for word, label, grade in (("good", "yes", 1.5), ("bad", "no", -1.5))
]


@nnx.jit
def states(model, tokens):
  return model.states(tokens)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_encoder.folder(tmp_path_factory.mktemp("base") / "roberta")


@pytest.fixture
def config(base, tmp_path):
  found = own_labels.get_config("lora")
  lines = dict.fromkeys(json.dumps(row) + "\n" for row in ROWS)
  (tmp_path / "rows.jsonl").write_text("".join(lines))
  found.update_from_flattened_dict(
    {
      "base.uri": str(base),
      "files.own.path": str(tmp_path / "rows.jsonl"),
      "files.own.bad_rows": "skip",
      "batches.length": 16,
      "batches.batch_size": 8,
      "optimizer.learning_rate": 0.02,
      "optimizer.warmup_steps": 1,
      "training.steps": 120,
      "training.checkpoint_every": 120,
      "rules.blocks.rank": 4,
      # Few sites: programs compile sooner.
      "rules.blocks.path": r"blocks\.\d\.(attention\.v|mlp\.w[io])",
    }
  )
  return found


def test_train_eval_and_export(config, tmp_path, monkeypatch, capsys):
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir)
  said = capsys.readouterr().out
  assert "1 x head  16 -> 2  head of 2 labels, by mean, 34 parameters" in said
  (result,) = json.loads((workdir / "results.json").read_text())
  assert result["after"]["accuracy"] > 90.0 > result["before"]["accuracy"]
  lines = (workdir / "predictions.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert {row["prediction"] for row in rows} == {"yes", "no"}
  # As eval.py and export have it: base and newest checkpoint.
  loaded = runs.load_config(workdir)
  validation.check(loaded)
  model = adapted.restore(loaded, workdir).base.model
  run = assembly.build(loaded, tmp_path / "other")
  nnx.update(run.base.model, nnx.state(model))
  results, _ = assembly.score(run, loaded, sets=run.data.sets)
  assert results[0].scores == result["after"]
  told = export.export(
    loaded, workdir, tmp_path / "out", kind="native", check=True
  )
  assert "Checked: read again" in told
  with pytest.raises(ValueError, match=r"trained a head beside its adapters"):
    export.export(loaded, workdir, tmp_path / "peft", kind="peft")


def test_numbers(config, tmp_path, monkeypatch):
  """A regression, packed."""
  config.head.labels = ()
  config.files.own.update(targets="{grade}", metrics=("pearson",))
  config.batches.update(pack=True, length=32, targets_length=4, batch_size=4)
  workdir = tmp_path / "run"
  tiny_run.main(monkeypatch, config, workdir)
  (result,) = json.loads((workdir / "results.json").read_text())
  assert result["after"]["pearson"] > 90.0
  metrics = (workdir / "metrics.jsonl").read_text().splitlines()
  last = json.loads(metrics[-1])
  assert last["absolute_error"] < 0.5
  assert last["examples"] == last["targets"] > 8  # of 4 rows


def test_packed_batches_are_the_unpacked_ones(config, base):
  """Each text once, with its label and with what begins and ends it."""
  loaded = bases.load(uri=str(base))
  vocabulary = vocabularies.TokenizerVocabulary(
    loaded.tokenizer,
    loaded.eos_id,
    first_id=loaded.first_id,
    labels=("no", "yes"),
  )
  known = files.known(config.files)
  mixture = mixtures.build(
    vocabulary, tasks=("own",), languages=("en",), known=known
  )
  batch = next(
    pipeline.batches(
      mixture, batch_size=2, length=32, targets_length=4, pack=True
    )
  )
  assert set(batch) == {
    *("encoder_input_tokens", "encoder_segment_ids", "encoder_positions"),
    *("decoder_target_tokens", "decoder_loss_weights"),
  }
  good = loaded.tokenizer.token_to_id("good")
  for row in range(2):
    ids = batch["encoder_segment_ids"][row]
    count = int(batch["decoder_loss_weights"][row].sum())
    assert ids.max() == count > 1
    for number in range(1, count + 1):
      tokens = batch["encoder_input_tokens"][row][ids == number]
      assert (tokens[0], tokens[-1]) == (loaded.first_id, loaded.eos_id)
      label = batch["decoder_target_tokens"][row][number - 1]
      assert label == int(good in tokens)


@pytest.mark.parametrize("unigram", [False, True])
def test_a_base_that_pads_with_one(tmp_path, unigram):
  """0 pads, and the tokenizer and the table have changed alike."""
  folder = tiny_encoder.folder(tmp_path / "base", unigram=unigram)
  base = bases.load(uri=str(folder))
  assert (base.first_id, base.eos_id, base.spare) == (1, 2, 1)
  assert base.model.config.padding == 0
  plain = huggingface.load_model(folder)
  tokenizer = huggingface.tokenizer(folder)
  text = "w1 bad w2"
  before, after = tokenizer.encode(text).ids, base.tokenizer.encode(text).ids
  assert before[0] == 0 and after == [1, *before[1:]]
  # Padded as each has it.
  got = states(base.model, np.array([[*after, 0, 0]]))
  expected = states(plain, np.array([[*before, 1, 1]]))
  assert error(got[:, :5], expected[:, :5]) < 1e-6
  assert base.tokenizer.decode(after) == tokenizer.decode(before)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"head.labels": ("yes", "maybe")}, r"one of config.head.labels .*'no'"),
    ({"head.labels": ()}, "to be a number, as config.head names no labels"),
    ({"head.pooling": "last"}, "config.head: Unknown pooling 'last'"),
    ({"batches.targets_length": 4}, "unless config.batches.pack is true"),
    ({"head": ...}, "config.base.uri is an encoder, which labels texts"),
  ],
)
def test_mistakes(config, changes, message, tmp_path):
  for name, value in changes.items():
    if value is ...:
      del config[name]
    else:
      config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=message):
    assembly.build(config, tmp_path)


def test_mistakes_before_anything_is_loaded(config):
  config.head.labels = ("yes",)
  with pytest.raises(ValueError, match=r"config.head: A head needs two labels"):
    validation.check(config)
  config.head.labels = ("yes", "no")
  config.head.colour = 1
  with pytest.raises(ValueError, match=r"config.head has no field colour"):
    validation.check(config)
  del config.head.colour
  config.rules.blocks = configuration.rule(".*", "adamix", experts=2, rank=2)
  validation.check(config)
  config.head.labels = ()
  with pytest.raises(ValueError, match="AdaMix's consistency is of two"):
    validation.check(config)


def test_a_plan_needs_no_weights(config):
  mesh, rules = tiny_run.layout(config)
  config.head.labels = ()
  found = first_step.plan(config, mesh, rules)
  # LoRA's A and B of three layers a block, and a head's kernel and bias.
  lora = 2 * 4 * ((16 + 16) + 2 * (16 + 24))
  assert found.trained == lora + 16 + 1
