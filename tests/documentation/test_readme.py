"""The README is short, and its figures are those of the committed results."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SUMMARY = runpy.run_path(str(ROOT / "docs/make_results_summary.py"))


def test_it_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


def test_its_table_is_that_of_the_results_file():
    assert SUMMARY["readme"]() == README, "run python docs/make_results_summary.py"


def test_no_figure_stands_outside_the_table():
    head, _, rest = README.partition(SUMMARY["BEGIN"])
    prose = re.sub(r"```.*?```", "", head + rest.partition(SUMMARY["END"])[2], flags=re.DOTALL)
    assert not re.findall(r"\d+(?:\.\d+)?\s?(?:%|percent)|\b[01]\.\d+\b", prose)


def test_the_table_pools_the_rows_of_all_seeds():
    line = SUMMARY["Line"]("", "unlearned", "leak_rate", True)
    rows = [
        {"models": {"original": {"unlearned": {"leak_rate": {"value": value, "n": n}}}}}
        for value, n in ((1.0, 3), (0.0, 1))
    ]
    assert SUMMARY["pooled"](rows, "original", line) == (0.75, 4)
    other = SUMMARY["Line"]("", "normal", "similarity", False)
    assert SUMMARY["pooled"](rows, "original", other) is None
