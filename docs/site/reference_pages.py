"""The reference pages of the command line and of the training settings, from the dataclasses that
define the options.
"""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import MISSING, fields
from typing import Any

from unteach.cli import COMMANDS, load_command
from unteach.cli.options import build_parser
from unteach.config import UnlearningConfig

COMMAND_LINE = """\
For those who look up an option. Generated from the code: `unteach COMMAND --help` prints the same.

Options may also stand in a YAML file (`unteach run settings.yaml`), with underscores in place of
dashes. `run`, `demo`, `plan` and `request` also take `key=value` for every
[training setting](settings.md). A user's mistake ends with one sentence and exit code 2."""
SETTINGS = """\
For those who tune a run. Generated from the fields of `UnlearningConfig`. Give them as `key=value`
on the command line, as keys of a YAML file, or as keyword arguments in Python.

These are the defaults of the class. `unteach run` and `unlearn` choose some of them from the model
and the data ([how](methods.md#what-each-setting-of-a-run-is-for)); `unteach run --dry-run` prints
each value with its source. Every other field of transformers' `TrainingArguments` works as
documented there."""


def pages() -> dict[str, str]:
    """Each page by its path under docs/."""
    return {"reference/cli.md": command_line(), "reference/settings.md": settings()}


def command_line() -> str:
    """One section for each command: its help text, its arguments and its options."""
    parts = [
        "# Command line",
        COMMAND_LINE,
        table(
            ["command", "what it does"],
            [[f"[`{name}`](#unteach-{name})", text] for name, (_, text) in COMMANDS.items()],
        ),
    ]
    for name in COMMANDS:
        command = load_command(name)
        parts += [f"## unteach {name}", described(inspect.getdoc(command.work) or "")]
        actions = build_parser(name, command)._actions
        rows = [[spelled(action), linked(escaped(action.help or ""))] for action in actions[1:]]
        parts.append(table(["option", "meaning"], rows))
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """The fields that `UnlearningConfig` adds to, or sets differently from, `TrainingArguments`."""
    own = set(UnlearningConfig.__annotations__)
    rows = [
        [f"`{item.name}`", f"`{shown(item)}`", escaped(item.metadata.get("help", ""))]
        for item in fields(UnlearningConfig)
        if item.name in own and item.init
    ]
    parts = ["# Training settings", SETTINGS, table(["setting", "default", "meaning"], rows)]
    return "\n\n".join(parts) + "\n"


def described(text: str) -> str:
    """A help text as Markdown: its indented lines are code."""
    blocks: list[str] = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        code = [line for line in lines if line.startswith("  ")]
        prose = [line for line in lines if not line.startswith("  ")]
        blocks += [linked(escaped(" ".join(prose)))] if prose else []
        language = "sh" if code and code[0].split()[0] == "unteach" else "text"
        blocks += [f"```{language}\n" + inspect.cleandoc("\n".join(code)) + "\n```"] if code else []
    return "\n\n".join(blocks)


def linked(text: str) -> str:
    """A help text with its options as code, and with links to the pages that it names."""
    text = re.sub(r"(?<![\w-])(--[a-z][\w-]*(?: [A-Z]+\b)?)", r"`\1`", text)
    return re.sub(r"docs/([\w-]+)/([\w-]+)\.md", r"[\2](../\1/\2.md)", text)


def spelled(action: argparse.Action) -> str:
    """An option as one types it."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    words = ", ".join(f"`{flag}{value}`" for flag in action.option_strings)
    return words + (" (required)" if action.required else "")


def shown(item: Any) -> str:
    """A field's default as in YAML."""
    value = item.default if item.default is not MISSING else item.default_factory()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


def escaped(text: str) -> str:
    """A help text inside a table cell or a paragraph."""
    text = re.sub(r"([\\|*_{}\[\]#`])", r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))
    return text.replace("%%", "%").replace("\n", " ")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
