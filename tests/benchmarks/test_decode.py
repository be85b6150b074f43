"""The table of decoding speeds has what it says."""

import dataclasses

from benchmarks import decode


def test_rows_are_of_each_model_in_turn(monkeypatch):
  small = dict(vocabulary_size=64, layers=1, d_model=32, heads=2, kv_heads=1)
  config = dataclasses.replace(decode.CONFIG, **small, head_dim=8, d_ff=32)
  asked, seconds = [], iter(range(100))
  clock = lambda: float(next(seconds))  # noqa: E731

  def greedy(model, prompts, *, max_new_tokens, eos_id, batch_size):
    asked.append((len(prompts), max_new_tokens, eos_id, batch_size))
    if len(asked) % 5 == 0:  # the last of each round takes three times as long
      clock(), clock()

  monkeypatch.setattr(decode.time, "perf_counter", clock)
  monkeypatch.setattr(decode.decoding, "greedy", greedy)
  found = decode.models(config)
  assert list(found) == [decode.REFERENCE, *decode.ADAPTERS]
  rows = decode.measure(found, batch=2, tokens=3, rounds=2)
  assert asked == [(2, 3, 64, 2)] * 15
  assert [row["ratio"] for row in rows] == [1, 1, 1, 1, 3]
  assert [row["tokens a second"] for row in rows] == [6, 6, 6, 6, 2]
  assert "| lora, rank 64 | 2 | 6.0 | 1.00 |" in decode.table(rows)
