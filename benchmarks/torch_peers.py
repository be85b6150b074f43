# SPDX-License-Identifier: Apache-2.0
"""The same training step in PyTorch: PEFT, and mixtures as others run them.

`loops` visits the experts one after another, each with the tokens that chose
it (index_select and index_add), as MoE-PEFT does. `dense` has every expert's
whole output, [experts batch length f], and sums them by the router's weights,
as MoLoRA's released code does. Both are written here, beside `nn.Linear`.
"""

from collections.abc import Callable, Mapping, Sequence
import gc

import numpy as np
import peft
import torch
from torch import nn
import torch.nn.functional as F
import transformers

from sira_jax.models import decoder, t5_blocks

NAMES = ("peft", "peft, compiled", "loops", "dense")
VERSIONS = {
  one.__name__: one.__version__ for one in (torch, transformers, peft)
}
_BALANCE = 1e-2


class Router(nn.Module):
  """softmax(x W) in float32, and its k largest, which sum to one."""

  def __init__(self, d: int, experts: int, k: int):
    super().__init__()
    self.k = k
    self.weight = nn.Parameter(0.02 * torch.randn(experts, d))
    self.balance = None

  def forward(self, x):
    """Weights and numbers of the experts of each token; keeps the balance."""
    with torch.autocast(x.device.type, enabled=False):
      p = F.linear(x.float(), self.weight).softmax(-1)
    weights, chosen = p.topk(self.k, dim=-1)
    experts = p.shape[-1]
    share = F.one_hot(chosen, experts).sum(-2).float().mean(0)
    self.balance = experts / self.k * (share * p.mean(0)).sum()
    return weights / weights.sum(-1, keepdim=True), chosen, p


class Loops(nn.Module):
  """A linear layer with routed experts, one after another."""

  def __init__(self, base: nn.Linear, *, experts: int, rank: int, k: int):
    super().__init__()
    self.base = base
    d, f = base.in_features, base.out_features
    self.router = Router(d, experts, k)
    self.a = nn.ParameterList(
      torch.randn(rank, d) / d**0.5 for _ in range(experts)
    )
    self.b = nn.ParameterList(torch.zeros(f, rank) for _ in range(experts))

  def forward(self, x):
    """[batch length f]"""
    y = self.base(x)
    tokens, out = x.flatten(0, 1), torch.zeros_like(y.flatten(0, 1))
    weights, chosen, _ = self.router(tokens)
    for number, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
      at, slot = torch.where(chosen == number)
      term = F.linear(F.linear(tokens.index_select(0, at), a), b)
      term = term * weights[at, slot, None]
      out = out.index_add(0, at, term.to(out.dtype))
    return y + out.view_as(y)


class Dense(nn.Module):
  """A linear layer with experts that all give their whole output."""

  def __init__(self, base: nn.Linear, *, experts: int, rank: int, k: int):
    super().__init__()
    self.base = base
    d, f = base.in_features, base.out_features
    self.router = Router(d, experts, k)
    self.a = nn.Parameter(torch.randn(experts, d, rank) / d**0.5)
    self.b = nn.Parameter(torch.zeros(experts, rank, f))

  def forward(self, x):
    """[batch length f]"""
    p = self.router(x.flatten(0, 1))[2].view(*x.shape[:2], -1)
    each = torch.einsum("bld,edr->eblr", x, self.a)
    each = torch.einsum("eblr,erf->eblf", each, self.b)
    return self.base(x) + torch.einsum("eblf,ble->blf", each, p.to(each.dtype))


MIXTURES = {"loops": Loops, "dense": Dense}
# Whether there is an encoder -> transformers' names of what each side reads.
SIDES = {
  False: [("input_ids", "decoder")],
  True: [("input_ids", "encoder"), ("decoder_input_ids", "decoder")],
}


def base(
  config: decoder.DecoderConfig | t5_blocks.T5Config, dtype: str, device: str
) -> nn.Module:
  """transformers' model of the same sizes, with random weights."""
  torch.manual_seed(0)
  with torch.device(device):
    model = (_t5 if isinstance(config, t5_blocks.T5Config) else _llama)(config)
  return model.to(getattr(torch, dtype)).requires_grad_(False)


def _llama(config):
  settings = transformers.LlamaConfig(
    vocab_size=config.vocabulary_size,
    hidden_size=config.d_model,
    intermediate_size=config.d_ff,
    num_hidden_layers=config.layers,
    num_attention_heads=config.heads,
    num_key_value_heads=config.kv_heads,
    head_dim=config.head_dim,
    max_position_embeddings=config.max_length,
    rms_norm_eps=config.norm_epsilon,
    rope_parameters=dict(rope_type="default", rope_theta=config.rope_theta),
    tie_word_embeddings=config.tied_embeddings,
    attn_implementation="sdpa",
    use_cache=False,
  )
  return transformers.LlamaForCausalLM(settings)


def _t5(config):
  """T5 1.1: gated GELU and a last layer of its own; without dropout."""
  settings = transformers.T5Config(
    vocab_size=config.vocabulary_size,
    d_model=config.d_model,
    d_kv=config.head_dim,
    d_ff=config.d_ff,
    num_layers=config.encoder_layers,
    num_decoder_layers=config.decoder_layers,
    num_heads=config.heads,
    relative_attention_num_buckets=config.buckets,
    relative_attention_max_distance=config.max_distance,
    layer_norm_epsilon=config.norm_epsilon,
    dropout_rate=0.0,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    attn_implementation="sdpa",
    use_cache=False,
  )
  model = transformers.T5ForConditionalGeneration(settings)
  # Some versions tie it whatever they are told, and scale logits by that alone.
  model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
  return model


def adapted(
  name: str,
  model: nn.Module,
  *,
  modules: Sequence[str],
  experts: int,
  rank: int,
  k: int,
) -> nn.Module:
  """The model with PEFT's LoRA of the mixture's total rank, or a mixture.

  Adapters are float32 beside a base of any dtype, as PEFT's are.
  """
  if name not in MIXTURES:
    total = experts * rank
    lora = peft.LoraConfig(
      r=total, lora_alpha=total, target_modules=list(modules)
    )
    return peft.get_peft_model(model, lora)
  device = next(model.parameters()).device
  sites = [
    (module, key, child)
    for module in model.modules()
    for key, child in module.named_children()
    if key in modules
  ]
  for module, key, child in sites:
    made = MIXTURES[name](child, experts=experts, rank=rank, k=k)
    setattr(module, key, made.to(device))
  return model


def step(
  model: nn.Module, batch: Mapping[str, np.ndarray], *, compiled: bool = False
) -> Callable[[], float]:
  """Forward, loss, backward, clipping and AdamW; waits for its end.

  The loss is at every position. In bfloat16 the adapters' products are, too
  (autocast), and AdamW is the fused one on a GPU.
  """
  model.train()
  torch.set_float32_matmul_precision("high")
  first = next(model.parameters())
  device, low = first.device, first.dtype != torch.float32
  trained = [p for p in model.parameters() if p.requires_grad]
  rule = torch.optim.AdamW(
    trained, lr=1e-5, weight_decay=0.0, fused=device.type == "cuda"
  )
  routers = [m for m in model.modules() if isinstance(m, Router)]
  tokens = {
    name: torch.as_tensor(batch[name], device=device).long()
    for name in batch
    if name.endswith("_tokens")
  }
  targets = tokens["decoder_target_tokens"]
  sides = SIDES["encoder_input_tokens" in tokens]
  inputs = {theirs: tokens[f"{side}_input_tokens"] for theirs, side in sides}

  def loss(inputs, targets):
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
      logits = model(**inputs, use_cache=False).logits
    found = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    if routers:
      balance = torch.stack([router.balance for router in routers])
      found = found + _BALANCE * balance.mean()
    return found

  if compiled:
    loss = torch.compile(loss)

  def run(times: int = 1) -> float:
    for _ in range(times):
      rule.zero_grad()
      found = loss(inputs, targets)
      found.backward()
      nn.utils.clip_grad_norm_(trained, 1.0)
      rule.step()
    return found.item()

  return run


def gpu() -> bool:
  """Whether PyTorch has one."""
  return torch.cuda.is_available()


def release() -> None:
  """Gives a GPU's memory back that nothing refers to any more."""
  gc.collect()
  if gpu():
    torch.cuda.empty_cache()


def memory(run: Callable[[], float], model: nn.Module) -> int | None:
  """The most bytes of a GPU while it runs, less what is of other models."""
  if not gpu():
    run()
    return None
  own = sum(p.numel() * p.element_size() for p in model.parameters())
  others = torch.cuda.memory_allocated() - own
  torch.cuda.reset_peak_memory_stats()
  run()
  return torch.cuda.max_memory_allocated() - others
