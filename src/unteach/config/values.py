"""Values of options: YAML scalars, `key=value` words, and checks of their types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unteach.errors import UserError, did_you_mean


def read_yaml(text: str) -> Any:
    """Plain data from YAML, numbers such as 1e-5 among them.

    Raises:
        ValueError: for what is no YAML, with the reason in one line; for aliases that lead to
            themselves or multiply, and too long numbers.
    """
    import yaml

    try:
        return scalar(yaml.safe_load(text))
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,
    ) as error:
        # the reader of dates, numbers and mappings lets Python's own errors through
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None


MOST_VALUES = 10_000


def scalar(value: Any, left: list[int] | None = None) -> Any:
    """The value, a number if it is one such as 1e-5, which YAML reads as a string; the same for
    what a mapping or list holds.
    """
    left = [MOST_VALUES] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {MOST_VALUES} values; aliases may lead to themselves")
    if isinstance(value, Mapping):
        return {key: scalar(inner, left) for key, inner in value.items()}
    if isinstance(value, list):
        return [scalar(inner, left) for inner in value]
    if isinstance(value, int) and abs(value) > 2**63:
        raise ValueError("a number is too large")
    return (
        float(value)
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
        else value
    )


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict; values are read as YAML scalars (numbers, true, null)."""
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


def checked_settings(settings: dict[str, Any], also: Sequence[str] = ()) -> dict[str, Any]:
    """The settings, if each is a field of `UnlearningConfig` and of its type.

    Raises:
        UserError: for an unknown name, with the nearest of the known ones and those in `also`; for
            a value of another type.
    """
    from unteach.config.unlearning import UnlearningConfig

    fields = UnlearningConfig.__dataclass_fields__
    elsewhere = {"output_dir": "--out", "seed": "--seed", "data_seed": "--seed"}
    for name in settings:
        if name not in fields:
            raise did_you_mean(name, sorted({*fields, *also}), "option")
        if name in elsewhere:
            raise UserError(f"option {name!r} is given as {elsewhere[name]}")
    check_types(settings, UnlearningConfig)
    return settings


def kinds(hint: Any) -> tuple[set[Any], tuple[Any, ...]]:
    """(types, choices) that an annotation of a field takes; choices only where it is a `Literal`."""
    from typing import Literal, get_args, get_origin

    if get_origin(hint) is Literal:
        return {type(choice) for choice in get_args(hint)}, get_args(hint)
    types: set[Any] = set()
    choices: tuple[Any, ...] = ()
    for part in get_args(hint) or (hint,):
        if get_origin(part) is Literal:
            types |= kinds(part)[0]
            choices = get_args(part)
        else:
            types.add(part)
    return types, choices


def check_types(values: Mapping[str, Any], options: type) -> None:
    """Raises `UserError` for a value that its field of the dataclass `options` does not take, where
    that is plainly so.
    """
    from typing import get_type_hints

    hints = get_type_hints(options)
    for name, value in values.items():
        allowed, _ = kinds(hints[name])
        if not allowed <= {bool, int, float, str, type(None)}:
            continue
        if type(value) not in allowed and not (type(value) is int and float in allowed):
            names = " or ".join(
                sorted("null" if kind is type(None) else kind.__name__ for kind in allowed)
            )
            raise UserError(f"option {name!r} is {value!r}, it must be {names}")


def check_ranges(values: Mapping[str, Any], options: type) -> None:
    """Raises `UserError` for a value under its field's `minimum` or none of its choices."""
    from typing import get_type_hints

    hints = get_type_hints(options)
    for name, value in values.items():
        _, choices = kinds(hints[name])
        if choices and value is not None and value not in choices:
            raise did_you_mean(str(value), list(choices), name)
        least = options.__dataclass_fields__[name].metadata.get("minimum")  # type: ignore[attr-defined]
        if least is not None and not least <= value < 2**32:
            raise UserError(
                f"option {name!r} is {value}, it must be at least {least} and under 2**32"
            )
