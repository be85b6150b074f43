# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a base's products in a training step of its adapters."""

from collections.abc import Sequence
import dataclasses

from benchmarks.step_models import EncoderDecoder, Setting

# In the order in which a block runs them; those of one stage read one input.
_DECODER_ONLY = (
  ("q_proj", "k_proj", "v_proj"),
  ("o_proj",),
  ("gate_proj", "up_proj"),
  ("down_proj",),
)
_T5 = (("q", "k", "v"), ("o",), ("wi_0", "wi_1"), ("wo",))
# From the cross-attention's mixing on a decoder's first block sees what the
# encoder's adapters did.
_T5_DECODER = (*_T5[:2], ("cross q",))


@dataclasses.dataclass(frozen=True)
class _Stack:
  """Equal blocks: multiplications of a batch forward, and pairs that see.

  Attributes:
    blocks: their number.
    weights: of a block's weights.
    spared: of those of the first block's that no adapter is before.
    pairs: of tokens, in a block's attention, one that sees and one seen.
  """

  blocks: int
  weights: int
  spared: int
  pairs: int


def step_flops(setting: Setting) -> dict[str, int]:
  """FLOPs of the base in a step, products alone, each 2 m n k.

  `matmuls`: every weight forward, and backward in its input, once for each
  token that it reads; no frozen weight has a gradient. Backward leaves out the
  first block's weights that no adapter is before, in a decoder up to its
  cross-attention, which brings gradients to the encoder. The last layer counts
  where there are targets. `attention`: scores and mixing, forward and twice
  that backward, of pairs that see each other alone; a kernel that computes
  scores again has no credit for it.
  """
  config = setting.config
  of_model = _t5 if isinstance(setting, EncoderDecoder) else _decoder_only
  stacks = of_model(setting)
  multiplied = sum(2 * s.blocks * s.weights - s.spared for s in stacks)
  pairs = sum(s.blocks * s.pairs for s in stacks)
  targets = setting.share * setting.rows * setting.lengths["decoder"]
  return {
    "matmuls": 2 * multiplied
    + round(4 * targets * config.d_model * config.vocabulary_size),
    "attention": 3 * 4 * config.heads * config.head_dim * pairs,
  }


def _decoder_only(setting: Setting) -> list[_Stack]:
  config = setting.config
  d, f = config.d_model, config.d_ff
  q, kv = (n * config.head_dim for n in (config.heads, config.kv_heads))
  sizes = {"q_proj": d * q, "k_proj": d * kv, "v_proj": d * kv, "o_proj": q * d}
  sizes |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), d * f)
  sizes = {name: setting.tokens * size for name, size in sizes.items()}
  return [
    _Stack(
      config.layers,
      sum(sizes.values()),
      _spared(sizes, _DECODER_ONLY, setting.modules),
      setting.rows * _causal(setting.length),
    )
  ]


def _t5(setting: EncoderDecoder) -> list[_Stack]:
  """The encoder and the decoder, of T5 1.1, whose feed-forward is gated."""
  config, rows = setting.config, setting.rows
  inner = config.d_model * config.heads * config.head_dim
  reads, writes = setting.lengths["encoder"], setting.lengths["decoder"]
  sizes = dict.fromkeys(("q", "k", "v", "o"), inner)
  sizes |= dict.fromkeys(("wi_0", "wi_1", "wo"), config.d_model * config.d_ff)
  encoder = {name: rows * reads * size for name, size in sizes.items()}
  decoder = {name: rows * writes * size for name, size in sizes.items()}
  decoder |= dict.fromkeys(("cross q", "cross o"), rows * writes * inner)
  decoder |= dict.fromkeys(("cross k", "cross v"), rows * reads * inner)
  return [
    _Stack(
      config.encoder_layers,
      sum(encoder.values()),
      _spared(encoder, _T5, setting.modules),
      rows * reads * reads,
    ),
    _Stack(
      config.decoder_layers,
      sum(decoder.values()),
      _spared(decoder, _T5_DECODER, setting.modules),
      rows * (_causal(writes) + writes * reads),
    ),
  ]


def _spared(
  sizes: dict[str, int],
  stages: Sequence[Sequence[str]],
  modules: Sequence[str],
) -> int:
  """Of the stages up to the first that is adapted, which is one of them."""
  total = 0
  for stage in stages:
    total += sum(sizes[name] for name in stage)
    if set(stage) & set(modules):
      break
  return total


def _causal(length: int) -> int:
  """Pairs of a row, of a token and what it sees: itself and those before."""
  return length * (length + 1) // 2
