# SPDX-License-Identifier: Apache-2.0
"""Random utterances from Home Assistant's sentence templates.

A template such as `turn on [the] {area} light[s]` allows many utterances;
each comes with the slots that were filled on the way.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import random
from typing import Any, NamedTuple

from hassil import expression as hassil
from hassil import parse_expression
import home_assistant_intents

from sira_jax.data import nouns

# What fills a list that the package leaves to the home or to the speaker.
_FILLERS = {
  "name": "devices",
  "area": "areas",
  "zone": "areas",
  "floor": "floors",
  "search_query": "instruments",
}
_MAXIMUM_DEPTH = 40

_parse = functools.cache(parse_expression.parse_sentence)


class Template(NamedTuple):
  """A sentence template, and what its intent adds to the slots it fills."""

  intent: str
  text: str
  slots: Mapping[str, Any]
  domains: tuple[str, ...]


@dataclasses.dataclass
class _Draw:
  generator: random.Random
  domains: tuple[str, ...]
  slots: dict[str, Any]


class Speaker:
  """Says what templates of one language allow.

  Args:
    code: the language's code in `home-assistant-intents`.
    words: the nouns for the lists that the package leaves open.

  Raises:
    ValueError: if the package has no such language.
  """

  def __init__(self, code: str, words: nouns.Nouns):
    data = home_assistant_intents.get_intents(code)
    if data is None:
      known = ", ".join(home_assistant_intents.get_languages())
      raise ValueError(
        f"home-assistant-intents has no language {code!r}. It has: {known}."
      )
    self._data = data
    self._words = words

  def templates(self) -> Iterator[Template]:
    """All templates, in the package's order."""
    for intent, content in self._data["intents"].items():
      for block in content["data"]:
        domains = block.get("requires_context", {}).get("domain", ())
        domains = (domains,) if isinstance(domains, str) else tuple(domains)
        for text in block["sentences"]:
          yield Template(intent, text, block.get("slots", {}), domains)

  def say(
    self, template: Template, generator: random.Random
  ) -> tuple[str, dict[str, Any]]:
    """One utterance and the values of its slots.

    Raises:
      ValueError: if the template cannot be followed, with the reason.
    """
    draw = _Draw(generator, template.domains, {})
    text = self._say(_parse(template.text), draw, 0)
    return " ".join(text.split()), {**template.slots, **draw.slots}

  def _say(self, node: Any, draw: _Draw, depth: int) -> str:
    if depth > _MAXIMUM_DEPTH:
      raise ValueError(f"rules nested more than {_MAXIMUM_DEPTH} deep")
    say = functools.partial(self._say, draw=draw, depth=depth + 1)
    match node:
      case hassil.Sentence():
        return say(node.expression)
      case hassil.TextChunk():
        return node.original_text
      case hassil.RuleReference():
        return say(self._rule(node.rule_name))
      case hassil.ListReference():
        return self._fill(node, draw, depth)
      case hassil.Alternative():
        return say(draw.generator.choice(node.items))
      case hassil.Permutation():
        items = draw.generator.sample(node.items, len(node.items))
        return "".join(map(say, items))
      case hassil.Sequence():
        return "".join(map(say, node.items))
    raise ValueError(f"unknown element {node!r}")

  def _rule(self, name: str) -> hassil.Sentence:
    if name not in self._data["expansion_rules"]:
      raise ValueError(f"no expansion rule <{name}>")
    return _parse(self._data["expansion_rules"][name])

  def _fill(self, node: hassil.ListReference, draw: _Draw, depth: int) -> str:
    """Draws a value for a list, notes it as its slot's and says it."""
    choices = self._data["lists"].get(node.list_name, {"wildcard": True})
    if "values" in choices:
      value = draw.generator.choice(choices["values"])
      text = self._say(_parse(value["in"]), draw, depth + 1)
      slot = value["out"]
    elif "range" in choices:
      span = choices["range"]
      number = draw.generator.randrange(
        span["from"], span["to"] + 1, span.get("step", 1)
      )
      text, slot = str(number), number * span.get("multiplier", 1)
    else:
      text = slot = draw.generator.choice(self._nouns(node.list_name, draw))
    if node.slot_name in draw.slots:
      raise ValueError(f"slot {node.slot_name!r} is filled twice")
    draw.slots[node.slot_name] = slot
    return text

  def _nouns(self, list_name: str, draw: _Draw) -> tuple[str, ...]:
    if list_name == "name":
      return self._words.devices_in(draw.domains)
    return getattr(self._words, _FILLERS.get(list_name, "foods"))
