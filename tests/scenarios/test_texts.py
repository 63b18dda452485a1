"""The texts that come with the package."""

from __future__ import annotations

import pytest

from unteach.scenarios.texts import embedded_text, lines


def test_the_two_books_share_no_paragraph_opening():
    openings = [
        {part[:30] for part in embedded_text(name).split("\n\n")} for name in ("book", "kept_book")
    ]
    assert len(openings[0]) == len(openings[1]) == 24 and not openings[0] & openings[1]


@pytest.mark.parametrize(("name", "least"), [("neutral_prompts", 80), ("opening_lines", 50)])
def test_lines_are_distinct_and_without_blanks(name, least):
    found = lines(name)
    assert len(found) >= least and len(set(found)) == len(found)
    assert all(line == line.strip() and line for line in found)


def test_neutral_prompts_and_opening_lines_have_nothing_in_common():
    assert not set(lines("neutral_prompts")) & set(lines("opening_lines"))


def test_no_line_stands_in_a_book():
    books = embedded_text("book") + embedded_text("kept_book")
    assert not [
        line for line in [*lines("neutral_prompts"), *lines("opening_lines")] if line in books
    ]
