"""`run.json` and the rest of a finished run's folder."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from unteach import __version__
from unteach.checkpoints import write_json, write_text_atomically
from unteach.data.rows import Row


def rows_hash(rows: Iterable[Row]) -> str:
    """16 hexadecimal digits that name a set of rows, whatever their order."""
    return hashlib.sha256("".join(sorted(row.key for row in rows)).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return {
        "unteach": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the GPU if one was used, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_run_record(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Copies `metrics.jsonl` up from the checkpoints and writes `run.json`: versions, the given facts, tokens and memory.

    A baseline leaves no steps of ours: its tokens are those in `facts["cost"]`.

    Args:
        folder (`Path`): the run's folder.
        facts: what the run knows about itself, as plain data.
    """
    metrics = folder / "checkpoints" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    write_text_atomically(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    steps = [line for line in lines if "loss" in line]
    tokens, seconds = sum(line["tokens"] for line in steps), sum(line["seconds"] for line in steps)
    if "cost" in facts and not steps:
        tokens, seconds = facts["cost"]["training_tokens"], facts["cost"]["seconds"]
    record = {
        "versions": versions(),
        **facts,
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(folder / "run.json", record)
    return record
