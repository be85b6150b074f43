"""The benchmark of the executions runs, and says what it measured."""

import json
import math

from benchmarks import execution as benchmark


def test_quick(tmp_path, capsys):
  file = tmp_path / "made" / "execution.json"
  benchmark.main(["--quick", f"--out={file}"])
  rows = json.loads(file.read_text())
  programs = {row["program"] for row in rows}
  assert programs == {
    benchmark.REFERENCE,
    "lora, rank of a token",
    "rank_space",
    "dispatch",
    "gather",
  }
  assert len(rows) == 2 * len(programs)
  by_name = {(row["pass"], row["program"]): row for row in rows}
  for kind in benchmark.PASSES:
    assert by_name[kind, benchmark.REFERENCE]["ratio"] == 1
    flops = {p: by_name[kind, p]["gigaflop"] for p in programs}
    # 2 rows of 16 tokens through 32 -> 32 and 32 ranks of 8 experts' 4.
    products = 2 * 32 * (32 * 32 + 2 * 32 * 32) / 1e9
    assert math.isclose(flops[benchmark.REFERENCE], products, rel_tol=0.2) == (
      kind == "forward"
    )
    assert flops["lora, rank of a token"] < flops[benchmark.REFERENCE]
    assert flops["rank_space"] > flops[benchmark.REFERENCE]
  table = capsys.readouterr().out.split("\n\n")[-1].strip().splitlines()
  assert len(table) == 2 + len(programs)
  assert all(line.count("|") == 7 for line in table)
  assert "| rank_space | " in table[4]


def test_dispatch_is_left_out_where_it_would_fill_the_memory():
  small, large = (
    benchmark.Setting(8, length, d=8, experts=4, rank=1, k=4)
    for length in (256, 8192)
  )
  assert "dispatch" in benchmark.factories(small)
  assert "dispatch" not in benchmark.factories(large)
