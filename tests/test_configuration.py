"""Config groups: made from signatures, read back, compared."""

import json

import ml_collections
import pytest

from sira_jax import configuration
from sira_jax.adapters import methods


def function(positional, *, size: int, rate: float | None = None, name="x"):
  """Something that a group configures."""


def config(**rules):
  return ml_collections.ConfigDict({"rules": rules})


def test_group_has_the_arguments_and_their_defaults():
  fields = configuration.group(function, size=3)
  assert fields.to_dict() == {"size": 3, "rate": None, "name": "x"}
  fields.rate = 1
  assert fields.rate == 1.0
  with pytest.raises(TypeError):
    fields.rate = "fast"


def test_group_refuses_what_the_function_lacks():
  with pytest.raises(ValueError, match="function has no argument sise; it has"):
    configuration.group(function, size=1, sise=2)


def test_group_needs_every_argument_without_a_default():
  with pytest.raises(ValueError, match="function needs size"):
    configuration.group(function)


def test_rules_read_what_rule_made():
  fields = config(
    one=configuration.rule("a.*", "lora", rank=3, alpha=6),
    two=configuration.rule("b.*", "sira", experts=8, k=2),
  )
  # As flags set them, and as a run's config.json brings them back.
  fields.rules.two.capacity_factor = None
  fields.rules.two.capacity = 5
  again = ml_collections.ConfigDict(json.loads(configuration.as_json(fields)))
  for read in (fields, again):
    one, two = configuration.rules(read.rules)
    assert (one.path, two.path) == ("a.*", "b.*")
    assert one.factory == methods.lora(rank=3, alpha=6)
    assert two.factory == methods.sira(
      experts=8, k=2, capacity_factor=None, capacity=5
    )


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      dict(path="a", method="lora", rnk=2),
      r"rules\.x: lora has no setting rnk",
    ),
    (dict(path="a", method="lore"), r"rules\.x: Unknown method 'lore'"),
    (dict(path="a", method="lora", rank=0), r"rules\.x: lora: rank must"),
    (dict(path="a"), r"rules\.x lacks 'method'"),
    (dict(method="lora"), r"rules\.x lacks 'path'"),
  ],
)
def test_rules_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    configuration.rules(config(x=fields).rules)


def test_rules_are_in_the_order_of_their_names():
  groups = {
    "b": configuration.rule("second", "lora"),
    "a": configuration.rule("first", "lora"),
  }
  for given in (groups, config(**groups).rules):
    found = [rule.path for rule in configuration.rules(given)]
    assert found == ["first", "second"]


def test_rule_refuses_an_unknown_method():
  with pytest.raises(ValueError, match="Unknown method 'lore'"):
    configuration.rule("a", "lore")


def test_check():
  configuration.check("some", function, {"size": 1})
  with pytest.raises(ValueError, match=r"config\.some has no field sise; it"):
    configuration.check("some", function, {"sise": 1})
  with pytest.raises(ValueError, match="no field positional"):
    configuration.check("some", function, {"positional": 1})
  with pytest.raises(ValueError, match=r"config\.some lacks size"):
    configuration.check("some", function, {"rate": 1.0})
  configuration.check("some", function, {"rate": 1.0}, given=["size"])
  with pytest.raises(ValueError, match="no field size; it has rate, name"):
    configuration.check("some", function, {"size": 1}, given=["size"])


def test_differences():
  old = {"a": {"b": 1, "c": "x"}, "d": [1, 2], "gone": 1, "same": None}
  new = {"a": {"b": 2, "c": "x"}, "d": [1, 3], "new": 2, "same": None}
  assert configuration.differences(old, new) == [
    "config.a.b: 1 -> 2",
    "config.d: [1, 2] -> [1, 3]",
    "config.gone: 1 -> None",
    "config.new: None -> 2",
  ]
  assert configuration.differences(new, new) == []


def test_a_group_without_values_is_as_good_as_none():
  for empty in ({}, {"b": None}, {"b": {"c": None}}):
    assert configuration.differences({"a": empty}, {}) == []
    assert configuration.differences({}, {"a": empty}) == []
    assert configuration.differences({"a": None}, {"a": empty}) == []
  for value in (0, "", [], False):
    found = configuration.differences({}, {"a": {"b": value}})
    assert found == [f"config.a: None -> {{'b': {value!r}}}"]
