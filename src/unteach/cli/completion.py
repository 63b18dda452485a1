"""`unteach completion`: completion of commands and options in a shell, by shtab."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any, Literal

from unteach.cli.commands import COMMANDS as ALL
from unteach.cli.commands import load_command
from unteach.cli.options import Command, build_parser
from unteach.config.run import required


@dataclass(frozen=True)
class CompletionCommand:
    """Options of `unteach completion`."""

    shell: Literal["bash", "zsh", "fish", "tcsh"] = required(
        "shell", help="bash, zsh, fish or tcsh", positional=True
    )


def completion(given: dict[str, Any]) -> int:
    """Prints a script that completes commands and options in a shell.

    unteach completion bash > ~/.local/share/bash-completion/completions/unteach
    unteach completion zsh > ~/.zfunc/_unteach
    unteach completion fish > ~/.config/fish/completions/unteach.fish
    """
    import shtab

    parser = ArgumentParser(prog="unteach")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    for name, (_, text) in ALL.items():
        own = build_parser(name, load_command(name))
        commands.add_parser(name, parents=[own], add_help=False, help=text)
    print(shtab.complete(parser, shell=given["shell"]))
    return 0


COMMANDS = {"completion": Command(completion, CompletionCommand, light=True)}
