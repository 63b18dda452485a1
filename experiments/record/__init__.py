"""Options and output that all experiments share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unteach.files.atomic import write_json, write_text_atomically
from unteach.run.record import machine, versions


def parser(description: str | None, folder: str) -> argparse.ArgumentParser:
    """A parser of `--short`, `--json` and `--out`, the latter `runs/FOLDER` by default."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--short", action="store_true", help="fewer steps, fewer rows")
    found.add_argument("--json", type=Path, help="file for the result")
    found.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / folder,
        help="folder of the runs (default: %(default)s)",
    )
    return found


def run_parser(description: str | None, folder: str) -> argparse.ArgumentParser:
    """The same with `--seeds` and `--model`."""
    found = parser(description, folder)
    found.add_argument("--seeds", default="0", help="separated by commas (default: %(default)s)")
    found.add_argument(
        "--model", default="smollm2-135m-instruct", help="the model (default: %(default)s)"
    )
    return found


def write(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Writes the rows with the machine and the versions, if a file is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"machine": machine(), "versions": versions(), "rows": list(rows)})


def write_page(page: str, rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Prints the page; writes the rows as JSON and the page as Markdown beside it, if a file is
    given.
    """
    print(page)
    write(rows, path)
    if path:
        write_text_atomically(path.with_suffix(".md"), page + "\n")
