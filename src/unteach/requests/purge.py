"""`unteach purge`: removes every derived copy of the texts from an output folder, and keeps the
model and the numbers.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from unteach.errors import UserError
from unteach.files.atomic import write_text_atomically
from unteach.files.folders import LOCK, FolderLock, uploads
from unteach.requests.ledger import ROWS, superseded_models

DERIVED = {
    "work": "answers, recited passages and token ids",
    "checkpoints": "weights from before the model had forgotten, states of the reference model",
    "original": "the taught model, which knows the texts by heart",
    "stages": "a baseline's models and checkpoints",
}
"""Folders that are removed, and what is in them."""
DATA_FILES = Path("work") / "data_files.json"
"""Where a run that is not finished keeps the names of the files that it read."""
INTERRUPTED = "a write that was cut off"
TEXTS = ("prompt", "expected", "output")
"""Fields of `generations.jsonl` that are removed."""
PAGES = ("report.md", "report.html", "README.md", "model/README.md", "adapter/README.md")


def purge(folder: Path) -> list[str]:
    """Removes all texts from the folder of a run, an evaluation, a comparison or a ledger, and from
    each run's folder in it; and the files that were uploaded to `unteach ui` for these runs alone.
    Returns a line for each thing removed.

    Files are deleted, not overwritten: data that a disk keeps of a deleted file, and copies made
    elsewhere, are not removed.

    Raises:
        UserError: for another folder, and for one that a process is writing into.
    """
    if "\0" in str(folder) or not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    inner = _folders(folder)
    places = [folder, *inner, *(place for outer in inner for place in _folders(outer))]
    ours = [place for place in places if _is_output(place)]
    if not ours:
        missing = "it has no config.yaml of a run and no eval.json"
        raise UserError(f"{folder} is no output folder of unteach: {missing}")
    removed: list[str] = []
    with contextlib.ExitStack() as locks:
        for place in ours:
            locks.enter_context(FolderLock(place))
        uploaded = _uploads(folder, ours)
        for place in ours:
            name = "" if place == folder else f"{place.relative_to(folder)}/"
            removed += [f"{name}{line}" for line in _purge_one(place)]
        for model in superseded_models(folder):
            shutil.rmtree(model)
            place = model.relative_to(folder)
            removed.append(f"{place}/: a model that knows what a later request made it forget")
        for path, users in uploaded.items():
            if not users:
                path.unlink()
                removed.append(f"{path.parent.name}/{path.name}: uploaded rows")
    return removed


def kept_uploads(folder: Path) -> dict[Path, list[str]]:
    """Uploaded files of a purged run that are still there, and the other runs that use them."""
    return {path: users for path, users in _uploads(folder, [folder]).items() if users}


def _uploads(folder: Path, ours: list[Path]) -> dict[Path, list[str]]:
    """The uploaded files of these runs, with the names of the other runs that still use them. In a
    folder of runs that is purged as a whole: all uploaded files.
    """
    ours = [place.resolve() for place in ours]
    found: dict[Path, list[str]] = {}
    for bench in sorted({folder.resolve(), *(place.parent for place in ours)}):
        kept = uploads(bench)
        if not kept:
            continue
        purged = {path for place in ours for path in _data_files(place) or ()}
        places = [inner for place in _folders(bench) for inner in (place, *_folders(place))]
        others = [p for p in places if p not in ours and (p / "work").is_dir()]
        for path in kept:
            if path in purged or bench == folder.resolve():
                uses = (
                    (str(p.relative_to(bench)), _data_files(p)) for p in others if _is_output(p)
                )
                found[path] = [name for name, used in uses if used is None or path in used]
    return found


def _data_files(run: Path) -> set[Path] | None:
    """The files that a run read its rows from; `None` where it recorded none."""
    for place, field in ((run / "run.json", "data_files"), (run / DATA_FILES, "")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            record = json.loads(place.read_text(encoding="utf-8"))
            values = list((record[field] if field else record).values())
            lists = (value if isinstance(value, list) else [value] for value in values)
            return {Path(name) for names in lists for name in names if isinstance(name, str)}
    return None


def set_aside_copies(folder: Path) -> list[Path]:
    """Folders beside this one that hold earlier runs, renamed when the settings changed."""
    folder = folder.absolute()
    copies = sorted(folder.parent.glob(f"{folder.name}-*"))
    return [c for c in copies if c.name.rpartition("-")[2].isdigit() and _is_output(c)]


def _folders(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink())
    return [path for path in found if path.name not in (*DERIVED, "model", "adapter")]


def _is_output(folder: Path) -> bool:
    """Whether this package wrote the folder."""
    if (folder / LOCK).exists() or (folder / "work" / ROWS).exists():
        return True
    if re.fullmatch(r"model-\d+", folder.name) and any(map(_is_output, _folders(folder))):
        return True  # one model of a comparison
    for name, mark in (("config.yaml", "prompt_sets:"), ("eval.json", '"schema_version"')):
        with contextlib.suppress(OSError):
            if mark in (folder / name).read_text(encoding="utf-8", errors="replace"):
                return True
    return False


def _purge_one(folder: Path) -> Iterator[str]:
    steps = folder / "checkpoints" / "metrics.jsonl"
    if steps.is_file() and not (folder / "metrics.jsonl").exists():
        shutil.copyfile(steps, folder / "metrics.jsonl")
    parts = list(folder.glob(".*.part"))
    for path in [folder / name for name in DERIVED] + parts:
        if path.is_symlink():
            path.unlink()
            yield f"{path.name}: a link to another place, which is left as it is"
        elif path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
            size = sum(file.stat().st_size for file in files) / 2**20
            shutil.rmtree(path)
            content = DERIVED.get(path.name, INTERRUPTED)
            yield f"{path.name}/: {len(files)} files, {size:.1f} MiB ({content})"
        elif path in parts:
            path.unlink()
            yield f"{path.name}: {INTERRUPTED}"
    if texts := _strip_texts(folder / "generations.jsonl"):
        yield f"generations.jsonl: the texts of {texts} rows (their numbers stay)"
    yield from _rewrite_pages(folder)


def _strip_texts(path: Path) -> int:
    """Removes the texts and the broken lines of the records; returns how many lines changed."""
    if not path.exists():
        return 0
    kept, stripped = "", 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            stripped += bool(line.strip())
            continue
        stripped += any(field in record for field in TEXTS)
        kept += json.dumps({k: v for k, v in record.items() if k not in TEXTS}, ensure_ascii=False)
        kept += "\n"
    if stripped:
        write_text_atomically(path, kept)
    return stripped


def _rewrite_pages(folder: Path) -> Iterator[str]:
    """Rewrites the report and the card from the remaining files; removes them if that fails."""
    before = {path: path.read_bytes() for name in PAGES if (path := folder / name).is_file()}
    if not before:
        return
    from unteach.reports.report import write_report

    try:
        write_report(folder)
    except UserError:
        for page in before:
            page.unlink(missing_ok=True)
            yield f"{page.relative_to(folder)}: removed, as it cannot be written without texts"
        return
    for page, content in before.items():
        if page.read_bytes() != content:
            yield f"{page.relative_to(folder)}: written anew without texts"
