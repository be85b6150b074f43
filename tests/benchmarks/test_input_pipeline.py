"""The table of input pipelines is of both, packed and not."""

import numpy as np

from benchmarks import input_pipeline
from tests import tiny_run


def test_each_way_has_its_rates(tmp_path):
  config = tiny_run.config("lora", tiny_run.base(tmp_path))
  ways = input_pipeline.open_both(config, tmp_path)
  rows = input_pipeline.measure(ways, batches=4, rounds=1, step=0.0, on=2)
  assert [row["way"] for row in rows] == [
    *("streaming, unpacked", "cached, unpacked"),
    *("streaming, packed", "cached, packed"),
  ]
  assert all(row["tokens a second"] > row["examples a second"] for row in rows)
  assert "| cached, packed | " in input_pipeline.table(rows, on=2)


def test_what_counts_as_a_token():
  tokens = np.array([[5, 6, 7, 0], [8, 0, 0, 0]])
  assert input_pipeline._sizes({"decoder_target_tokens": tokens}) == (2, 4)
  packed = {
    "decoder_target_tokens": tokens,
    "decoder_segment_ids": np.array([[1, 2, 2, 0], [1, 0, 0, 0]]),
  }
  assert input_pipeline._sizes(packed) == (3, 4)
