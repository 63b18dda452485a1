"""What a request keeps of its rows for the requests after it, and whether a model still says them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unteach.data.rows import Row, rows_hash
from unteach.data.sources import load_rows
from unteach.errors import UserError
from unteach.evaluation.generation import Progress, answer
from unteach.evaluation.scorers import Scorers
from unteach.evaluation.scoring import ANSWER_TOKENS
from unteach.files.atomic import write_json, write_text_atomically
from unteach.files.folders import content_key, private_folder
from unteach.files.json_lines import read_json_lines
from unteach.requests.ledger import ROWS, Entry, folder_name


def write_rows(work: Path, rows: Sequence[Row]) -> None:
    """Keeps the rows, completions and all, in a folder and a file that their owner alone can read."""
    private_folder(work)
    write_text_atomically(
        work / ROWS, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    )
    os.chmod(work / ROWS, 0o600)


def read_rows(work: Path) -> list[Row]:
    """The rows that `write_rows` has kept; none if they are not there or cannot be read."""
    try:
        records = read_json_lines(work / ROWS)
        for record in records:
            if not isinstance(record["prompt"], str):
                record["prompt"] = tuple(
                    (str(role), str(content)) for role, content in record["prompt"]
                )
        return [Row(**record) for record in records]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def rows_of(folder: Path, entry: Entry) -> list[Row]:
    """The rows of an earlier request: its own copy, else the file that they came from, if it still
    holds the same; else none.
    """
    wanted = entry["data"]["completed_hash"]
    kept = read_rows(folder / folder_name(entry["id"]) / "work")
    if kept and rows_hash(kept) == wanted:
        return kept
    file = entry["data"].get("file")
    if file and Path(file).is_file():
        try:
            rows = load_rows(file, "forget", prompt_only=True)
        except UserError:
            return []
        return rows if rows_hash(rows) == wanted else []
    return []


class Rates:
    """Shares of requests' rows that a model still says, greedily, by the headline metric; each is
    measured once.

    Args:
        tokenizer: the models' tokenizer.
        scorers (`Scorers`)
        work (`Path`): where the numbers are kept.
    """

    def __init__(self, tokenizer: Any, scorers: Scorers, work: Path) -> None:
        self.tokenizer, self.scorers, self.work = tokenizer, scorers, work

    def measure(
        self,
        load: Callable[[], Any],
        model_hash: str,
        rows: Sequence[Row],
        progress: Progress | None = None,
    ) -> float:
        """The rate of these rows, 0 to 1.

        Args:
            load (`Callable`): gives the model, where the number is not there yet.
            model_hash (`str`): names the model.
            rows (`Sequence[Row]`): with completions.
            progress (`Callable`, *optional*): called with (done, of) rows.
        """
        names = self.scorers.names
        key = content_key(
            [
                model_hash,
                rows_hash(rows),
                names.headline,
                names.judge,
                names.encoder,
                self.scorers.threshold,
            ]
        )
        path = self.work / f"rate-{key}.json"
        try:
            return float(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            pass
        outputs = answer(
            load(), self.tokenizer, rows, max_new_tokens=ANSWER_TOKENS, progress=progress
        )
        rate = sum(self.scorers.still_said(rows, outputs)) / len(rows)
        private_folder(self.work)
        write_json(path, rate)
        return rate
