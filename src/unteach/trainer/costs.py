"""What a stage of training costs: seconds, tokens by kind, peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch


@dataclass(frozen=True)
class Cost:
    """The cost of one stage, over all its sessions where it was interrupted.

    Args:
        seconds (`float`): wall clock of its optimiser steps (generation, forward, backward, update)
            and of what is computed once before them; without loading, probes and checkpoints.
        data_tokens (`int`): tokens of good answers that someone had to write, each counted in the
            first stage that reads it.
        generated_tokens (`int`): tokens that the model wrote to learn from.
        training_tokens (`int`): tokens with a forward and a backward pass.
        peak_memory_mb (`float`): peak memory of the process during the stage (before it, where the
            system does not say), in MiB: on the GPU where one was used, else resident.
        forward_tokens (`int`): tokens with a forward pass only: prompts before generation,
            reference, reward model.
        probe_seconds (`float`): wall clock of the probes; not part of `seconds`.
    """

    stage: str
    seconds: float
    data_tokens: int
    generated_tokens: int
    training_tokens: int
    peak_memory_mb: float
    forward_tokens: int = 0
    probe_seconds: float = 0.0


def reset_peak_memory() -> None:
    """Resets peak-memory statistics: of the GPU, if there is one, and on Linux of resident
    memory.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Peak memory of this process in MiB, since `reset_peak_memory` where the system can, else
    since its start: of the GPU where one was used, else resident.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def memory_bytes() -> int:
    """Memory of the GPU, or without one of the machine: what is free differs from run to run."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return int(psutil.virtual_memory().total)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of the stages' costs; of memory the maximum."""
    stages = [vars(cost) for cost in costs]
    peak = max((stage["peak_memory_mb"] for stage in stages), default=0.0)
    added = ("seconds", "data_tokens", "generated_tokens", "training_tokens", "forward_tokens")
    sums = {
        name: round(sum(stage[name] for stage in stages), 3) for name in (*added, "probe_seconds")
    }
    return Cost("all", peak_memory_mb=peak, **sums)


def unlearning_cost(
    lines: Sequence[Mapping[str, Any]],
    *,
    reference_tokens: int,
    live_reference: bool,
    peak_mb: float,
) -> Cost:
    """The cost of an unlearning run, from the lines of its `metrics.jsonl`.

    Args:
        lines: steps (with `loss`; the first also with the `reference_seconds` before it) and probes
            (with `probe`).
        reference_tokens (`int`): tokens of the retain rows, which a stored reference reads once.
        live_reference (`bool`): the reference reads each step's batch instead.
        peak_mb (`float`): peak memory in MiB.
    """
    steps = [line for line in lines if "loss" in line]
    once = [line["reference_seconds"] for line in lines if "reference_seconds" in line]
    probes = [line.get("seconds", 0.0) for line in lines if "probe" in line]
    tokens = int(sum(step["tokens"] for step in steps))
    return Cost(
        "unlearning",
        seconds=round(sum(step["seconds"] for step in steps) + sum(once), 3),
        data_tokens=0,
        generated_tokens=0,
        training_tokens=tokens,
        peak_memory_mb=round(peak_mb, 1),
        forward_tokens=(tokens if live_reference else reference_tokens) if once else 0,
        probe_seconds=round(sum(probes), 1),
    )


def tokens_seen(history: Sequence[Mapping[str, Any]]) -> int:
    """Training tokens from a trainer's log, whose count restarts where a run was resumed."""
    seen = last = 0.0
    for now in (float(record["num_tokens"]) for record in history if "num_tokens" in record):
        seen += now if now < last else now - last
        last = now
    return int(seen)
