"""What every benchmark shares: its options, the machine's facts, the JSON file, the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from unteach.files.atomic import write_text_atomically
from unteach.run.record import versions


def options(
    description: str | None,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
    *,
    cases: bool = False,
) -> argparse.Namespace:
    """`--short` and `--json`, `--case` where a benchmark has cases to choose from, and what
    `extend` adds to the parser.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, help="file for the result")
    if cases:
        parser.add_argument("--case", nargs="*", help="names of the cases to run (default: all)")
    if extend:
        extend(parser)
    return parser.parse_args()


def run_options(parser: argparse.ArgumentParser, folder: str) -> None:
    """`--seeds`, `--model` and `--out`, of benchmarks that make whole runs."""
    parser.add_argument("--seeds", default="0", help="separated by commas (default: %(default)s)")
    parser.add_argument(
        "--model", default="smollm2-135m-instruct", help="the model (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / folder,
        help="folder of the runs (default: %(default)s)",
    )


def machine() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, accelerator."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def finish(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Prints the rows and writes them with the machine and the versions."""
    for row in rows:
        print(
            f"{row['case']:<32} ours {row['ours']:>10.3f}  naive {row['naive']:>10.3f}"
            f" {row['unit']:<10} ratio {row['ratio']:.2f}"
        )
    write(rows, path)


def finish_page(page: str, rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Prints a benchmark's page; writes the rows as JSON, and the page as Markdown beside them, if
    there is a file to write.
    """
    print(page)
    write(rows, path)
    if path:
        write_text_atomically(path.with_suffix(".md"), page + "\n")


def write(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Writes the rows with the machine and the versions, if there is a file to write."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"machine": machine(), "versions": versions(), "rows": list(rows)}, indent=2)
            + "\n",
            encoding="utf-8",
        )
