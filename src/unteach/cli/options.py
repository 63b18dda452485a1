"""The commands of `unteach` by name; their options, generated from the fields of dataclasses."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from importlib import import_module
from typing import Any, NoReturn, get_type_hints

from unteach.config.values import kinds, parse_settings, read_yaml
from unteach.errors import UserError, did_you_mean

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """A command of `unteach`.

    Args:
        work: does it with what the user gave, by name of the field, and returns the exit code; its
            docstring is the help text.
        options (`type`): the dataclass whose fields are its options.
        settings (`bool`): whether it takes `key=value` words, which `work` gets as `settings`.
        light (`bool`): whether it needs no transformers.
    """

    work: Callable[[dict[str, Any]], int]
    options: type
    settings: bool = False
    light: bool = False


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s: one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser(name: str, command: Command) -> Parser:
    """The parser of one command; an option that is not given is absent from its result."""
    parser = Parser(
        prog=f"unteach {name}",
        description=inspect.getdoc(command.work),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    hints = get_type_hints(command.options)
    for item in fields(command.options):
        if "help" in item.metadata:
            _add_option(parser, item, hints[item.name])
    if command.settings:
        words = "any other option or field of UnlearningConfig, such as learning_rate=1e-5"
        parser.add_argument("settings", nargs="*", metavar="key=value", help=words, default=[])
    return parser


def _add_option(parser: Parser, item: Field[Any], hint: Any) -> None:
    """One field as an option, or as a positional argument where its metadata says so."""
    about = item.metadata
    types, choices = kinds(hint)
    needed = item.default is MISSING and item.default_factory is MISSING
    default = None if item.default is MISSING else item.default
    more: dict[str, Any] = {"help": about["help"].replace("%", "%%")}
    if default not in (None, "", ()) and default is not False and "default:" not in about["help"]:
        more["help"] += f" (default: {default})"
    flags = _flags(item)
    flag = flags[0].removeprefix("--")
    if bool in types:
        more["action"] = "store_true"
    else:
        more |= {"action": "append"} if about.get("several") else {}
        more["type"] = _reader(item.name, types, choices)
        more["metavar"] = about.get("metavar") or "|".join(choices) or flag.upper()
    if about.get("positional"):
        more |= {"metavar": item.name.upper()} | ({} if needed else {"nargs": "?"})
        parser.add_argument(item.name, **more)
        return
    parser.add_argument(*flags, dest=item.name, required=needed, **more)


def _reader(name: str, types: set[Any], choices: Sequence[str]) -> Callable[[str], Any]:
    """From a word of the command line to a value of the field."""

    def chosen(word: str) -> str:
        if word not in choices:
            raise argparse.ArgumentTypeError(str(did_you_mean(word, list(choices), name)))
        return word

    def from_yaml(word: str) -> Any:
        try:
            return read_yaml(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{word[:200]!r} is not YAML ({error})") from None

    if choices:
        return chosen
    for kind, reader in ((dict, from_yaml), (float, float), (int, int)):
        if kind in types:
            return reader
    return str


def parse(name: str, command: Command, argv: Sequence[str]) -> dict[str, Any]:
    """What the user gave, by name of the field; `key=value` words may stand anywhere.

    Raises:
        UserError: for an unknown option, with the nearest, and for a value that is not one.
    """
    parser = build_parser(name, command)
    several = [item for item in fields(command.options) if item.metadata.get("several")]
    argv = _one_each(argv, {flag for item in several for flag in _flags(item)})
    if command.settings:
        found, extra = parser.parse_known_intermixed_args(argv)
    else:
        found, extra = parser.parse_known_args(argv)
    for word in extra:
        if word.startswith("-"):
            flags = re.findall(r"--[a-z-]+", parser.format_usage())
            raise _unknown_option(word.partition("=")[0], ["--help", *flags], command.settings)
        parser.error(f"{word!r} is not an option")
    given = vars(found)
    for item in several:
        if len(given.get(item.name) or ()) == 1:
            given[item.name] = given[item.name][0]
    home = {
        k: os.path.expanduser(v) for k, v in given.items() if isinstance(v, str) and v[:1] == "~"
    }
    return {**given, **home}  # a shell expands only some


def _flags(item: Field[Any]) -> list[str]:
    flag = item.metadata.get("alias", item.name).replace("_", "-")
    return [f"--{flag}", *item.metadata.get("also", ())]


def _one_each(argv: Sequence[str], flags: set[str]) -> list[str]:
    """The words, with its flag again before each further file of an option that takes several.

    Only names of data files and of saved data sets count as further files, so that `key=value`
    words and positional arguments may stand behind them.
    """
    if flags.isdisjoint(word.partition("=")[0] for word in argv):
        return list(argv)
    from unteach.data.sources import is_data_file

    words: list[str] = []
    flag, waits = "", False
    for word in argv:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            flag, waits = (name, not equals) if name in flags else ("", False)
        elif waits:
            waits = False
        elif flag and not re.match(r"[\w-]+=", word) and is_data_file(word):
            words.append(flag)
        else:
            flag = ""
        words.append(word)
    return words


def _unknown_option(name: str, known: list[str], settings: bool) -> UserError:
    """The error for an unknown option, which may be a field of `UnlearningConfig` with dashes."""
    if settings:
        from difflib import get_close_matches

        from unteach.config.unlearning import UnlearningConfig

        names = UnlearningConfig.__dataclass_fields__
        near = get_close_matches(name.strip("-").replace("-", "_"), names, n=1, cutoff=0.8)
        if near:
            return UserError(
                f"unknown option {name!r}: did you mean {near[0]}=VALUE, without dashes?"
            )
    return did_you_mean(name, known, "option")


def with_words(given: Given) -> dict[str, Any]:
    """What was given, the `key=value` words as a mapping in `settings`."""
    return {**given, "settings": parse_settings(given.get("settings", []))}


# --- the commands


COMMANDS = {
    "demo": ("run", "teach a small model a story, bad advice or false facts, and make it forget"),
    "run": ("run", "make a model forget the completions of a file"),
    "check": ("check", "find what is wrong with the data, before a run"),
    "eval": ("eval", "score a model, or a pair of models, on prompts"),
    "compare": ("run", "several methods, on one or more models, in one table"),
    "attack": ("folder", "try to bring back what was forgotten"),
    "report": ("folder", "write tables, figures, page and model card of a run's folder"),
    "purge": ("folder", "remove every copy of the texts, keep the model and the numbers"),
    "plan": ("run", "memory and time of a run, from the model's configuration alone"),
    "request": ("requests", "one more forget request on the same model, the earlier ones kept"),
    "requests": ("requests", "list forget requests, take a patch out or put it back"),
    "chat": ("chat", "two models side by side, in the browser"),
    "ui": ("chat", "one page to check, train, watch, compare, attack and download"),
    "doctor": ("installation", "what is installed, what is missing, what this machine can do"),
    "completion": ("installation", "a script that completes commands and options in a shell"),
}
"""Name of each command to its module and a line of help."""


def load_command(name: str) -> Command:
    """The command of this name; its module is imported now, so that `unteach --help` is instant."""
    module = import_module(f"unteach.cli.{COMMANDS[name][0]}")
    command: Command = module.COMMANDS[name]
    return command
