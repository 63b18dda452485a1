"""`unteach purge`: takes every derived copy of the texts out of an output folder, and keeps the
model and the numbers.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unteach.errors import UserError
from unteach.files.atomic import write_text_atomically
from unteach.files.folders import LOCK, FolderLock
from unteach.requests.ledger import ROWS, superseded_models

DERIVED = {
    "work": "answers, recited passages and token ids",
    "checkpoints": "weights from before the model had forgotten, states of the reference model",
    "original": "the taught model, which knows the texts by heart",
    "stages": "a baseline's models and checkpoints",
}
"""Folders that go, and what is in them."""
TEXTS = ("prompt", "expected", "output")
"""Fields of `generations.jsonl` that go."""
PAGES = ("report.md", "report.html", "README.md", "model/README.md", "adapter/README.md")


def purge(folder: Path) -> list[str]:
    """Removes what an output folder, and each run's folder in it, holds of the texts; returns a
    line for each thing removed.

    Files are deleted, not overwritten: what a disk keeps of a deleted file, and copies made
    elsewhere, are out of reach.

    Args:
        folder (`Path`): the folder of a run, an evaluation, a comparison or a ledger of requests.

    Raises:
        UserError: for a folder that is none of these, and for one that a process is writing into.
    """
    if "\0" in str(folder) or not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    ours = [
        place
        for place in [
            folder,
            *_folders(folder),
            *(inner for outer in _folders(folder) for inner in _folders(outer)),
        ]
        if _is_ours(place)
    ]
    if not ours:
        raise UserError(
            f"{folder} is no output folder of unteach: it has no config.yaml of a run and no"
            " eval.json"
        )
    removed: list[str] = []
    with contextlib.ExitStack() as locks:
        for place in ours:
            locks.enter_context(FolderLock(place))
        for place in ours:
            name = "" if place == folder else f"{place.relative_to(folder)}/"
            removed += [f"{name}{line}" for line in _purge_one(place)]
        for model in superseded_models(folder):
            shutil.rmtree(model)
            removed.append(
                f"{model.relative_to(folder)}/: a model that knows what a later request made it"
                " forget"
            )
    return removed


def set_aside_copies(folder: Path) -> list[Path]:
    """Folders beside this one that hold earlier runs, set aside when the settings changed."""
    folder = folder.absolute()
    return [
        place
        for place in sorted(folder.parent.glob(f"{folder.name}-*"))
        if place.name.rpartition("-")[2].isdigit() and _is_ours(place)
    ]


def _folders(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir()
        and not path.is_symlink()
        and path.name not in (*DERIVED, "model", "adapter")
    ]


def _is_ours(folder: Path) -> bool:
    def says(name: str, word: str) -> bool:
        try:
            return word in (folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False

    return (
        (folder / LOCK).exists()
        or (
            re.fullmatch(r"model-\d+", folder.name) is not None
            and any(map(_is_ours, _folders(folder)))
        )  # of a comparison
        or (folder / "work" / ROWS).exists()
        or says("config.yaml", "prompt_sets:")
        or says("eval.json", '"schema_version"')
    )


def _purge_one(folder: Path) -> Iterator[str]:
    steps = folder / "checkpoints" / "metrics.jsonl"
    if steps.is_file() and not (folder / "metrics.jsonl").exists():
        shutil.copyfile(steps, folder / "metrics.jsonl")
    parts = [path for path in folder.glob(".*.part") if path.is_dir()]
    for path in [folder / name for name in DERIVED] + parts:
        if path.is_symlink():
            path.unlink()
            yield f"{path.name}: a link to another place, which is left as it is"
        elif path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
            size = sum(file.stat().st_size for file in files)
            shutil.rmtree(path)
            yield (
                f"{path.name}/: {len(files)} files, {size / 2**20:.1f} MiB"
                f" ({DERIVED.get(path.name, 'a write that was cut off')})"
            )
    for path in folder.glob(".*.part"):
        path.unlink()
        yield f"{path.name}: a write that was cut off"
    texts = _strip_texts(folder / "generations.jsonl")
    if texts:
        yield f"generations.jsonl: the texts of {texts} rows (their numbers stay)"
    yield from _rewrite_pages(folder)


def _strip_texts(path: Path) -> int:
    """Takes the texts out of the records; returns from how many."""
    if not path.exists():
        return 0
    records: list[dict[str, Any]] = []
    stripped = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = dict(json.loads(line))
            except (ValueError, TypeError):
                stripped += bool(line.strip())
                continue
            stripped += any(field in record for field in TEXTS)
            records.append({name: value for name, value in record.items() if name not in TEXTS})
    if stripped:
        write_text_atomically(
            path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        )
    return stripped


def _rewrite_pages(folder: Path) -> Iterator[str]:
    """Writes the report and the card anew from what is left; removes them where that cannot be
    done.
    """
    pages = [folder / name for name in PAGES if (folder / name).is_file()]
    if not pages:
        return
    before = {page: page.read_bytes() for page in pages}
    from unteach.reports.report import write_report

    try:
        write_report(folder)
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        for page in pages:
            page.unlink(missing_ok=True)
            yield (
                f"{page.relative_to(folder)}: removed, as it cannot be written anew from what is"
                " left"
            )
        return
    for page in pages:
        if page.read_bytes() != before[page]:
            yield f"{page.relative_to(folder)}: written anew without texts"
