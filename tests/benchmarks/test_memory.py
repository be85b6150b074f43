"""The table of memory, on a model of one layer."""

import pytest

from benchmarks import memory, step_models, step_programs


def test_rows():
  """What is trained counts three times with AdamW: itself and two moments."""
  setting = step_models.Setting("tiny", rows=2, length=16, layers=1)
  lora, sira = memory.measure(setting, ("lora", "sira"), experts=4, total=8)
  # q and o: 32 -> 32; k and v: 32 -> 16; each rank 8.
  assert lora["trained"] == 8 * (2 * 64 + 2 * 48)
  assert sira["trained"] == lora["trained"] + 4 * 32 * 4  # routers
  for row in (lora, sira):
    assert row["training"] >= 3 * 4 * row["trained"]
    assert row["training"] < 3 * 4 * row["trained"] + 100
    parts = row["weights"] + row["training"] + row["temporaries"]
    assert 0 < row["temporaries"] < row["total"] and parts <= row["total"]
  assert lora["weights"] == sira["weights"]
  longer = step_models.Setting("tiny", rows=2, length=64, layers=1)
  (row,) = memory.measure(longer, ("lora",), experts=4, total=8)
  assert row["temporaries"] > 2 * lora["temporaries"]


def test_table():
  rows = [
    dict(method="lora", trained=1000, weights=3 * 2**20, training=2**20,
         temporaries=10 * 2**20, total=14 * 2**20),
    dict(method="sira", trained=1500, weights=3 * 2**20, training=2**20,
         temporaries=11 * 2**20, total=15 * 2**20),
  ]  # fmt: skip
  assert memory.table(rows).splitlines()[2:] == [
    "| lora | 1,000 | 3 | 1 | 10 | 1.00 | 14 | 1.00 |",
    "| sira | 1,500 | 3 | 1 | 11 | 1.10 | 15 | 1.07 |",
  ]


@pytest.mark.parametrize("name", memory.METHODS)
def test_every_method_has_settings(name):
  assert name in step_programs.ours(16, 64, [name])
