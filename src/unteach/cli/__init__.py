"""The command line: `unteach COMMAND`; a user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields

from unteach import __version__
from unteach.cli.exit_codes import SEVERAL, check_launch, exit_code, named_files, quiet_libraries
from unteach.cli.options import COMMANDS, load_command, parse
from unteach.errors import did_you_mean
from unteach.processes import destroy_process_group

__all__ = ["COMMANDS", "load_command", "main"]

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
