"""`unteach doctor` and `unteach completion`: what is installed, what is missing, what this machine
can do; and completion of commands and options in a shell, by shtab.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from unteach import __version__
from unteach.cli.exit_codes import quiet_libraries
from unteach.cli.options import COMMANDS as ALL
from unteach.cli.options import Command, build_parser, load_command
from unteach.config.run import option, required
from unteach.errors import one_line

GIB = 2**30
SHAPES = {
    "0.1B": (576, 1536, 30, 9, 3, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "3B": (3072, 8192, 28, 24, 8, 128256),
    "8B": (4096, 14336, 32, 32, 8, 128256),
    "14B": (5120, 17408, 40, 40, 8, 151936),
    "32B": (5120, 25600, 64, 64, 8, 151936),
}
FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""What the numbers of `SHAPES` are, in a model's configuration."""
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "--lora": {"lora": True},
    "--lora --dtype bfloat16 activation_checkpointing=true": {
        "lora": True,
        "dtype": "bfloat16",
        "activation_checkpointing": True,
    },
}
"""Options that train a model of a size, from the most memory to the least."""


def packages() -> dict[str, list[dict[str, Any]]]:
    """The packages that unteach needs, under `""`, and those of each extra, under its name.

    Returns:
        for each package its `name`, the `wanted` versions, the version `found` (`None`: not
        installed), and whether that is `right`.
    """
    from packaging.requirements import Requirement

    found: dict[str, list[dict[str, Any]]] = {}
    for line in metadata.requires("unteach") or []:
        need = Requirement(line)
        extras = [""] if need.marker is None or need.marker.evaluate({"extra": ""}) else []
        if not extras:
            named = metadata.metadata("unteach").get_all("Provides-Extra") or []
            extras = [x for x in named if need.marker and need.marker.evaluate({"extra": x})]
        if need.name == "unteach":
            continue
        try:
            version: str | None = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = None
        right = version is not None and need.specifier.contains(version, prereleases=True)
        entry = {"name": need.name, "wanted": str(need.specifier), "found": version, "right": right}
        for extra in extras:
            found.setdefault(extra, []).append(entry)
    return found


def machine() -> dict[str, Any]:
    """Cores, memory, disk, accelerators, bfloat16 instructions and folders of this machine; bytes
    where the name ends so. `torch` is `None` where it cannot be imported.
    """
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "hub_folder": os.environ.get("HF_HOME", "~/.cache/huggingface"),
        "torch": None,
        "accelerators": [],
        "bfloat16": False,
    }
    try:
        import torch
    except Exception as error:  # a broken build raises many types
        return {**facts, "torch_error": one_line(error)}
    from unteach.config.resolve import multiplies_bfloat16

    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    devices = [torch.cuda.get_device_properties(place) for place in cuda]
    facts["torch"] = torch.__version__
    facts["accelerators"] = [
        {"name": device.name, "memory_bytes": device.total_memory} for device in devices
    ]
    return {**facts, "bfloat16": multiplies_bfloat16()}


def memory_bytes() -> int | None:
    """The machine's memory, or `None` where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def sizes(memory: int, *, gpu: bool) -> dict[str, str | None]:
    """The largest of `SHAPES` that `unteach plan` fits into that memory, a tenth to spare, by the
    options that train it; `None` where none fits. For rows of 60 tokens, one a step.

    Args:
        memory (`int`): bytes of the GPU, or of the machine.
    """
    from transformers import LlamaConfig

    from unteach.config.resolve import resolve
    from unteach.plan import PlanOptions, model_shape, plan_memory

    options = PlanOptions(device="gpu" if gpu else "cpu")
    largest: dict[str, str | None] = dict.fromkeys(WAYS)
    for label, numbers in SHAPES.items():
        shape_of: dict[str, Any] = dict(zip(FIELDS, numbers, strict=True))
        config = LlamaConfig(**shape_of)
        for way, given in WAYS.items():
            settings = {**given, "model": "m", "per_device_train_batch_size": 1, "use_cpu": True}
            resolved = resolve({**settings, "bf16": gpu})
            rank = resolved.run.lora_rank if resolved.run.lora else 0
            shape = model_shape(config, lora_rank=rank)
            training = resolved.with_width(shape.hidden).unlearning_config("unteach-output")
            plan = plan_memory(shape, training, options, dtype=resolved.run.dtype)
            if plan.peak <= 0.9 * memory:
                largest[way] = label
    return largest


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
