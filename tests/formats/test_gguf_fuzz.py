"""Any bytes give a decoder or a ValueError, and take little memory.

A few hundred inputs, the same in every run; SIRA_JAX_FUZZ=10000 takes more.
"""

import collections
import math
import os
import struct
import tracemalloc
import zlib

from flax import nnx
import hypothesis
from hypothesis import strategies as st
import jax
import pytest

from sira_jax.formats import gguf, gguf_file, gguf_tokenizer

EXAMPLES = int(os.environ.get("SIRA_JAX_FUZZ", 200))
U8, I32, U32, F32, BOOL, TEXT, ARRAY = 0, 5, 4, 6, 7, 8, 9
# One block of a width of 32, with all other sizes 2.
MODEL = {
  "general.architecture": (TEXT, "llama"),
  "general.alignment": (U32, 64),
  "llama.block_count": (U32, 1),
  "llama.context_length": (U32, 64),
  "llama.embedding_length": (U32, 32),
  "llama.feed_forward_length": (U32, 2),
  "llama.attention.head_count": (U32, 1),
  "llama.attention.key_length": (U32, 2),
  "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
  "tokenizer.ggml.model": (TEXT, "gpt2"),
  "tokenizer.ggml.pre": (TEXT, "smollm"),
  "tokenizer.ggml.add_bos_token": (BOOL, False),
  "tokenizer.ggml.tokens": (TEXT, ["a", "b", "ab", "é", "<end>"]),
  "tokenizer.ggml.token_type": (I32, [1, 1, 1, 1, 3]),
  "tokenizer.ggml.merges": (TEXT, ["a b"]),
  "tokenizer.ggml.eos_token_id": (U32, 4),
}
F16, Q8_0 = 1, 8
# Name -> sizes, the fastest axis first, and type: 0 is float32.
TENSORS = {
  "token_embd.weight": ((32, 5), Q8_0),
  "output_norm.weight": ((32,), 0),
  "blk.0.attn_norm.weight": ((32,), 0),
  "blk.0.attn_q.weight": ((32, 2), Q8_0),
  "blk.0.attn_k.weight": ((32, 2), 0),
  "blk.0.attn_v.weight": ((32, 2), F16),
  "blk.0.attn_output.weight": ((2, 32), 0),
  "blk.0.ffn_norm.weight": ((32,), 0),
  "blk.0.ffn_gate.weight": ((32, 2), 0),
  "blk.0.ffn_up.weight": ((32, 2), 0),
  "blk.0.ffn_down.weight": ((2, 32), 0),
}
NUMBERS = {U8: "B", I32: "i", U32: "I", F32: "f", BOOL: "?"}


def text(value):
  return [("Q", len(value.encode())), ("", value.encode())]


def value(kind, given):
  """The pieces of an entry's value, with its type."""
  if isinstance(given, list):
    pieces = [piece for one in given for piece in value(kind, one)[1:]]
    return [("I", ARRAY), ("I", kind), ("Q", len(given)), *pieces]
  if kind == TEXT:
    return [("I", kind), *text(given)]
  return [("I", kind), (NUMBERS[kind], given)]


def pieces(entries=(), tensors=()):
  """A file as (kind of number or "", number or bytes), with some changes."""
  entries, tensors = MODEL | dict(entries), TENSORS | dict(tensors)
  header = [("", b"GGUF"), ("I", 3), ("Q", len(tensors)), ("Q", len(entries))]
  for name, given in entries.items():
    header += [*text(name), *value(*given)]
  offset = 0
  for name, (sizes, kind, *at) in tensors.items():
    header += [*text(name), ("I", len(sizes)), *(("Q", n) for n in sizes)]
    header += [("I", kind), ("Q", at[0] if at else offset)]
    # Each takes as much as it would as float32.
    offset = min(offset + -(-math.prod(sizes) // 16) * 64, 2**63)
  size = len(packed(header))
  zeros = bytes(-size % 64 + min(offset, 200_000))
  return [*header, ("", zeros)]


def packed(parts):
  return b"".join(
    struct.pack("<" + kind, number) if kind else number
    for kind, number in parts
  )


def spoiled_number(kind, draw):
  """Another number of that kind: an edge, or any."""
  if kind in "f?":
    return draw(st.floats(width=32) if kind == "f" else st.booleans())
  size = 8 * struct.calcsize(kind)
  low, high = (-(2 ** (size - 1)), 2 ** (size - 1)) if kind == "i" else (0, 0)
  high = high or 2**size
  edges = [low, 0, 1, 2, 3, 9, 33, 2**31, 2**32, 2**40, high - 1, high // 2]
  edges = [edge for edge in edges if low <= edge < high]
  return draw(st.sampled_from(edges) | st.integers(low, high - 1))


def somewhere(draw, size):
  """Below the size, evenly: integers alone are mostly drawn near the edges."""
  return zlib.crc32(draw(st.binary(min_size=4, max_size=4))) % size


def spoil(parts, draw):
  """Changes, drops, repeats or moves one of a file's pieces."""
  at = somewhere(draw, len(parts))
  kind, number = parts[at]
  match draw(st.sampled_from(["change", "change", "drop", "repeat", "move"])):
    case "change" if kind:
      parts[at] = kind, spoiled_number(kind, draw)
    case "change":
      parts[at] = kind, number[:-3] + draw(st.binary(max_size=3))
    case "drop":
      del parts[at]
    case "repeat":
      parts[at:at] = parts[at : at + draw(st.integers(1, 8))]
    case "move":
      parts.insert(somewhere(draw, len(parts) - 1), parts.pop(at))


# Of the right form, and perhaps another type or value than is expected.
VALUES = st.sampled_from(
  [
    (TEXT, ""),
    (TEXT, "x y"),
    (TEXT, ["a b", "a", "c", "", "a b"]),
    (TEXT, []),
    (U32, 0),
    (U32, 3),
    (U32, 2**32 - 1),
    (I32, -1),
    (I32, [3, 3]),
    (F32, 0.0),
    (F32, float("nan")),
    (F32, [1.0] * 5),
    (BOOL, True),
    (BOOL, [True]),
  ]
)
SIZES = st.lists(
  st.sampled_from([1, 2, 5, 32, 64, 2**31, 2**64 - 1]), max_size=4
)
PLACES = st.tuples(
  SIZES,
  st.integers(0, 42),
  st.sampled_from([0, 64, 33, 640, 2**40, 2**64 - 1]),
)


VERSIONS = st.sampled_from([3, 3, 3, 2, 1, 3 << 24])


@st.composite
def headers(draw):
  """A beginning that is right, and then anything."""
  counts = draw(st.tuples(*[st.integers(0, 3) | st.just(2**63)] * 2))
  start = b"GGUF" + struct.pack("<IQQ", draw(VERSIONS), *counts)
  kinds = st.sampled_from("QI").flatmap(
    lambda kind: st.integers(0, 12).map(lambda n: struct.pack("<" + kind, n))
  )
  return start + b"".join(draw(st.lists(kinds | st.binary(max_size=9))))


WAYS = ["entry", "tensor", "piece", "bits", "end", "header", "binary"]


@st.composite
def files(draw):
  """The model's file, or one that is wrong in one or several ways."""
  ways = draw(st.sampled_from(WAYS))
  if ways in ("header", "binary"):
    return draw(headers() if ways == "header" else st.binary(max_size=200))
  entries, tensors = {}, {}
  if ways == "entry":
    some = st.dictionaries(st.sampled_from([*MODEL]), VALUES, max_size=2)
    entries = draw(some)
  elif ways == "tensor":
    some = st.dictionaries(st.sampled_from([*TENSORS]), PLACES, max_size=1)
    tensors = draw(some)
  parts = pieces(entries, tensors)
  for _ in range(draw(st.integers(0, 3)) if ways == "piece" else 0):
    spoil(parts, draw)
  data = bytearray(packed(parts))
  for _ in range(draw(st.integers(0, 9)) if ways == "bits" else 0):
    bit = somewhere(draw, 8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
  return bytes(data[: somewhere(draw, len(data))] if ways == "end" else data)


def outcome(path, data):
  """Whether it was read or refused; nothing else is allowed."""
  path.write_bytes(data)
  gguf_file._read.cache_clear()
  tracemalloc.start()
  try:
    for read in (
      gguf.read_config,
      gguf_tokenizer.tokenizer,
      gguf_tokenizer.special_tokens,
    ):
      try:
        read(path)
      except ValueError:
        continue
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # What else runs here, hypothesis itself too, takes some.
  assert peak < 20 * len(data) + 100_000, peak
  try:
    gguf.load_decoder(path)
    gguf_tokenizer.tokenizer(path)
    gguf_tokenizer.special_tokens(path)
  except ValueError as error:
    assert len(str(error)) < 1000 + 40 * len(data)
    return "refused"
  return "read"


@pytest.mark.timeout(60 + EXAMPLES)
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
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
    counts[outcome(tmp_path / "any.gguf", data)] += 1

  run()
  print(dict(counts))
  assert counts["read"] > EXAMPLES / 50 and counts["refused"] > EXAMPLES / 2


MANY = 3000
MATRIX = (32, 2)


@pytest.mark.parametrize(
  "entries, tensors, message",
  [
    # What the reader did before it checked is in brackets.
    ({"x": (U8, [1] * MANY)}, {}, None),
    ({"x": (TEXT, [""] * MANY)}, {}, None),
    ({f"{i:x}": (U8, 1) for i in range(MANY)}, {}, None),
    ({}, {f"{i:x}": ((1,), 0) for i in range(MANY)}, "left over: bb7"),
    # (TypeError, ZeroDivisionError)
    ({"llama.block_count": (TEXT, "1")}, {}, "positive int, got '1'"),
    ({"llama.attention.head_count": (U32, 0)}, {}, "positive int, got 0"),
    ({"llama.attention.head_count": (I32, -1)}, {}, "positive int, got -1"),
    ({"llama.rope.freq_base": (F32, float("nan"))}, {}, "got nan"),
    (
      {"tokenizer.ggml.tokens": (TEXT, [])},
      {},
      "vocabulary of 0 tokens",
    ),
    ({"general.alignment": (U32, 0)}, {}, "alignment must be .*, got 0"),
    ({"general.architecture": (U32, 1)}, {}, "architecture .* got int"),
    # (a loop that made blocks without end)
    ({"llama.block_count": (U32, 2**31)}, {}, "are more than the 11 tensors"),
    (
      {"llama.block_count": (U32, MANY // 9)},
      {f"{i:x}": ((1,), 0) for i in range(MANY)},
      "missing: blk.332.ffn_down.weight",
    ),
    ({"llama.embedding_length": (U32, 2**31)}, {}, r"expected \(2147483648,"),
    # (exceptions of the tokenizer's library; tokens without an id)
    ({"tokenizer.ggml.merges": (TEXT, ["ab"])}, {}, "two tokens each"),
    ({"tokenizer.ggml.merges": (TEXT, ["a b c"])}, {}, "two tokens each"),
    ({"tokenizer.ggml.merges": (TEXT, ["b a"])}, {}, "that make a third"),
    ({"tokenizer.ggml.tokens": (TEXT, ["a"] * 5)}, {}, "of 5, 1 differ"),
    ({"tokenizer.ggml.token_type": (I32, [1])}, {}, "5 whole numbers"),
    ({"tokenizer.ggml.eos_token_id": (U32, 5)}, {}, "one of 5 tokens, got 5"),
    ({}, {"blk.0.attn_q.weight": (MATRIX, 99)}, "not a valid GGMLQuant"),
    ({}, {"blk.0.attn_q.weight": (MATRIX, 3, 2**63)}, "bytes from 92233720"),
    ({}, {"blk.0.attn_q.weight": ((31, 2), 3)}, "no blocks of 32, as Q4_1"),
    ({}, {"blk.0.attn_q.weight": ((0, 2), 0)}, r"of shape \(0, 2\)"),
    ({}, {"blk.0.attn_q.weight": ((2**40,) * 4, 0)}, "is said to have"),
    ({}, {"blk.0.attn_q.weight": ((2,) * 9, 0)}, "tensor of 9 axes"),
    # Many tensors that share their bytes would be larger than their file.
    ({}, {"blk.0.attn_q.weight": (MATRIX, 0, 0)}, "those from 170 to"),
    ({}, {"blk.0.attn_q.weight": (MATRIX, 0, 161)}, "bytes from 161"),
  ],
)
def test_what_a_header_says(tmp_path, entries, tensors, message):
  path = tmp_path / "said.gguf"
  got = outcome(path, packed(pieces(entries, tensors)))
  assert got == ("read" if message is None else "refused")
  if message:
    with pytest.raises(ValueError, match=message):
      gguf.load_decoder(path)
      gguf_tokenizer.tokenizer(path)
      gguf_tokenizer.special_tokens(path)


HUGE = struct.pack("<Q", 2**60)
ONE_ENTRY = struct.pack("<QQQ", 0, 1, 1) + b"x"  # of that name
FOLLOW = "says that 1152921504606846976 follow"


@pytest.mark.parametrize(
  "header, message",
  [
    # (a loop of 2**60 rounds, each of which took memory)
    (ONE_ENTRY + struct.pack("<II", ARRAY, U8) + HUGE, FOLLOW),
    (ONE_ENTRY + struct.pack("<I", TEXT) + HUGE, FOLLOW),
    (ONE_ENTRY + struct.pack("<II", ARRAY, TEXT) + HUGE, "ends after 49 bytes"),
    (HUGE + struct.pack("<Q", 0), "it ends after 24 bytes"),
    (struct.pack("<Q", 0) + HUGE, "it ends after 24 bytes"),
    (struct.pack("<QQ", 0, 1) + HUGE, FOLLOW),
    # (RecursionError)
    (
      ONE_ENTRY + struct.pack("<I", ARRAY) + struct.pack("<IQ", 9, 1) * MANY,
      "an entry of type 9",
    ),
    (ONE_ENTRY[:-1] + b"\xff", "can't decode"),
    (ONE_ENTRY + struct.pack("<IB", BOOL, 2), "neither 0 nor 1"),
    (struct.pack("<QQ", 0, 2) + (bytes(12) + b"\1") * 2, "two entries ''"),
  ],
  ids=range(10),
)
def test_what_a_beginning_says(tmp_path, header, message):
  path = tmp_path / "said.gguf"
  assert outcome(path, b"GGUF\3\0\0\0" + header) == "refused"
  with pytest.raises(ValueError, match=message):
    gguf.read_config(path)


def test_weights_are_not_the_files(tmp_path):
  """What is written into it later changes none that were read."""
  path = tmp_path / "later.gguf"
  path.write_bytes(packed(pieces()))
  model = gguf.load_decoder(path)
  size = path.stat().st_size
  with path.open("r+b") as file:
    file.seek(size // 2)
    file.write(b"\1" * (size - size // 2))
  for leaf in jax.tree.leaves(nnx.state(model)):
    assert not leaf.any()
