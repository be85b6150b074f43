# SPDX-License-Identifier: Apache-2.0
"""Config groups as the keyword arguments of the functions they configure.

A config is an `ml_collections.ConfigDict`; each of its groups is the keyword
arguments of exactly one function.
"""

from collections.abc import Callable, Mapping, Sequence
import inspect
import json
import typing
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_dict, config_flags

from sira_jax.adapters import heads, methods
from sira_jax.adapters.surgery import Rule


def group(
  function: Callable[..., Any], *, given: Sequence[str] = (), **values: Any
) -> config_dict.ConfigDict:
  """A config group: the keyword arguments of `function`, settable by flag.

  Args:
    function: whose signature has the defaults.
    given: arguments that the scripts supply and a config does not have.
    **values: instead of the defaults; None becomes a field that a flag can
      set to a value of the argument's type.
  """
  fields = config_dict.ConfigDict()
  hints = typing.get_type_hints(function)
  for name, parameter in _keywords(function).items():
    if name in given:
      continue
    value = values.pop(name, parameter.default)
    if value is parameter.empty:
      raise ValueError(f"{function.__name__} needs {name}: give its value.")
    fields[name] = _placeholder(hints[name]) if value is None else value
  if values:
    raise ValueError(
      f"{function.__name__} has no argument {', '.join(values)}; it has"
      f" {', '.join(_keywords(function))}."
    )
  return fields


def rule(path: str, method: str, **settings: Any) -> config_dict.ConfigDict:
  """A config group that `rules` reads: a path and all settings of a method."""
  methods.defaults(method)
  fields = group(methods.METHODS[method], **settings)
  fields.path, fields.method = path, method
  return fields


def rules(groups: Mapping[str, Mapping[str, Any]]) -> tuple[Rule, ...]:
  """The adapter rules that a config's group of `rule` groups states.

  In the alphabetical order of the groups' names, since a ConfigDict has no
  other; the first that matches a layer decides.

  Raises:
    ValueError: an unknown method or setting, or a value that it refuses.
  """
  found = []
  for name, fields in sorted(groups.items()):
    settings = dict(fields)
    try:
      path, method = settings.pop("path"), settings.pop("method")
      if method in methods.METHODS:
        _refuse_none(methods.METHODS[method], settings)
      found.append(Rule(path, methods.create(method, **settings)))
    except KeyError as error:
      raise ValueError(f"config.rules.{name} lacks {error}.") from None
    except ValueError as error:
      raise ValueError(f"config.rules.{name}: {error}") from None
  return tuple(found)


def head(fields: Mapping[str, Any]) -> heads.HeadFactory:
  """The head that the group `head` states.

  Raises:
    ValueError: an unknown field, or a value that is refused.
  """
  check("head", heads.HeadFactory, fields)
  try:
    return heads.HeadFactory(**fields)
  except ValueError as error:
    raise ValueError(f"config.head: {error}") from None


def factory(fields: Mapping[str, Any], **changes: Any) -> Any:
  """The adapter factory that one `rule` group states, with some changes.

  Raises:
    ValueError: a value that the method refuses.
  """
  settings = {**fields, **changes}
  settings.pop("path")
  return methods.create(settings.pop("method"), **settings)


def check(
  name: str,
  function: Callable[..., Any],
  fields: Mapping,
  *,
  given: Sequence[str] = (),
) -> None:
  """Checks that `fields` are the keyword arguments of `function`.

  Args:
    name: the group's.
    function: what it configures.
    fields: the group.
    given: arguments that the scripts supply and a config does not have.

  Raises:
    ValueError: one that the function does not have, or one that it needs and
      `fields` lacks.
  """
  known = {k: p for k, p in _keywords(function).items() if k not in given}
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise ValueError(
      f"config.{name} has no field {', '.join(unknown)}; it has"
      f" {', '.join(known)}."
    )
  needed = [k for k, p in known.items() if p.default is p.empty]
  lacking = [k for k in needed if k not in fields]
  if lacking:
    raise ValueError(f"config.{name} lacks {', '.join(lacking)}.")
  try:
    _refuse_none(function, fields)
  except ValueError as error:
    raise ValueError(f"config.{name}: {error}") from None


def let_flags_say_none() -> None:
  """Makes flags read "none" as None, for fields of a number or a text.

  Called before the flags of a config are defined.
  """
  for kind, parser in _PARSERS.items():
    config_flags.register_flag_parser_for_type(kind, _OrNone(parser))


def as_json(config: ml_collections.ConfigDict) -> str:
  """The resolved config, one field a line, keys sorted."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def differences(
  old: Mapping, new: Mapping, prefix: str = "config"
) -> list[str]:
  """Each field in which two configs differ, as "config.a.b: 1 -> 2".

  A group of which no field has a value is as good as none.
  """
  found = []
  for key in sorted(set(old) | set(new)):
    before, after, path = old.get(key), new.get(key), f"{prefix}.{key}"
    if isinstance(before, Mapping) and isinstance(after, Mapping):
      found += differences(before, after, path)
    elif before != after and not (_empty(before) and _empty(after)):
      found.append(f"{path}: {before!r} -> {after!r}")
  return found


def _empty(value):
  if isinstance(value, Mapping):
    return all(map(_empty, value.values()))
  return value is None


_PARSERS = {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  str: flags.ArgumentParser(),
}


class _OrNone(flags.ArgumentParser):
  """What absl wants a parser to be; reads "none", or as another parser."""

  def __init__(self, parser):
    self._parser = parser

  def parse(self, argument):
    none = isinstance(argument, str) and argument.lower() == "none"
    return None if none else self._parser.parse(argument)

  def flag_type(self):
    return self._parser.flag_type()


def _refuse_none(function, fields):
  hints = typing.get_type_hints(function)
  for name in _keywords(function):
    kinds = typing.get_args(hints.get(name))
    if fields.get(name, 0) is None and type(None) not in kinds:
      raise ValueError(f"{name} cannot be none.")


def _placeholder(hint):
  """A field that is None and takes a value of the hint's other type."""
  kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
  return config_dict.placeholder(kinds[0])


def _keywords(function):
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
