"""The command line: `unteach COMMAND`; a user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module

from unteach import __version__
from unteach.cli.exit_codes import SEVERAL, check_launch, exit_code, named_files, quiet_libraries
from unteach.cli.options import Command, parse
from unteach.errors import did_you_mean
from unteach.processes import destroy_process_group

__all__ = ["main"]

HELP = """\
usage: unteach [--help] [--version] COMMAND ...

Makes a causal language model forget completions, from these alone, and measures that it did.

  unteach demo --out runs/demo
  unteach check --forget bad.jsonl --retain good.jsonl --model M
  unteach plan --model M --lora
  unteach run --model M --forget bad.jsonl --out runs/mine
  unteach eval --model runs/mine/model --reference M --forget bad.jsonl --out runs/eval
  unteach compare methods.yaml
  unteach attack runs/mine
  unteach chat M runs/mine/model
  unteach request runs/ledger --forget more.jsonl
  unteach report runs/mine
  unteach purge runs/mine

commands:
"""
COMMANDS = {
    "demo": ("run", "teach a small model a story, bad advice or false facts, and make it forget"),
    "run": ("run", "make a model forget the completions of a file"),
    "check": ("check", "find what is wrong with the data, before a run"),
    "eval": ("eval", "score a model, or a pair of models, on prompts"),
    "compare": ("compare", "several methods, on one or more models, in one table"),
    "attack": ("folder", "try to bring back what was forgotten"),
    "report": ("folder", "write tables, figures, page and model card of a run's folder"),
    "purge": ("folder", "remove every copy of the texts, keep the model and the numbers"),
    "plan": ("plan", "memory and time of a run, from the model's configuration alone"),
    "request": ("requests", "one more forget request on the same model, the earlier ones kept"),
    "requests": ("requests", "list forget requests, take a patch out or put it back"),
    "chat": ("chat", "two models side by side, in the browser"),
    "doctor": ("doctor", "what is installed, what is missing, what this machine can do"),
    "completion": ("completion", "a script that completes commands and options in a shell"),
}
"""Name of each command to its module and a line of help."""


def load_command(name: str) -> Command:
    """The command of this name; its module is imported now, so that `unteach --help` is instant."""
    module = import_module(f"unteach.cli.{COMMANDS[name][0]}")
    command: Command = module.COMMANDS[name]
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code(_run, sys.argv[1:] if argv is None else list(argv))


def _run(argv: list[str]) -> int:
    name, words = (argv[0], argv[1:]) if argv else ("", [])
    if name in ("", "-h", "--help"):
        lines = [f"    {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
        print(
            HELP + "\n".join(lines) + "\n\nunteach COMMAND --help lists the options of a command."
        )
        return 0 if name else 2
    if name == "--version":
        print(f"unteach {__version__}")
        return 0
    if name not in COMMANDS:
        option = name.startswith("-")
        known = ["--help", "--version"] if option else list(COMMANDS)
        raise did_you_mean(name, known, "option" if option else "command")
    command = load_command(name)
    given = parse(name, command, words)
    check_launch(name)
    if not command.light:
        quiet_libraries()
    defaults = {item.name: item.default for item in fields(command.options)}
    with named_files(defaults | given):
        code = command.work(given)
    if name in SEVERAL:
        destroy_process_group()
    return code
