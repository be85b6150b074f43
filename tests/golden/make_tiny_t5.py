# SPDX-License-Identifier: Apache-2.0
"""Makes folders of tiny random Hugging Face models, and their logits.

Run `python tests/golden/make_tiny_t5.py` with torch, transformers and
safetensors installed; the folders beside this file came from torch 2.13.0 and
transformers 5.23.0. Each holds what `save_pretrained` writes, and in
`expected.npz` inputs and float32 logits. `relative_buckets.npz` has Hugging
Face's buckets of distances.
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers.models.t5 import modeling_t5

FOLDER = pathlib.Path(__file__).parent
# heads * d_kv is not d_model, and distances reach beyond the last bucket.
SIZES = dict(
  vocab_size=64,
  d_model=16,
  d_kv=8,
  num_heads=3,
  d_ff=24,
  num_layers=2,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=12,
  layer_norm_epsilon=1e-3,
  decoder_start_token_id=0,
)
GATED = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def randomize(model) -> None:
  """Large enough for softmax, activations and norms to be far from linear."""
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(std=0.3).add_(float(parameter.ndim == 1))


def save(model, name: str, expected, **options) -> None:
  """What `save_pretrained` writes, less what generation alone reads."""
  model.save_pretrained(FOLDER / name, **options)
  for file in (FOLDER / name).iterdir():
    file.chmod(0o644)
  (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
  arrays = {key: value.float().numpy() for key, value in expected.items()}
  np.savez_compressed(FOLDER / name / "expected.npz", **arrays)
  print(name, arrays["logits"].shape, np.abs(arrays["logits"]).mean())


def t5(name: str, kind: str = "T5", *, untied: bool = False, **changes) -> None:
  """A T5: rows of 20 and 13 tokens in, 15 tokens out."""
  torch.manual_seed(len(name))
  config = getattr(transformers, f"{kind}Config")(**(SIZES | changes))
  model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
  if untied:
    # transformers 5 ties all, unless a checkpoint has two tensors.
    shape = model.lm_head.weight.shape
    model.lm_head.weight = torch.nn.Parameter(torch.empty(shape))
  if kind == "UMT5":
    # Else transformers 5 scales the logits of a last layer of its own. This
    # also makes it write the embedding table three times.
    model.config.tie_word_embeddings = False
  randomize(model)
  tokens = torch.randint(1, config.vocab_size, (2, 20))
  tokens[1, 13:] = 0
  targets = torch.randint(1, config.vocab_size, (2, 15))
  targets[:, 0] = 0
  with torch.no_grad():
    logits = model.eval()(
      input_ids=tokens,
      attention_mask=(tokens != 0).long(),
      decoder_input_ids=targets,
      decoder_attention_mask=torch.ones_like(targets),
    ).logits
  expected = dict(encoder_input_tokens=tokens, decoder_input_tokens=targets)
  save(model, name, expected | {"logits": logits})


def llama(name: str, *, tied: bool, dtype=torch.float32, **options) -> None:
  """A Llama: rows of 12 tokens."""
  torch.manual_seed(len(name))
  config = transformers.LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=24,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    rms_norm_eps=1e-3,
    max_position_embeddings=64,
    tie_word_embeddings=tied,
    attn_implementation="eager",
  )
  model = transformers.LlamaForCausalLM(config)
  randomize(model)
  # The logits of the rounded weights, computed in float32.
  for parameter in model.parameters():
    parameter.data = parameter.data.to(dtype).float()
  tokens = torch.randint(config.vocab_size, (2, 12))
  with torch.no_grad():
    logits = model.eval()(tokens).logits
  expected = dict(decoder_input_tokens=tokens, logits=logits)
  save(model.to(dtype), name, expected, **options)


def buckets() -> None:
  """Of relative positions from -300 to 300."""
  bucket = modeling_t5.T5Attention._relative_position_bucket
  found = {
    f"{side}_{count}_{far}": bucket(
      torch.arange(-300, 301), side == "both", count, far
    ).numpy()
    for side in ("both", "before")
    for count, far in ((32, 128), (8, 12), (64, 256))
  }
  np.savez_compressed(FOLDER / "relative_buckets.npz", **found)


if __name__ == "__main__":
  transformers.logging.set_verbosity_error()
  t5("tiny_t5_relu")
  t5("tiny_t5_gated", untied=True, **GATED)
  t5("tiny_mt5", "MT5", untied=True, **GATED)
  byt5 = dict(vocab_size=384, num_layers=3, num_decoder_layers=1)
  t5("tiny_byt5", untied=True, **(GATED | byt5))
  t5("tiny_umt5", "UMT5", untied=True, **GATED)
  llama("tiny_llama_bfloat16", tied=True, dtype=torch.bfloat16)
  llama("tiny_llama_sharded", tied=False, max_shard_size="8KB")
  buckets()
