"""Weights are read by those who hold them, and not kept twice."""

import dataclasses
import json

import pytest

from benchmarks import loading

CONFIG = dataclasses.replace(loading.CONFIG, vocabulary_size=8000, layers=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("large")
  return folder / "model", *loading.write(folder, CONFIG)


@pytest.mark.parametrize("processes", [1, 2])
def test_each_process_reads_its_own_once(written, processes):
  folder, size, _, largest = written
  found = [json.loads(one) for one in loading.started(folder, processes)]
  assert len(found) == processes
  for one in found:
    assert one["read"] == one["held"] == size // processes
    # Were the file's pages kept, it would be as much again as it holds.
    spare = 100 * 2**20
    assert one["peak"] < one["held"] + largest + spare < 2 * size
