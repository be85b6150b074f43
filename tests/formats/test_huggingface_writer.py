# SPDX-License-Identifier: Apache-2.0
"""Models are written as Hugging Face folders that hold just them."""

import json
import shutil

from flax import nnx
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sira_jax.formats import (
  bases,
  gguf,
  huggingface,
  huggingface_writer,
  safetensors_file,
)
from tests import tiny_base, tiny_t5
from tests.tiny_t5 import GOLDEN

NAMES = ["tiny_llama_sharded", "tiny_llama_bfloat16", "tiny_t5_gated"]


def written(folder, model, source, **options):
  return huggingface_writer.write(
    folder, model, source=source, tokenizer=None, eos_id=1, **options
  )


def equal(one, two):
  one, two = (
    dict(nnx.to_flat_state(nnx.state(m, nnx.Param))) for m in (one, two)
  )
  assert one.keys() == two.keys()
  for path, variable in one.items():
    assert variable.dtype == two[path].dtype
    np.testing.assert_array_equal(variable[...], two[path][...])


@pytest.mark.parametrize("shard", [2000, 10**9])
@pytest.mark.parametrize("name", NAMES)
def test_folders_hold_what_they_came_from(name, shard, tmp_path):
  """Tensor by tensor what Hugging Face wrote, in one file or in many."""
  dtype = "bfloat16" if "bfloat16" in name else "float32"
  model = huggingface.load_model(GOLDEN / name, dtype=dtype)
  files = written(tmp_path, model, GOLDEN / name, shard=shard)
  assert (len(files) > 1) == (shard == 2000)
  assert (files == [safetensors_file.SINGLE]) == (shard > 2000)
  for file in files:
    tensors = safetensors_file.read(tmp_path / file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size <= shard or len(tensors) == 1
  theirs = safetensors_file.read_folder(GOLDEN / name)
  ours = safetensors_file.read_folder(tmp_path)
  copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
  assert ours.keys() == theirs.keys() - copies
  for key, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[key])
    assert tensor.dtype == theirs[key].dtype
  equal(huggingface.load_model(tmp_path, dtype=dtype), model)


def test_the_index_says_where_each_tensor_is(tmp_path):
  name = "tiny_llama_sharded"
  model = huggingface.load_model(GOLDEN / name)
  files = written(tmp_path, model, GOLDEN / name, shard=4000)
  index = json.loads((tmp_path / safetensors_file.INDEX).read_text())
  for file in files:
    for key in safetensors.load_file(tmp_path / file):
      assert index["weight_map"][key] == file
  parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
  size = sum(variable[...].nbytes for _, variable in parameters)
  assert index["metadata"] == {"total_size": size}


def test_a_decoder_of_a_file_gets_config_and_tokenizer(tmp_path):
  file = tmp_path / "tiny.gguf"
  tiny_base.write(file)
  base = bases.load(uri=str(file))
  folder = tmp_path / "folder"
  huggingface_writer.write(
    folder,
    base.model,
    source=file,
    tokenizer=base.tokenizer,
    eos_id=base.eos_id,
  )
  again = bases.load(uri=str(folder))
  equal(again.model, base.model)
  assert again.model.config == gguf.read_config(file)
  assert again.eos_id == base.eos_id
  text = "Turn on the light"
  assert again.tokenizer.encode(text).ids == base.tokenizer.encode(text).ids


def test_the_tokenizer_of_a_folder_is_kept(tmp_path):
  source = tmp_path / "source"
  shutil.copytree(GOLDEN / "tiny_t5_gated", source)
  tiny_t5.word_tokenizer(source, eos_token="</s>")
  model = huggingface.load_model(source)
  written(tmp_path / "made", model, source)
  for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
    made = (tmp_path / "made" / name).read_bytes()
    assert made == (source / name).read_bytes()
