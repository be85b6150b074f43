# SPDX-License-Identifier: Apache-2.0
"""What the config.json of a decoder says: Llama, Mistral, Qwen and Gemma.

Entries are named as in transformers 5, and as files of before name them.
"""

from typing import Any

from sira_jax.formats.huggingface_entries import Entries
from sira_jax.models import decoder_blocks, layers

DecoderConfig = decoder_blocks.DecoderConfig

_ACTIVATIONS = {
  "silu": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
}
_ALWAYS = {
  "mlp_bias": False,
  "partial_rotary_factor": 1.0,
  "rope_interleaved": False,
  "use_bidirectional_attention": False,
}
_MOST_LAYERS = 10_000
_KINDS = {"full_attention": False, "sliding_attention": True}


def _sizes(entries: Entries, *, biases: bool = False) -> dict[str, Any]:
  """What all families have; `biases` are of queries, keys and values."""
  d, heads = (
    entries.get(name, int) for name in ("hidden_size", "num_attention_heads")
  )
  entries.check(_ALWAYS)
  entries.check({"attention_bias": False})
  layers_ = entries.get("num_hidden_layers", int)
  if layers_ > _MOST_LAYERS:  # before anything of that size is made
    raise ValueError(
      f"{entries.path}: expected num_hidden_layers to be at most"
      f" {_MOST_LAYERS}, got {layers_}."
    )
  return dict(
    vocabulary_size=entries.get("vocab_size", int),
    layers=layers_,
    d_model=d,
    heads=heads,
    kv_heads=entries.get("num_key_value_heads", int, heads),
    head_dim=entries.get("head_dim", int, max(d // heads, 1)),
    d_ff=entries.get("intermediate_size", int),
    norm_epsilon=entries.get("rms_norm_eps", float, 1e-6),
    max_length=entries.get("max_position_embeddings", int, 2048),
    qkv_bias=biases,
  )


def _llama(entries: Entries, own_head: bool) -> DecoderConfig:
  del own_head  # Its configs tell.
  entries.check({"sliding_window": None, "use_sliding_window": False})
  return DecoderConfig(
    **_sizes(entries),
    **_rope(entries),
    activation=_activation(entries, "hidden_act", "silu"),
    tied_embeddings=entries.get("tie_word_embeddings", bool, False),
  )


def _mistral(entries, own_head):
  """All blocks have the window, if there is one."""
  del own_head
  # Some early files leave it out, and mean the code's default.
  window = entries.get("sliding_window", int, None)
  if "sliding_window" not in entries.entries:
    window = 4096
  sizes = _sizes(entries)
  windowed = (True,) * sizes["layers"] if window is not None else ()
  return DecoderConfig(
    **sizes,
    **_rope(entries),
    activation=_activation(entries, "hidden_act", "silu"),
    tied_embeddings=entries.get("tie_word_embeddings", bool, False),
    window=window,
    windowed=windowed,
  )


def _qwen(entries: Entries, own_head: bool, **family: bool) -> DecoderConfig:
  del own_head
  sizes = _sizes(entries, biases=family.pop("biases", False))
  used = entries.get("use_sliding_window", bool, False)
  window = entries.get("sliding_window", int, None)
  # The first blocks see everything, where layer_types do not say.
  first = entries.get("max_window_layers", int, sizes["layers"])
  windowed = _windowed(
    entries,
    sizes["layers"],
    default=[used and i >= first for i in range(sizes["layers"])],
  )
  return DecoderConfig(
    **sizes,
    **_rope(entries),
    **family,
    activation=_activation(entries, "hidden_act", "silu"),
    tied_embeddings=entries.get("tie_word_embeddings", bool, False),
    window=window if windowed else None,
    windowed=windowed,
  )


def _qwen2(entries, own_head):
  return _qwen(entries, own_head, biases=True)


def _qwen3(entries, own_head):
  return _qwen(entries, own_head, qk_norm=True)


def _gemma(entries: Entries, own_head: bool, **family: Any) -> DecoderConfig:
  del own_head
  sizes = _sizes(entries)
  activation = _activation(entries, "hidden_activation", None)
  # Of Gemma 1, whose code takes it whatever `hidden_act` says.
  entries.used.add("hidden_act")
  return DecoderConfig(
    **sizes,
    **{"rope_theta": 10_000.0, **family},
    activation=activation or "gelu_tanh",
    tied_embeddings=entries.get("tie_word_embeddings", bool, True),
    norm_offset=True,
    embedding_scale=sizes["d_model"] ** 0.5,
  )


def _gemma1(entries, own_head):
  return _gemma(entries, own_head, **_rope(entries))


def _gemma2(entries, own_head):
  """Every other block, from the first, has the window."""
  family = _windows(entries, every=2, window=4096) | _rope(entries)
  return _gemma(entries, own_head, **family, **_capped(entries))


def _gemma3(entries, own_head):
  """All but every sixth have the window, and rotary frequencies of its own."""
  pattern = entries.get("_sliding_window_pattern", int, None)
  pattern = entries.get("sliding_window_pattern", int, pattern or 6)
  family = _windows(entries, every=pattern, window=4096) | _capped(entries)
  nested = entries.get("rope_parameters", dict, {})
  by_kind = Entries(f"{entries.path}: rope_parameters", nested)
  if nested.keys() <= _KINDS.keys():
    both = {
      kind: _frequencies(
        Entries(f"{by_kind.path}.{kind}", by_kind.get(kind, dict, {})),
        default=default,
      )
      for kind, default in (
        ("full_attention", entries.get("rope_theta", float, 1e6)),
        ("sliding_attention", entries.get("rope_local_base_freq", float, 1e4)),
      )
    }
    whole, local = both["full_attention"], both["sliding_attention"]
    if local["rope_scaling"] is not None:
      raise ValueError(
        f"{entries.path}: scaled frequencies of windowed blocks are not"
        " supported."
      )
    old = _scaling(entries.get("rope_scaling", dict, {}), entries.path)
    whole["rope_scaling"] = whole["rope_scaling"] or old
    family |= {**whole, "local_rope_theta": local["rope_theta"]}
  else:
    family |= _rope(entries)
  return _gemma(entries, own_head, qk_norm=True, **family)


def _windows(entries, *, every, window) -> dict[str, Any]:
  """All blocks but every so manieth have the window."""
  count = _sizes(entries)["layers"]
  windowed = _windowed(
    entries, count, default=[bool((i + 1) % every) for i in range(count)]
  )
  window = entries.get("sliding_window", int, window)
  return dict(
    windowed=windowed, window=window if windowed else None, post_norms=True
  )


def _windowed(entries, count, *, default) -> tuple[bool, ...]:
  """A flag a block, of layer_types or the default; empty if none is set."""
  kinds = entries.get("layer_types", list, None)
  if kinds is None:
    flags = tuple(default)
  elif len(kinds) == count and all(k in _KINDS for k in map(str, kinds)):
    flags = tuple(_KINDS[kind] for kind in kinds)
  else:
    raise ValueError(
      f"{entries.path}: expected layer_types to have {count} of"
      f" {', '.join(_KINDS)}, got {kinds!r:.200}."
    )
  return flags if any(flags) else ()


def _capped(entries) -> dict[str, Any]:
  scale = entries.get("query_pre_attn_scalar", float, 256.0) ** -0.5
  return dict(
    attention_scale=scale,
    attention_cap=entries.get("attn_logit_softcapping", float, None),
    logit_cap=entries.get("final_logit_softcapping", float, None),
  )


def _activation(entries, name, default):
  found = entries.get(name, str, default)
  if found is not None and found not in _ACTIVATIONS:
    raise ValueError(
      f"{entries.path}: {name} = {found[:100]!r} is not supported; known are"
      f" {', '.join(_ACTIVATIONS)}."
    )
  return _ACTIVATIONS.get(found)


def _rope(entries: Entries) -> dict[str, Any]:
  """Of `rope_parameters`, as transformers 5 writes it, or as before."""
  theta = entries.get("rope_theta", float, 10_000.0)
  nested = entries.get("rope_parameters", dict, {})
  inner = Entries(f"{entries.path}: rope_parameters", nested)
  found = _frequencies(inner, default=theta)
  old = _scaling(entries.get("rope_scaling", dict, {}), entries.path)
  if old and found["rope_scaling"] not in (None, old):
    raise ValueError(
      f"{entries.path}: rope_scaling and rope_parameters disagree."
    )
  found["rope_scaling"] = found["rope_scaling"] or old
  return found


def _frequencies(inner: Entries, *, default: float) -> dict[str, Any]:
  inner.check({"partial_rotary_factor": 1.0})
  theta = inner.get("rope_theta", float, default)
  rest = {
    key: value for key, value in inner.entries.items() if key not in inner.used
  }
  return dict(rope_theta=theta, rope_scaling=_scaling(rest, inner.path))


def _scaling(entries, path) -> layers.RopeScaling | None:
  """Of the entries of a rope_scaling, which has also been called so."""
  inner = Entries(f"{path}: rope_scaling", entries)
  kind = inner.get("rope_type", str, inner.get("type", str, "default"))
  names = {"default": (), "linear": ("factor",)}
  names["llama3"] = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  )
  if kind not in names:
    raise ValueError(
      f"{inner.path}: rope_type = {kind[:100]!r} is not supported; known are"
      f" {', '.join(names)}."
    )
  values = [inner.get(name, float) for name in names[kind]]
  inner.check_all_used()
  if kind == "llama3":
    values[3] = int(values[3])
  return layers.RopeScaling(*values) if values else None


ARCHITECTURES = {
  "LlamaForCausalLM": _llama,
  "MistralForCausalLM": _mistral,
  "Qwen2ForCausalLM": _qwen2,
  "Qwen3ForCausalLM": _qwen3,
  "GemmaForCausalLM": _gemma1,
  "Gemma2ForCausalLM": _gemma2,
  "Gemma3ForCausalLM": _gemma3,
}
