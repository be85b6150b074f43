"""Any bytes give tensors or a ValueError, and take little memory.

A few hundred inputs, the same in every run; SIRA_JAX_FUZZ=10000 takes more.
"""

import collections
import copy
import json
import os
import tracemalloc
import zlib

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from sira_jax.formats import safetensors_file

EXAMPLES = int(os.environ.get("SIRA_JAX_FUZZ", 200))
HEADER = {
  "__metadata__": {"format": "pt"},
  "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
  "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
  "c": {"dtype": "I64", "shape": [], "data_offsets": [34, 42]},
  "d": {"dtype": "F16", "shape": [0, 7], "data_offsets": [42, 42]},
}
DATA = bytes(range(42))


def packed(header, data=DATA, size=None):
  text = header if type(header) is bytes else json.dumps(header).encode()
  size = len(text) if size is None else size
  return size.to_bytes(8, "little") + text + data


ANY = st.recursive(
  st.none()
  | st.booleans()
  | st.sampled_from([0, 1, 2, 24, 34, 42, -1, 2**31, 2**63, 2**200, 1.5, "F32"])
  | st.text(max_size=3),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=2)
  ),
  max_leaves=5,
)


def spoiled(header, draw):
  """One of the header's values changed, gone, or another's."""
  header = copy.deepcopy(header)
  name = draw(st.sampled_from([*header, "new"]))
  match draw(st.sampled_from(["whole", "field", "number", "drop", "repeat"])):
    case "field" if name in header:
      field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))
      header[name][field] = draw(ANY)
    case "number" if name in "abcd":
      offsets = header[name]["data_offsets"]
      offsets[draw(st.integers(0, 1))] += draw(st.sampled_from([-24, -2, 1, 8]))
    case "drop":
      header.pop(name, None)
    case "repeat" if name in "abcd":
      header["again"] = header[name]
    case _:
      header[name] = draw(ANY)
  return header


def somewhere(draw, size):
  """Below the size, evenly."""
  return zlib.crc32(draw(st.binary(min_size=4, max_size=4))) % size


@st.composite
def files(draw):
  """The file, or one that is wrong in some way."""
  way = draw(
    st.sampled_from(
      ["right", "header", "json", "size", "bits", "end", "binary"]
    )
  )
  if way == "binary":
    return draw(st.binary(max_size=100))
  if way == "json":
    return packed(json.dumps(draw(ANY)).encode(), draw(st.binary(max_size=9)))
  if way == "size":
    edges = [0, 1, 2**20, 2**27, 2**63, 2**64 - 1]
    return packed(HEADER, size=draw(st.sampled_from(edges)))
  header = spoiled(HEADER, draw) if way == "header" else HEADER
  data = bytearray(packed(header))
  for _ in range(draw(st.integers(0, 9)) if way == "bits" else 0):
    bit = somewhere(draw, 8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
  return bytes(data[: somewhere(draw, len(data))] if way == "end" else data)


def outcome(path, data):
  """Whether it was read or refused; nothing else is allowed."""
  path.write_bytes(data)
  tracemalloc.start()
  try:
    tensors = safetensors_file.read(path)
    _, peak = tracemalloc.get_traced_memory()
  except ValueError as error:
    _, peak = tracemalloc.get_traced_memory()
    assert len(str(error)) < 2000
    tensors = None
  finally:
    tracemalloc.stop()
  # What else runs here takes some.
  assert peak < 50 * len(data) + 200_000, peak
  if tensors is None:
    return "refused"
  # All can be read, and they are all of the data.
  size = 8 + int.from_bytes(data[:8], "little")
  assert sum(len(t.tobytes()) for t in tensors.values()) == len(data) - size
  return "read"


@pytest.mark.timeout(60 + EXAMPLES)
def test_any_bytes(tmp_path):
  counts = collections.Counter()

  @hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(files())
  def run(data):
    counts[outcome(tmp_path / "any.safetensors", data)] += 1

  run()
  print(dict(counts))
  assert counts["read"] > EXAMPLES / 50 and counts["refused"] > EXAMPLES / 2


def test_what_it_reads(tmp_path):
  path = tmp_path / "right.safetensors"
  path.write_bytes(packed(HEADER))
  tensors = safetensors_file.read(path)
  assert list(tensors) == ["a", "b", "c", "d"]
  np.testing.assert_array_equal(
    tensors["a"], np.frombuffer(DATA[:24], "<f4").reshape(2, 3)
  )
  # bfloat16 is the upper half of a float32.
  wide = np.frombuffer(DATA[24:34], "<u2").astype("<u4") << 16
  np.testing.assert_array_equal(
    tensors["b"].astype(np.float32), wide.view("<f4")
  )
  assert tensors["c"].shape == () and tensors["d"].shape == (0, 7)


def entry(begin, end, shape=(2, 3), dtype="F32", **more):
  return dict(dtype=dtype, shape=shape, data_offsets=[begin, end], **more)


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "ends before its header"),
    (packed(HEADER, size=2**60), "said to have 1152921504606846976 bytes"),
    (packed(b"[]", b""), "holds a list"),
    (packed(b"{", b""), "Expecting"),
    (packed(b"\xff", b""), "can't decode"),
    (packed(b"[" * 100_000, b""), "recursion"),
    (packed(b'{"a": ' * 100_000, b""), "recursion"),
    (packed(b'{"a": 1, "a": 2}', b""), "says 'a' twice"),
    (packed(b'{"a": {"b": 1, "b": 1}}', b""), "says 'b' twice"),
    (packed(b"1" * 5000, b""), "Exceeds the limit"),
    (packed({"a": entry(0, 20)}), "of 24 bytes is said to be at .0, 20."),
    (packed({"a": entry(24, 0)}), r"said to be at \[24, 0\)"),
    (packed({"a": entry(0, 24), "b": entry(20, 44)}), "first 24 are taken"),
    (packed({"a": entry(0, 24), "b": entry(0, 24)}), "first 24 are taken"),
    (packed({"a": entry(2, 26)}), "of which the first 0 are taken"),
    (packed({"a": entry(0, 24)}), "18 of its bytes belong to no tensor"),
    (packed({"a": entry(0, 24)}, bytes(8)), r"at \[0, 24\) of 8"),
    (packed({"a": entry(0, 24, dtype="F8_E4M3")}), "dtype 'F8_E4M3'; known"),
    (packed({"a": entry(0, 24, shape=[2**62] * 9)}), "said to be of shape"),
    (packed({"a": entry(0, 24, shape=[True, 6])}), "said to be of shape"),
    (packed({"a": entry(0, 24, shape=[-1, -6])}), "said to be of shape"),
    (packed({"a": entry(0, 24, more=1)}), "not by dtype, shape and data_off"),
    (packed({"a": 3}), "described by 3"),
  ],
  ids=range(23),
)
def test_what_a_header_says(tmp_path, data, message):
  path = tmp_path / "said.safetensors"
  assert outcome(path, data) == "refused"
  with pytest.raises(ValueError, match=message):
    safetensors_file.read(path)


def folder(path, places, **files):
  """A folder of files of one tensor each, and an index."""
  for file, name in files.items():
    data = packed({name: entry(0, 24)}, bytes(24))
    (path / f"{file}.safetensors").write_bytes(data)
  text = json.dumps({"metadata": {}, "weight_map": places})
  (path / safetensors_file.INDEX).write_text(text)
  return path


A, B = "one.safetensors", "two.safetensors"


def test_an_index(tmp_path):
  made = folder(tmp_path, {"a": A, "b": B}, one="a", two="b", unnamed="c")
  assert [*safetensors_file.read_folder(made)] == ["a", "b"]


@pytest.mark.parametrize(
  "places, message",
  [
    ({"a": "../one.safetensors"}, r"got '\.\./one.safetensors'"),
    ({"a": "/etc/passwd"}, "got '/etc/passwd'"),
    ({"a": "..\\one.safetensors"}, "expected names of .safetensors"),
    ({"a": ".safetensors"}, "expected names of .safetensors"),
    ({"a": "one.bin"}, "got 'one.bin'"),
    ({"a": [A]}, "expected names of .safetensors"),
    ({"a": "three.safetensors"}, "there is no three.safetensors"),
    ({}, "expected a weight_map"),
    ([A], "expected a weight_map"),
    ({"a": B, "b": A}, f"a is in {A}, said to be {B}\n.*b is in"),
    ({"a": A, "b": B, "c": A}, f"c is not in {A}"),
    ({"a": A, "x": B}, f"(?s)b is in {B}, said to be nowhere.*x is not in"),
  ],
  ids=range(12),
)
def test_an_index_that_is_none(tmp_path, places, message):
  made = folder(tmp_path, places, one="a", two="b")
  with pytest.raises(ValueError, match=message):
    safetensors_file.read_folder(made)


def test_a_folder_without_weights(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(ValueError, match=r"found \['pytorch_model.bin'\]"):
    safetensors_file.read_folder(tmp_path)
