"""The commands of `unteach` by name; each is in a module of its own."""

from __future__ import annotations

from importlib import import_module

from unteach.cli.options import Command

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
    "ui": ("chat", "one page to check, train, watch, compare, attack and download"),
    "doctor": ("doctor", "what is installed, what is missing, what this machine can do"),
    "completion": ("completion", "a script that completes commands and options in a shell"),
}
"""Name of each command to its module and a line of help."""


def load_command(name: str) -> Command:
    """The command of this name; its module is imported now, so that `unteach --help` is instant."""
    module = import_module(f"unteach.cli.{COMMANDS[name][0]}")
    command: Command = module.COMMANDS[name]
    return command
