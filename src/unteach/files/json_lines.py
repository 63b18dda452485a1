"""Files of one JSON value a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file, one a line.

    Lines end at line feeds alone: `str.splitlines` would also cut at separators that a text may
    hold (U+2028, U+2029, U+0085).

    Raises:
        ValueError: for a line that is no JSON.
    """
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
