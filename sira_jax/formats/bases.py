# SPDX-License-Identifier: Apache-2.0
"""Base models: a URI in, a frozen model and its tokenizer out."""

import dataclasses

from flax import nnx
import jax.numpy as jnp
import tokenizers

from sira_jax.formats import (
  gguf,
  gguf_tokenizer,
  huggingface,
  huggingface_encoders,
  padding,
  sources,
)


@dataclasses.dataclass(frozen=True)
class Base:
  """A pretrained model that adapters go into.

  Attributes:
    uri: where it came from.
    model: its weights are frozen `nnx.Param`s.
    tokenizer: its own.
    eos_id: the token that ends a text.
    fingerprint: sha256 of its file, or over its folder's config and weights.
    spare: the id that has changed places with 0; see `padding`.
    first_id: the token that begins an encoder's text; None of others.
  """

  uri: str
  model: nnx.Module
  tokenizer: tokenizers.Tokenizer
  eos_id: int
  fingerprint: str
  spare: int | None = None
  first_id: int | None = None


def load(
  *,
  uri: str,
  sha256: str | None = None,
  dtype: str = "float32",
  remat: bool = False,
  scan: bool = False,
  prefix: bool = False,
) -> Base:
  """Fetches and loads a base model.

  Args:
    uri: see `sources.fetch`; a GGUF file, or a folder of a Hugging Face
      checkpoint.
    sha256: of a file; None trusts it.
    dtype: of the loaded weights.
    remat: recompute each block in the backward pass instead of keeping its
      activations: less memory, a third more compute.
    scan: run equal blocks as a loop, which compiles sooner on accelerators.
    prefix: read prompts in both directions, as a prefix LM; decoders alone.

  Raises:
    ValueError: it cannot be had, is of a format we do not read, or does not
      hold exactly the tensors that its own description calls for.
  """
  path = _path(uri, sha256, dtype)
  made = _settings(dtype, remat=remat, scan=scan, prefix=prefix)
  return _base(uri, path, made, _load)


def outline(
  *,
  uri: str,
  sha256: str | None = None,
  dtype: str = "float32",
  remat: bool = False,
  scan: bool = False,
  prefix: bool = False,
) -> Base:
  """The base that `load` gives, its model without its numbers.

  Raises:
    ValueError: as `load`.
  """
  path = _path(uri, sha256, dtype)
  made = _settings(dtype, remat=remat, scan=scan, prefix=prefix)
  return _base(uri, path, made, lambda path, _, **made: _shapes(path, **made))


def _load(path, spare, **made):
  if path.is_dir():
    return huggingface.load_model(path, spare=spare, **made)
  return gguf.load_decoder(path, **made)


def _shapes(path, **made):
  if path.is_dir():
    # Of an encoder, the token that pads is 0 in what `load` gives.
    return huggingface.model_shapes(path, spare=0, **made)
  return gguf.decoder_shapes(path, **made)


def _base(uri, path, made, load) -> Base:
  """The base at a path, whose model `load` makes."""
  if path.is_dir() and huggingface_encoders.is_one(path):
    base = _encoder(uri, path, made, load)
  elif path.is_dir():
    tokenizer = huggingface.tokenizer(path)
    spare = padding.spare(tokenizer)
    base = Base(
      uri=uri,
      model=load(path, spare, **made),
      tokenizer=(
        tokenizer if spare is None else padding.swapped(tokenizer, spare)
      ),
      eos_id=huggingface.eos_id(path),
      fingerprint=huggingface.fingerprint(path),
      spare=spare,
    )
  else:
    base = Base(
      uri=uri,
      model=load(path, None, **made),
      tokenizer=gguf_tokenizer.tokenizer(path),
      eos_id=gguf_tokenizer.special_tokens(path).eos_id,
      fingerprint=gguf.fingerprint(path),
    )
  ids = base.tokenizer.get_vocab_size()
  rows = base.model.config.vocabulary_size
  if ids > rows:
    raise ValueError(
      f"{uri}: its tokenizer has {ids} ids, and its model embeds {rows}. Take"
      " added tokens that were never trained out of its tokenizer."
    )
  return base


def _encoder(uri, path, made, load) -> Base:
  """Of a text between two tokens; the one that pads changes places with 0."""
  tokenizer = huggingface.tokenizer(path)
  tokens = huggingface_encoders.wrapping(path)
  spare = tokenizer.token_to_id(tokens["pad"])
  lost = [t for t in tokens.values() if tokenizer.token_to_id(t) is None]
  if lost:
    raise ValueError(f"{path}: its tokenizer.json has no {', '.join(lost)}.")
  tokenizer = padding.swapped(tokenizer, spare) if spare else tokenizer
  return Base(
    uri=uri,
    model=load(path, spare, **made),
    tokenizer=tokenizer,
    eos_id=tokenizer.token_to_id(tokens["sep"]),
    fingerprint=huggingface.fingerprint(path),
    spare=spare,
    first_id=tokenizer.token_to_id(tokens["cls"]),
  )


def shapes(
  *,
  uri: str,
  sha256: str | None = None,
  dtype: str = "float32",
  remat: bool = False,
  scan: bool = False,
  prefix: bool = False,
) -> nnx.Module:
  """The model that `load` gives, without its numbers: none is read.

  Of a folder, config.json is enough.

  Raises:
    ValueError: as `load`.
  """
  path = _path(uri, sha256, dtype)
  made = _settings(dtype, remat=remat, scan=scan, prefix=prefix)
  return _shapes(path, **made)


def _settings(dtype, *, prefix, **settings):
  """Those of the model, of which not every one knows a prefix."""
  if prefix:
    settings["prefix"] = True
  return {"dtype": jnp.dtype(dtype), **settings}


def _path(uri, sha256, dtype):
  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"base.dtype must be float32 or bfloat16, got {dtype!r}.")
  path = sources.fetch(uri, sha256=sha256)
  if not path.is_dir() and path.suffix != ".gguf":
    raise ValueError(
      f"{uri}: expected a .gguf file or a folder, got {path.name!r}."
    )
  return path
