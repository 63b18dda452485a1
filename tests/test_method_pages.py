"""The pages of the methods are what their docstrings say."""

from __future__ import annotations

import runpy
from pathlib import Path

from unteach.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_committed_pages_are_up_to_date():
    stale = runpy.run_path(str(DOCS / "make_method_pages.py"))["out_of_date"]()
    assert not stale, "run python docs/make_method_pages.py"


def test_the_overview_names_every_method():
    text = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8")
    assert not [name for name in METHODS if f"`{name}`" not in text]


def test_a_page_shows_its_method_s_row_of_the_measured_table():
    measured = runpy.run_path(str(DOCS / "make_method_pages.py"))["measured"]
    results = "Words.\n\n| method | unlearned |\n| --- | --- |\n| `npo` | 3% |\n| `ga` | 9% |\n"
    title, table, _ = measured("ga", results)
    assert (
        title == "## Measured" and table == "| method | unlearned |\n| --- | --- |\n| `ga` | 9% |"
    )
    assert measured("rmu", results) == []
