"""The pages of the methods are what their docstrings say."""

from __future__ import annotations

import runpy
from pathlib import Path

from unteach.objectives import METHODS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_committed_pages_are_up_to_date():
    stale = runpy.run_path(str(DOCS / "make_method_pages.py"))["out_of_date"]()
    assert not stale, "run python docs/make_method_pages.py"


def test_the_overview_names_every_method():
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert not [name for name in METHODS if f"`{name}`" not in text]
