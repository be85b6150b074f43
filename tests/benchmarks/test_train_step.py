# SPDX-License-Identifier: Apache-2.0
"""The benchmark of whole steps runs, and says what it measured."""

import dataclasses
import gc
import json
import math
import sys

from flax import nnx
import jax
import pytest

from benchmarks import step_flops, step_models, step_programs, train_step
from benchmarks.step_models import EncoderDecoder, Setting
from benchmarks.step_presets import Preset
from sira_jax.adapters import surgery


def test_quick(tmp_path, capsys):
  file = tmp_path / "made" / "step.json"
  train_step.main(["--quick", f"--out={file}"])
  found = json.loads(file.read_text())
  assert {"device", "cpu", "versions", "commit"} < set(found)
  rows = {row["program"]: row for row in found["rows"]}
  assert list(rows) == list(train_step.PRESETS["quick"].programs)
  assert rows[train_step.REFERENCE]["ratio"] == 1
  assert rows["frozen"]["added_seconds"] == 0
  for name, row in rows.items():
    assert math.isclose(row["tokens_a_second"] * row["seconds"], 32)
    assert ("utilisation" in row) == (name != "forward")
  # The one-hot tensor: 2 rows of 16 tokens, 16 experts of 16 places.
  extra = rows["dispatch"]["temporary"] - rows["sira"]["temporary"]
  assert extra > 2 * 16 * 16 * 16 * 4
  assert rows["sira"]["planned"] > rows["sira"]["temporary"]
  table = capsys.readouterr().out.split("\n\n")[-1].strip().splitlines()
  assert len(table) == 2 + len(rows)
  assert len({line.count("|") for line in table}) == 1


def test_flops_by_hand():
  setting = Setting("tiny", rows=2, length=16, share=0.5)
  # q and o are 32 x 32, k and v 32 x 16, the three others 32 x 64; 32 tokens
  # go through two blocks of them and back, but not into the first q, k and v;
  # 16 have 128 logits and their gradients.
  block, spared = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64, 2 * 32 * 32
  matmuls = 2 * 32 * (2 * 2 * block - spared) + 2 * 2 * 16 * 32 * 128
  # 136 pairs of a row see each other, by 4 heads of 8, in two products, and
  # in four backward.
  attention = 2 * 2 * 136 * 32 * 2 * 6
  found = step_flops.step_flops(setting)
  assert found == {"matmuls": matmuls, "attention": attention}
  late = Setting("tiny", rows=2, length=16, share=0.5, modules=("down_proj",))
  fewer = 2 * 32 * (block - spared)
  assert step_flops.step_flops(late)["matmuls"] == matmuls - fewer


T5 = EncoderDecoder("t5-tiny", rows=2, length=16, share=0.5, targets_length=8)


def test_flops_of_an_encoder_decoder_by_hand():
  # q, k, v and o are 32 x 24, the three others 32 x 64; 32 tokens are read,
  # 16 are written. Two blocks read; three write, and project the 32 to k and v
  # in their cross-attention.
  inner, outer = 32 * 24, 32 * 64
  reading = 32 * (4 * inner + 3 * outer)
  writing = 16 * (4 * inner + 2 * inner + 3 * outer) + 32 * 2 * inner
  # There and back, but not into the first q, k and v of either side; 8 tokens
  # have 128 logits and their gradients.
  weights = 2 * (2 * 2 * reading + 2 * 3 * writing - (32 + 16) * 3 * inner)
  logits = 2 * 2 * 8 * 32 * 128
  # All 256 pairs of a row in the encoder, 36 in the decoder, 128 between them;
  # 3 heads of 8, two products forward and four backward.
  attention = 2 * 6 * 2 * 24 * (2 * 256 + 3 * (36 + 128))
  found = step_flops.step_flops(T5)
  assert found == {"matmuls": weights + logits, "attention": attention}
  # Where wo alone is adapted, gradients of the decoder's first block end at
  # what its cross-attention mixes: before it there is no q and no o, either.
  late = dataclasses.replace(T5, modules=("wo",))
  fewer = 2 * (32 * (inner + 3 * outer) + 16 * 2 * inner)
  assert step_flops.step_flops(late)["matmuls"] == weights + logits - fewer


def test_encoder_decoder(tmp_path, capsys):
  programs = ("sira", "frozen")
  setting = dataclasses.replace(T5, layers=1)
  preset = Preset(setting, (0.5,), programs, rounds=2, side=64, plan=True)
  rows = train_step.run(preset, (16,), (), tmp_path / "step.json")
  assert [row["program"] for row in rows] == list(programs)
  for row in rows:
    assert math.isclose(row["tokens_a_second"] * row["seconds"], 48)
    assert row["utilisation"] > 0
  assert rows[0]["planned"] > rows[0]["temporary"]
  title = "t5-tiny, 1 + 1 layers, 2 x 16 + 2 x 8, 50% targets, float32"
  assert f"\n{title}; the large product" in capsys.readouterr().out


def test_adapters_of_an_encoder_decoder():
  """On every projection of all attention; "frozen" begins on both sides."""
  paths = {
    pattern: {
      site.path
      for site in surgery.sites(
        step_programs.adapted(
          step_models.base(T5), pattern, dict(method="lora", rank=1)
        )
      )
    }
    for pattern in (T5.pattern, T5.PROBE)
  }
  places = [f"encoder.blocks.{i}.attention" for i in range(2)] + [
    f"decoder.blocks.{i}.{name}"
    for i in range(3)
    for name in ("attention", "cross_attention")
  ]
  assert paths[T5.pattern] == {f"{one}.{n}" for one in places for n in "qkvo"}
  assert paths[T5.PROBE] == {
    f"{side}.blocks.0.attention.q" for side in ("encoder", "decoder")
  }


@pytest.mark.parametrize("setting", [Setting("tiny", rows=2, length=16), T5])
def test_peers_are_as_large(setting):
  """And take their steps, where PyTorch is."""
  peers = pytest.importorskip("benchmarks.torch_peers")
  ours = jax.tree.leaves(nnx.state(step_models.base(setting), nnx.Param))
  theirs = peers.base(setting.config, "float32", "cpu").parameters()
  assert sum(p.size for p in ours) == sum(p.numel() for p in theirs)
  names = ["peft", "loops", "dense"]
  made = train_step.peers(setting, names, 16)
  assert list(made) == names
  for program in made.values():
    assert math.isfinite(program.run(2))


def test_peers_that_fail_are_left_out_and_freed(monkeypatch, capsys):
  """Of layers that are not there: one fails at once, one later."""
  peers = pytest.importorskip("benchmarks.torch_peers")
  kind = peers.transformers.T5ForConditionalGeneration
  release, alive = peers.release, []

  def count():
    release()
    alive.append(sum(type(one) is kind for one in gc.get_objects()))

  monkeypatch.setattr(peers, "release", count)
  setting = dataclasses.replace(T5, modules=("absent",))
  assert train_step.peers(setting, ["peft", "loops"], 16) == {}
  assert alive == [0, 0]
  assert capsys.readouterr().out.count("left out, ") == 2


def test_tables_of_experts_and_lengths():
  preset = train_step.PRESETS["cpu"]
  made = train_step.tables(preset, (4, 64), (128, 256))
  assert [(s.length, s.share) for s, _ in made] == [
    (128, 1.0),
    (128, 0.4),
    (256, 1.0),
    (256, 0.4),
  ]
  settings = made[0][1]
  sizes = {
    n: (s["experts"], s["rank"]) for n, s in settings.items() if "k" in s
  }
  assert sizes == {"sira, 4 experts": (4, 16), "sira, 64 experts": (64, 1)}
  assert train_step.REFERENCE in settings


def test_without_pytorch(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "benchmarks.torch_peers", None)
  monkeypatch.delattr("benchmarks.torch_peers", raising=False)
  setting = train_step.PRESETS["quick"].setting
  assert train_step.peers(setting, ["peft", "loops"], 16) == {}
  assert "left out" in capsys.readouterr().out
