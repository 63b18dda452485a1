"""Options and output that all benchmarks share."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unteach.files.atomic import write_json
from unteach.run.record import machine, versions


def options(description: str | None, *, cases: bool = False) -> argparse.Namespace:
    """Parses `--short` and `--json`, and `--case` where a benchmark has cases to choose from."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, help="file for the result")
    if cases:
        parser.add_argument("--case", nargs="*", help="names of the cases to run (default: all)")
    return parser.parse_args()


def in_own_process(script: str, *arguments: str) -> str:
    """The last line that a benchmark prints as its own child (`--child ARGUMENTS`), so that its
    peak memory is of one measurement alone.
    """
    command = [sys.executable, script, "--child", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def compared(case: str, ours: float, naive: float, unit: str) -> dict[str, Any]:
    """A row of the result; its ratio is ours / naive."""
    ratio = ours / naive if naive else 0.0
    return {"case": case, "ours": ours, "naive": naive, "ratio": ratio, "unit": unit}


def finish(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Prints the rows and writes them."""
    for row in rows:
        print(
            f"{row['case']:<32} ours {row['ours']:>10.3f}  naive {row['naive']:>10.3f}"
            f" {row['unit']:<10} ratio {row['ratio']:.2f}"
        )
    write(rows, path)


def write(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Writes the rows with the machine and the versions, if a file is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"machine": machine(), "versions": versions(), "rows": list(rows)})
