# SPDX-License-Identifier: Apache-2.0
"""The benchmark of whole steps runs, and says what it measured."""

import json
import math
import sys

from benchmarks import step_programs, train_step
from benchmarks.step_programs import Setting


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
  found = step_programs.step_flops(setting)
  assert found == {"matmuls": matmuls, "attention": attention}
  late = Setting("tiny", rows=2, length=16, share=0.5, modules=("down_proj",))
  fewer = 2 * 32 * (block - spared)
  assert step_programs.step_flops(late)["matmuls"] == matmuls - fewer


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
