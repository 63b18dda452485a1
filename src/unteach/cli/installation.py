"""`unteach doctor` and `unteach completion`: what is installed, what is missing, what this machine
can do; and completion of commands and options in a shell, by shtab.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any, Literal

from unteach import __version__
from unteach.cli.exit_codes import quiet_libraries
from unteach.cli.options import COMMANDS as ALL
from unteach.cli.options import Command, build_parser, load_command
from unteach.config.run import option, required
from unteach.doctor import GIB, machine, packages, sizes

# --- what is installed


@dataclass(frozen=True)
class DoctorCommand:
    """Options of `unteach doctor`."""

    json: bool = option(False, "print JSON")


def doctor(given: dict[str, Any]) -> int:
    """Says what is installed, what is missing and how it is added, and which models this machine
    can train. Reads no model and sends nothing. Exit code 0: all that unteach needs is there; 2:
    something is missing.
    """
    quiet_libraries()
    needed, facts = packages(), machine()
    wrong = [package for package in needed[""] if not package["right"]]
    memory, gpu = facts["memory_bytes"], bool(facts["accelerators"])
    if gpu:
        memory = min(device["memory_bytes"] for device in facts["accelerators"])
    ready = not wrong and facts["torch"] is not None
    fits = sizes(memory, gpu=gpu) if ready and memory else {}
    if given.get("json"):
        every = {"unteach": __version__, "packages": needed, "machine": facts, "largest": fits}
        print(json.dumps(every, indent=2))
    else:
        print("\n".join([*_installed(needed, wrong), "", *_machine(facts), "", *_fits(fits, gpu)]))
    return 0 if ready else 2


def _installed(needed: dict[str, list[dict[str, Any]]], wrong: list[dict[str, Any]]) -> list[str]:
    there = f"{len(needed['']) - len(wrong)} of {len(needed[''])} packages that it needs are here"
    lines = [f"unteach {__version__}: {there}"]
    lines += [
        f"  missing: {one['name']}{one['wanted']} (found: {one['found'] or 'none'});"
        f" pip install '{one['name']}{one['wanted']}'"
        for one in wrong
    ]
    for extra, parts in sorted((name, parts) for name, parts in needed.items() if name):
        absent = [one["name"] for one in parts if not one["right"]]
        adds = f"missing {', '.join(absent)}; pip install 'unteach[{extra}]'"
        state = adds if absent else "there"
        lines.append(f"  extra {extra:<13}{state}")
    return lines


def _machine(facts: dict[str, Any]) -> list[str]:
    memory = facts["memory_bytes"]
    lines = [
        f"Python {facts['python']}, torch {facts['torch'] or 'none'}",
        f"  processor    {facts['cores']} cores,"
        f" {f'{memory / GIB:.0f} GiB' if memory else 'unknown'} of memory,"
        f" {facts['disk_free_bytes'] / GIB:.0f} GiB of disk free here",
    ]
    if "torch_error" in facts:
        lines.append(f"  torch cannot be imported: {facts['torch_error']}")
    lines += [
        f"  accelerator  {device['name']}, {device['memory_bytes'] / GIB:.0f} GiB"
        for device in facts["accelerators"]
    ] or ["  accelerator  none"]
    said = "in hardware: bf16=true is worth it" if facts["bfloat16"] else "not in hardware"
    lines.append(f"  bfloat16     {said}")
    offline = ", offline (HF_HUB_OFFLINE)" if facts["hub_offline"] else ""
    return [*lines, f"  hub          {facts['hub_folder']}{offline}"]


def _fits(fits: dict[str, str | None], gpu: bool) -> list[str]:
    if not fits:
        return ["Which models fit is not known."]
    lines = [f"Largest model that fits, by `unteach plan`, on {'the GPU' if gpu else 'the CPU'}:"]
    return lines + [f"  {largest or 'none':<6}with {way}" for way, largest in fits.items()]


# --- completion in a shell


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


COMMANDS = {
    "doctor": Command(doctor, DoctorCommand, light=True),
    "completion": Command(completion, CompletionCommand, light=True),
}
