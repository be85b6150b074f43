# SPDX-License-Identifier: Apache-2.0
"""Whether a cache holds the data that a config names."""

from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Any

from sira_jax import configuration, run_data, texts
from sira_jax.cached import layout

# The groups of a config that decide on what there is to read; of a head, what
# its outputs mean, and of the selection, how many examples it goes by.
_GROUPS = ("mixture", "files", "suites", "evaluation")


def groups(config: Mapping[str, Any]) -> dict[str, Any]:
  """What of a config, a mapping, a cache keeps; as JSON."""
  kept = {name: config.get(name) or {} for name in _GROUPS}
  kept["head"] = None
  if config.get("head") is not None:
    kept["head"] = {"labels": config["head"]["labels"]}
  kept["selection"] = None
  if config.get("selection") is not None:
    kept["selection"] = {"examples": config["selection"]["examples"]}
  kept["base"] = {k: config["base"].get(k) for k in ("uri", "sha256")}
  return json.loads(json.dumps(kept))


def tokenizer(base: Any) -> dict[str, Any]:
  """What a base's tokens are; not how its library writes a tokenizer."""
  known = base.tokenizer.get_vocab(with_added_tokens=True)
  text = json.dumps(sorted(known.items()))
  return {
    "vocabulary": hashlib.sha256(text.encode()).hexdigest(),
    "eos_id": base.eos_id,
    "first_id": base.first_id,
  }


def check_config(
  manifest: Mapping[str, Any], config: Mapping[str, Any], folder: Any
) -> None:
  """Checks that a cache was made of this config's groups.

  Where the base is from may differ, for its tokenizer is what counts.

  Raises:
    ValueError: a field that differs, with what it is there and here.
  """
  there, here = (
    {k: v for k, v in of.items() if k != "base"}
    for of in (manifest["config"], groups(config))
  )
  changed = configuration.differences(there, here)
  if changed:
    raise ValueError(
      f"The cache in {folder} was made of another config; expected, as it was"
      " made of, and got:\n  "
      + "\n  ".join(changed)
      + "\nSet these fields back, or write a cache of this config into another"
      f" folder: {layout.HOW}"
    )


def check_base(
  manifest: Mapping[str, Any],
  base: Any,
  sets: Sequence[run_data.EvaluationSet],
  *,
  encoder: bool,
  folder: Any,
) -> None:
  """Checks that the base reads the ids that a cache holds.

  The prompts of its evaluation sets are made ids again, too, for a vocabulary
  does not tell how a text is divided.

  Raises:
    ValueError: it does not.
  """
  there, here = manifest["tokenizer"], tokenizer(base)
  there, here = there | {"encoder": manifest["encoder"]}, here
  here["encoder"] = encoder
  changed = configuration.differences(there, here, "tokenizer")
  if not changed:
    changed = _divided_otherwise(base, sets, encoder=encoder)
  if changed:
    made = manifest["config"]["base"]["uri"]
    raise ValueError(
      f"The cache in {folder} has the tokens of another base, {made}, than"
      f" config.base.uri, {base.uri}; expected, as it was made of, and got:\n  "
      + "\n  ".join(changed)
      + "\nTake that base, or write a cache of this one into another folder:"
      f" {layout.HOW}"
    )


def _divided_otherwise(base, sets, *, encoder) -> list[str]:
  """The first prompt that the base's tokenizer makes other ids of."""
  first = [] if base.first_id is None else [base.first_id]
  for one in sets:
    found = texts.encode(base.tokenizer, one.prompts)
    for text, ids, expected in zip(one.prompts, found, one.inputs, strict=True):
      ids = texts.prompt([*first, *ids], eos_id=base.eos_id, encoder=encoder)
      if ids != list(expected):
        return [f"the ids of {text[:60]!r}: {expected} -> {ids}"]
  return []
