"""Passages that the model itself recites when it goes on from a forget row: more of what it is to forget, from the model's own mouth.

A forget set is rarely the whole of what a model knows by heart. Asked to go on after a forget row, a model that has memorised the source
continues with the next passage, which nobody had to hand in. Such passages join the forget set where the model is nearly sure of each token
(recitation, not invention) and where they share no long run with the retain set.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from unteach.data.rows import Row
from unteach.data.sources import book_passages
from unteach.data.tokenization import EncodedRow, encode_row
from unteach.errors import UserError
from unteach.evaluation.generation import Progress, end_ids, generate_ids
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.text_metrics import longest_verbatim_run


def recited_passages(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Row],
    retain: Sequence[Row],
    *,
    max_new_tokens: int = 160,
    least_probability: float = 0.7,
    most_shared_chars: int = 60,
    progress: Progress | None = None,
) -> list[Row]:
    """New `text` rows cut from the model's greedy continuations of the forget rows.

    Args:
        model: the model before unlearning.
        tokenizer: its tokenizer.
        forget (`Sequence[Row]`): only its `text` rows are continued.
        retain (`Sequence[Row]`): passages that share a run of more than `most_shared_chars` with one of these are left out.
        max_new_tokens (`int`): how far to go on after each row.
        least_probability (`float`): geometric mean probability of a passage's tokens under the model from which on it counts as recited.
        most_shared_chars (`int`)
        progress (`Callable`, *optional*): called with (done, of) rows.
    """
    rows = [row for row in forget if row.kind == "text"]
    contexts = [encode_row(row, tokenizer, None) for row in rows]
    outputs = generate_ids(
        model,
        [context.prompt_ids + context.completion_ids for context in contexts],
        max_new_tokens=max_new_tokens,
        pad_id=tokenizer.pad_token_id or 0,
        end_ids=end_ids(tokenizer),
        progress=progress,
    )
    known = {" ".join(row.prompt_text.split()) for row in forget}
    found: dict[str, Row] = {}
    for row, ids in zip(rows, outputs, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        paragraphs = text.split("\n\n")
        after = "\n\n".join(paragraphs[1:]) if len(paragraphs) > 1 else ". ".join(text.split(". ")[1:])
        for prompt, completion in book_passages(after):
            if prompt not in known and prompt not in found:
                found[prompt] = Row(prompt, completion, "text", f"recited after {row.source}")
    candidates = [
        row
        for row in found.values()
        if all(longest_verbatim_run(row.completion, f"{kept.prompt_text}{kept.completion}") <= most_shared_chars for kept in retain)
    ]
    candidates, encoded = _encodable(candidates, tokenizer)
    surprise = mean_nll(model, [row.prompt_ids for row in encoded], [row.completion_ids for row in encoded])
    limit = -math.log(least_probability)
    return [row for row, nll in zip(candidates, surprise, strict=True) if nll is not None and nll <= limit]


def _encodable(rows: Sequence[Row], tokenizer: Any) -> tuple[list[Row], list[EncodedRow]]:
    """The rows whose prompt and completion do not merge in a token, and their tokens."""
    kept, encoded = [], []
    for row in rows:
        with contextlib.suppress(UserError):
            encoded.append(encode_row(row, tokenizer, None))
            kept.append(row)
    return kept, encoded
