"""What a stage of training costs: seconds, tokens by kind, peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """The price of one stage.

    Args:
        stage (`str`)
        seconds (`float`): wall clock, over all its sessions where it was interrupted.
        data_tokens (`int`): tokens of good answers and of pairs that someone had to supply.
        generated_tokens (`int`): tokens that the model wrote to learn from.
        training_tokens (`int`): tokens that went through the model forward and backward.
        peak_memory_mb (`float`): peak resident memory of the process during the stage (before it, where the system does not say).
    """

    stage: str
    seconds: float
    data_tokens: int
    generated_tokens: int
    training_tokens: int
    peak_memory_mb: float


def forget_peak_memory() -> None:
    """Lets the peak of this process's resident memory begin anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MiB, since `forget_peak_memory` where the system can, else since its start."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of the stages' costs; of memory the highest."""
    costs = list(costs)
    return Cost(
        "all",
        sum(cost.seconds for cost in costs),
        sum(cost.data_tokens for cost in costs),
        sum(cost.generated_tokens for cost in costs),
        sum(cost.training_tokens for cost in costs),
        max((cost.peak_memory_mb for cost in costs), default=0.0),
    )
