"""Values of options: YAML, `key=value` words, and checks of types and ranges. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unteach.errors import UserError, did_you_mean, one_line

MOST_VALUES = 10_000
PLAIN = {bool, int, float, str, type(None)}


def read_yaml(text: str) -> Any:
    """Plain data from YAML, numbers such as 1e-5 among them.

    Raises:
        ValueError: for what is no YAML, with the reason in one line; for recursive aliases and for
            numbers over 2**63.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except Exception as error:  # PyYAML raises many types for a date, a number or a key
        raise ValueError(one_line(error, 300)) from None
    try:
        return _numbers(value, [MOST_VALUES])
    except RecursionError:
        raise ValueError("values are nested too deeply; an alias may contain itself") from None


def _numbers(value: Any, left: list[int]) -> Any:
    """The value with strings such as 1e-5, which YAML 1.1 does not read as numbers, as numbers."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {MOST_VALUES} values; aliases may multiply them")
    if isinstance(value, Mapping):
        return {key: _numbers(inner, left) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner, left) for inner in value]
    if isinstance(value, int) and abs(value) > 2**63:
        raise ValueError("a number is over 2**63")
    number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if number else value


def read_config(path: str) -> dict[str, Any]:
    """The options of a YAML file, by their names with underscores."""
    try:
        with open(path, encoding="utf-8") as file:
            options = read_yaml(file.read()) or {}
    except (OSError, ValueError) as error:
        reason = one_line(error, 1000)
        raise UserError(f"config {path!r} could not be read: {reason}") from None
    if not isinstance(options, dict):
        raise UserError(f"config {path!r} must be a mapping of options")
    return {str(name).replace("-", "_"): value for name, value in options.items()}


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict; values are read as YAML (numbers, true, null, lists)."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.replace("-", "_")
        if not equals or not name.isidentifier():
            raise UserError(f"{pair!r} is not key=value")
        try:
            settings[name] = read_yaml(value)
        except ValueError as error:
            raise UserError(f"{pair[:200]!r}: the value is not YAML ({error})") from None
    return settings


def kinds(hint: Any) -> tuple[set[Any], tuple[Any, ...]]:
    """(types, choices) that a field's annotation allows; choices only of a `Literal`."""
    types: set[Any] = set()
    choices: tuple[Any, ...] = ()
    for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(part) is Literal:
            choices = get_args(part)
            types |= {type(choice) for choice in choices}
        else:
            types.add(get_origin(part) or part)
    return types, choices


def check_types(values: Mapping[str, Any], options: type) -> None:
    """Raises `UserError` for a value of another type than its field of the dataclass `options`.

    Where a field takes other types than bool, int, float, str and null, only values of these types,
    lists and dicts are checked, and null is not: a number where a file name belongs would be opened
    as a file descriptor.
    """
    hints = get_type_hints(options)
    for name, value in values.items():
        types, _ = kinds(hints[name])
        given = type(value)
        checked = types <= PLAIN or given in (PLAIN - {type(None)} | {list, dict})
        if not checked or Any in types:
            continue
        if given not in types and not (given is int and float in types):
            names = sorted("null" if kind is type(None) else kind.__name__ for kind in types)
            raise UserError(f"option {name!r} is {value!r}, it must be {' or '.join(names)}")


def check_ranges(values: Mapping[str, Any], options: type) -> None:
    """Raises `UserError` for a value under its field's `minimum`, not under its `below`, or none of
    its choices.
    """
    hints, fields = get_type_hints(options), vars(options)["__dataclass_fields__"]
    for name, value in values.items():
        _, choices = kinds(hints[name])
        if value is None:
            continue
        if choices and value not in choices:
            raise did_you_mean(str(value), list(choices), name)
        least = fields[name].metadata.get("minimum")
        limit = fields[name].metadata.get("below")
        if least is not None and not least <= value < (2**32 if limit is None else limit):
            raise UserError(
                f"option {name!r} is {value}, it must be at least {least} and under"
                f" {limit or '2**32'}"
            )
