# SPDX-License-Identifier: Apache-2.0
"""What we write, read by transformers and PEFT themselves where installed."""

import numpy as np
import pytest

from sira_jax import export_check
from sira_jax.adapters import surgery
from sira_jax.formats import bases, huggingface, huggingface_writer
from sira_jax.formats import peft as peft_lib
from tests import tiny_base
from tests.formats import test_peft_logits
from tests.tiny_t5 import GOLDEN, error

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
AUTO = {
  "tiny_llama_sharded": transformers.AutoModelForCausalLM,
  "tiny_t5_gated": transformers.AutoModelForSeq2SeqLM,
}
OURS = {
  "input_ids": "encoder_input_tokens",
  "decoder_input_ids": "decoder_input_tokens",
}


def features(name):
  tokens = np.random.default_rng(5).integers(1, 60, (2, 9)).astype(np.int32)
  if "t5" in name:
    return {"input_ids": tokens, "decoder_input_ids": tokens[:, ::-1].copy()}
  return {"input_ids": tokens}


def theirs(model, given):
  with torch.no_grad():
    given = {key: torch.tensor(value).long() for key, value in given.items()}
    return model.eval()(**given).logits.numpy()


def ours(model, given):
  if len(given) == 1:
    return export_check.logits(
      model, {"decoder_input_tokens": given["input_ids"]}
    )
  return export_check.logits(model, {OURS[k]: v for k, v in given.items()})


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("name", AUTO)
def test_peft_reads_our_folders(name, uniform, tmp_path):
  model = test_peft_logits.trained(name)
  pairs = {
    huggingface.module_name(model, path): tuple(
      np.asarray(part) for part in layer.adapter.low_rank()
    )
    for path, layer in surgery.adapted(model).items()
  }
  peft_lib.write(
    tmp_path,
    pairs,
    base=name,
    encoder_decoder="t5" in name,
    uniform=uniform,
  )
  base = AUTO[name].from_pretrained(GOLDEN / name)
  given = features(name)
  plain = theirs(base, given)
  got = theirs(peft.PeftModel.from_pretrained(base, tmp_path), given)
  expected = ours(model, given)
  assert error(got, expected) < 1e-5
  assert error(got, plain) > 0.1


@pytest.mark.parametrize("name", AUTO)
def test_transformers_reads_merged_weights(name, tmp_path):
  model = test_peft_logits.trained(name)
  given = features(name)
  expected = ours(model, given)
  surgery.merge(model)
  huggingface_writer.write(
    tmp_path,
    model,
    source=GOLDEN / name,
    tokenizer=None,
    eos_id=1,
    shard=4000,
  )
  got = theirs(AUTO[name].from_pretrained(tmp_path), given)
  assert error(got, expected) < 1e-5


def test_transformers_reads_a_decoder_of_a_gguf_file(tmp_path):
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
  given = features("llama")
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert error(theirs(model, given), ours(base.model, given)) < 1e-5
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  text = "Turn on the light in the kitchen"
  assert tokenizer(text).input_ids == base.tokenizer.encode(text).ids
  assert tokenizer.eos_token_id == base.eos_id
