"""Passages that the model itself recites when it goes on from a forget row: more of what it is to
forget, from the model's own mouth.

A forget set is rarely the whole of what a model knows by heart. Asked to go on after a forget row,
a model that has memorised the source comes to the opening of the next passage, which nobody had to
hand in; asked again with that opening alone, it recites the passage. Such passages join the forget
set where the model is nearly sure of each token (recitation, not invention) and where they share no
long run with the retain set. What was found is asked to go on in its turn.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from unteach.data.rows import Row
from unteach.data.sources import book_passages, sentences
from unteach.data.tokenization import EncodedRow, encode_row
from unteach.errors import UserError
from unteach.evaluation.generation import Progress, SharedGenerator, generate_outputs
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.text_metrics import longest_verbatim_run

OPENING_WORDS = 8
OPENING_CHARS = 100
PASSAGE_TOKENS = 72
MOST_SHARED_CHARS = 60
"""Longest run of characters that a text to keep and a text to forget may share."""


def without_forget_text(
    rows: Sequence[Row], forget: Sequence[Row], *, most_shared_chars: int = MOST_SHARED_CHARS
) -> list[Row]:
    """The rows whose completion shares no run of more than `most_shared_chars` with a completion to
    forget, white space normalised.

    A model that knows a text by heart may fall into it wherever it writes. Such an answer among
    those to keep would hold what is to go. The forget completions are read once, whatever their
    number.

    Args:
        rows (`Sequence[Row]`): a model's own answers.
        forget (`Sequence[Row]`)
        most_shared_chars (`int`)
    """
    size = most_shared_chars + 1
    holders: dict[str, set[int]] = {}
    for place, row in enumerate(rows):
        text = _plain(row.completion)
        for start in range(len(text) - size + 1):
            holders.setdefault(text[start : start + size], set()).add(place)
    found: set[int] = set()
    for row in forget if holders else ():
        text = _plain(f"{row.prompt_text if row.kind == 'text' else ''}{row.completion}")
        for start in range(len(text) - size + 1):
            found |= holders.get(text[start : start + size], set())
    return [row for place, row in enumerate(rows) if place not in found]


def recited_passages(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Row],
    retain: Sequence[Row],
    *,
    max_new_tokens: int = 64,
    least_probability: float = 0.7,
    most_shared_chars: int = MOST_SHARED_CHARS,
    rounds: int = 2,
    progress: Progress | None = None,
) -> list[Row]:
    """New `text` rows from the model's greedy continuations of the forget rows.

    Args:
        model: the model before unlearning.
        tokenizer: its tokenizer.
        forget (`Sequence[Row]`): only its `text` rows are continued.
        retain (`Sequence[Row]`): passages that share a run of more than `most_shared_chars` with
            one of these are left out.
        max_new_tokens (`int`): how far to go on after each row in search of the next opening.
        least_probability (`float`): geometric mean probability of a passage's tokens under the
            model from which on it counts as recited.
        most_shared_chars (`int`)
        rounds (`int`): passages found in one round are continued in the next.
        progress (`Callable`, *optional*): called with (done, of) rows; `of` grows with what is
            found.
    """
    found: list[Row] = []
    known = {_plain(row.prompt_text) for row in forget}
    texts = [_plain(f"{row.prompt_text}{row.completion}") for row in forget]
    asked: set[str] = set()
    news, done = [row for row in forget if row.kind == "text"], 0
    for _ in range(rounds):
        if not news:
            break
        openings = [
            row
            for row in _openings(model, tokenizer, news, max_new_tokens)
            if row.prompt not in asked
        ]
        asked |= {str(row.prompt) for row in openings}
        done += len(news)
        outputs = generate_outputs(model, tokenizer, openings, max_new_tokens=PASSAGE_TOKENS)
        candidates: dict[str, Row] = {}
        for opening, output in zip(openings, outputs, strict=True):
            for prompt, completion in book_passages(f"{opening.prompt}{output}")[:1]:
                opening_text = _plain(f"{prompt}{completion}")[:OPENING_CHARS]
                if _plain(prompt) in known or any(opening_text in text for text in texts):
                    continue
                if all(_shared(completion, kept) <= most_shared_chars for kept in retain):
                    candidates.setdefault(
                        _plain(prompt), Row(prompt, completion, "text", opening.source)
                    )
        rows, encoded = _encodable(list(candidates.values()), tokenizer)
        surprise = mean_nll(
            model, [row.prompt_ids for row in encoded], [row.completion_ids for row in encoded]
        )
        limit = -math.log(least_probability)
        news = [
            row for row, nll in zip(rows, surprise, strict=True) if nll is not None and nll <= limit
        ]
        known |= {_plain(row.prompt_text) for row in news}
        found += news
        if progress:
            progress(done, done + len(news))
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())


def _shared(completion: str, kept: Row) -> int:
    return longest_verbatim_run(completion, f"{kept.prompt_text}{kept.completion}")


def _openings(model: Any, tokenizer: Any, rows: Sequence[Row], max_new_tokens: int) -> list[Row]:
    """Prompt-only rows: the first words of each passage that begins in a continuation (a paragraph;
    a sentence where there is none).
    """
    rows, encoded = _encodable(rows, tokenizer)
    prompts = [row.prompt_ids + row.completion_ids for row in encoded]
    outputs = SharedGenerator(model, tokenizer)(prompts, max_new_tokens=max_new_tokens)
    found: dict[str, Row] = {}
    for row, ids in zip(rows, outputs, strict=True):
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        parts = text.split("\n\n")[1:] or sentences(text)[1:]
        for part in parts:
            words = part.split()[:OPENING_WORDS]
            if len(words) >= OPENING_WORDS // 2:
                found.setdefault(
                    " ".join(words), Row(" ".join(words), "", "text", f"recited after {row.source}")
                )
    return list(found.values())


def _encodable(rows: Sequence[Row], tokenizer: Any) -> tuple[list[Row], list[EncodedRow]]:
    """The rows whose prompt and completion do not merge in a token, and their tokens."""
    kept, encoded = [], []
    for row in rows:
        with contextlib.suppress(UserError):
            encoded.append(encode_row(row, tokenizer, None))
            kept.append(row)
    return kept, encoded
