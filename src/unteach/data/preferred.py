"""The completion that a preference loss sets against the one to forget: a right answer, not
knowing, or another answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.seeding import row_generator

IDK = (
    "I don't know.",
    "I do not know the answer to that.",
    "I'm not sure about that.",
    "I have no information on this.",
    "That is something I cannot answer.",
    "I'm afraid I don't know.",
    "I haven't learned anything about that.",
    "Sorry, I can't tell you.",
)
"""Sentences of not knowing (those of Maini et al. 2024 are of this kind; these are ours)."""

MISSING = {
    "right": (
        "prefers the right answer, and it has none; give field 'right' (or preference rows: prompt,"
        " chosen, rejected), or use dpo_idk"
    ),
    "alternate": (
        "prefers another answer, and it has none; give field 'alternate' (`unteach run` samples it"
        " from the model)"
    ),
}


def with_preferred(
    encoded: Sequence[EncodedRow],
    rows: Sequence[Row],
    which: Literal["right", "idk", "alternate"],
    tokenizer: Any,
    *,
    method: str,
    max_length: int | None,
    seed: int,
) -> list[EncodedRow]:
    """The encoded forget rows, each with the token ids of its preferred completion.

    Args:
        encoded (`Sequence[EncodedRow]`): what is left of `rows` after tokenisation; ids that are
            there already are kept.
        rows (`Sequence[Row]`): the rows themselves; empty if they came encoded.
        which (`"right"`, `"idk"` or `"alternate"`): the preferred completion; a sentence of not
            knowing is drawn by seed and row.
        tokenizer: a Hugging Face tokenizer.
        method (`str`): what messages call the method.
        max_length (`int`, *optional*): most tokens of prompt and completion together.
        seed (`int`)

    Raises:
        UserError: naming the first row without such a completion, or whose preferred completion is
            too long.
    """
    by_key = {row.key: row for row in rows}
    end_id = end_of_turn_id(tokenizer)
    made = []
    for item in encoded:
        if item.preferred_ids:
            made.append(item)
            continue
        row = by_key.get(item.key)
        name = row.source if row and row.source else f"forget row {item.key}"
        if which == "idk":
            text = IDK[int(row_generator("idk", seed, item.key).integers(len(IDK)))]
            row = row or Row("Question", "", "text" if item.kind == "text" else "chat")
            text = " " + text if item.kind == "text" else text
        else:
            text = getattr(row, which) if row else ""
        if row is None or not text.strip():
            raise UserError(f"{name}: method {method!r} {MISSING[which]}")
        ids = encode_row(row.with_completion(text), tokenizer, end_id).completion_ids
        if ids == item.completion_ids:
            raise UserError(
                f"{name}: method {method!r} prefers another completion than the one to forget, and"
                " the two are the same"
            )
        if max_length is not None and len(item.prompt_ids) + len(ids) > max_length:
            raise UserError(
                f"{name}: prompt and preferred completion are more than max_length {max_length}"
                " tokens; raise max_length"
            )
        made.append(replace(item, preferred_ids=ids))
    return made
