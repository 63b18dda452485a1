"""Answers to the same prompt at several steps of a run, after Table 6 of Yao et al. 2024."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from unteach.files.json_lines import read_json_lines
from unteach.reports.tables import markdown_table


def checkpoint_table(folder: Path, keys: Sequence[str] = (), rows: int = 2) -> str:
    """What the model said to a few forget prompts at each probe; empty if texts of the run may not
    be shown or none were kept.

    Args:
        folder (`Path`): a run's folder.
        keys: keys of the rows to show; default: the first `rows` of the set `unlearned` that were
            probed.
        rows (`int`)
    """
    lines = read_json_lines(folder / "generations.jsonl")
    prompts = {
        line["key"]: " ".join(line["prompt"].split())
        for line in lines
        if line["set"] == "unlearned" and "prompt" in line
    }
    said = {}
    for path in (folder / "work").glob("said-at-*.json"):
        match = re.fullmatch(r"said-at-(\d+)", path.stem)
        if match:
            said[int(match.group(1))] = json.loads(path.read_text(encoding="utf-8"))
    if not said:
        return ""
    probed = [key for key in prompts if all(key in answers for answers in said.values())]
    chosen = [key for key in keys if key in probed] or probed[:rows]
    if not chosen:
        return ""
    header = ["prompt", *("before" if step == 0 else f"step {step}" for step in sorted(said))]
    table = [
        [_plain(prompts[key]), *(_plain(said[step][key]) for step in sorted(said))]
        for key in chosen
    ]
    return markdown_table(header, table)


def _plain(text: str) -> str:
    """Text that fits a cell of a Markdown table; an empty answer says so."""
    return " ".join(text.split()).replace("|", "\\|") or "(nothing)"
