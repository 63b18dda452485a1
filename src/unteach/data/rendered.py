"""Prompts that somebody has put through a chat template already."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import render_prompt
from unteach.errors import UserError

MARK = re.compile(r"<\|[^\s|<>]{1,40}\|>")
"""How most templates write the tokens that begin and end a turn."""
PLACEHOLDER = "placeholder"


def turn_marks(tokenizer: Any) -> list[str]:
    """Texts that only a rendered prompt holds: what this tokenizer's template puts behind a
    prompt, and its special tokens within.
    """
    try:
        behind = render_prompt(Row(PLACEHOLDER, ""), tokenizer).rpartition(PLACEHOLDER)[2].strip()
    except UserError:  # the template refuses every prompt, as each row will say
        return []
    special = {str(token) for token in tokenizer.all_special_tokens}
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values()}
    inside = [token for token in special if len(token) > 2 and token in behind]
    return [mark for mark in (behind, *sorted(inside)) if len(mark) > 3]


def rendered_mark(row: Row, marks: Iterable[str]) -> str:
    """The mark of a turn that a prompt holds; empty for a prompt of words alone."""
    if row.kind == "text":
        return ""
    return next((mark for mark in marks if mark in row.prompt_text), "")


def refuse_rendered(rows: Iterable[Row], tokenizer: Any) -> None:
    """Raises `UserError` for a prompt that the template would render a second time."""
    marks = turn_marks(tokenizer)
    for row in rows:
        if mark := rendered_mark(row, marks):
            raise UserError(f"{row.source}: {already_rendered(mark)}")


def already_rendered(mark: str) -> str:
    """What is wrong with a prompt that holds a mark, and what would be right."""
    return (
        f"the prompt holds {mark!r}, so it is rendered already, and the chat template would do it"
        " again; give the words alone or a list of messages, or set the field 'kind' to 'text' to"
        " train on the prompt as it is"
    )
