"""What is installed, what is missing, and what this machine can do. Its import needs no torch."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
