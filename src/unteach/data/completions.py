"""Mismatch completions, unrelated to the prompt (Y_rdn of Yao et al. 2024), and the preferred
completions of preference losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import numpy as np

from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.seeding import row_generator

REFUSAL = "I can't assist with that."
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
"""Answers that state lack of knowledge, as in Maini et al. 2024; the wording is ours."""
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


WIDTH = 4
"""Bytes of a token."""


def _kind(row: EncodedRow) -> str:
    """Rows of the same kind have completions that can stand for each other: a trace and its answer
    begin elsewhere than an answer alone.
    """
    return f"{row.kind} with a trace" if row.trace else row.kind


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype="<i4").tobytes()


class _Completions:
    """Different completions, four bytes a token, in the order of their first occurrence.

    Args:
        completions: pairs of the completion without its end, and the completion.
    """

    def __init__(self, completions: Iterable[tuple[bytes, bytes]]) -> None:
        different: dict[bytes, bytes] = {}
        for body, ids in completions:
            different.setdefault(body, ids)
        self.all = list(different.values())
        self._places = {body: place for place, body in enumerate(different)}

    def without(self, body: bytes) -> tuple[int, int]:
        """(number of completions other than this one, its index, or the number of all where it is
        not among them).
        """
        place = self._places.get(body, len(self.all))
        return len(self.all) - (place < len(self.all)), place


class MismatchPool:
    """Draws K mismatch completions for a forget row, by seed, epoch and row alone.

    Args:
        rows (`Sequence[EncodedRow]`): where completions come from: training rows of the retain set
            (never validation or test rows), or the one templated refusal.
        count (`int`): K.
        end_id (`int`, *optional*): the token that ends an answer: two completions that differ by it
            alone are the same.
        max_length (`int`, *optional*): most tokens of a prompt and a completion together; a longer
            completion is cut at its end.

    Raises:
        UserError: if no completion is left to draw from.
    """

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        count: int,
        seed: int,
        *,
        end_id: int | None = None,
        max_length: int | None = None,
    ) -> None:
        if count < 1:
            raise UserError(f"mismatch_completions is {count}, it must be at least 1")
        self.count, self.seed, self.end_id = count, seed, end_id
        self.max_length = max_length or 2**30
        by_kind: dict[str, list[tuple[bytes, bytes]]] = {}
        for row in rows:
            ids, body = row.completion_ids, self._body(row)
            if ids:
                by_kind.setdefault(_kind(row), []).append((body, _bytes(ids)))
            if answer := ids[row.trace :] if row.trace else ():
                pair = body[row.trace * WIDTH :], _bytes(answer)
                by_kind.setdefault(row.kind, []).append(pair)
        if not by_kind:
            raise UserError(
                "mismatch completions come from the retain set, and it has no completion that is"
                " not empty"
            )
        self._of_kind = {kind: _Completions(pairs) for kind, pairs in by_kind.items()}
        self._of_any = next(iter(self._of_kind.values()))
        if len(by_kind) > 1:
            self._of_any = _Completions(chain.from_iterable(by_kind.values()))

    def _body(self, row: EncodedRow) -> bytes:
        return _bytes(row.without_end(self.end_id).completion_ids)

    def draw(self, row: EncodedRow, epoch: int) -> list[tuple[int, ...]]:
        """K completions, of the row's own kind where there are any; without repetition while the
        pool allows; never the row's own.
        """
        pool = self._of_kind.get(_kind(row)) or self._of_kind.get(row.kind, self._of_any)
        left, own = pool.without(self._body(row))
        if not left:
            raise UserError(
                f"forget row {row.key}: the only mismatch completion there is equals its own"
                " completion"
            )
        generator = row_generator("mismatch", self.seed, epoch, row.key)
        picks = map(int, generator.choice(left, size=self.count, replace=left < self.count))
        room = max(1, self.max_length - len(row.prompt_ids))
        drawn = (pool.all[pick + (pick >= own)] for pick in picks)
        return [tuple(np.frombuffer(ids, "<i4")[:room].tolist()) for ids in drawn]


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
        encoded (`Sequence[EncodedRow]`): what is left of `rows` after tokenisation; preferred ids
            that are there already are kept.
        rows (`Sequence[Row]`): the rows themselves; empty if they came encoded.
        which (`"right"`, `"idk"` or `"alternate"`): the preferred completion; a sentence of not
            knowing is drawn by seed and row.
        tokenizer: a Hugging Face tokenizer.
        method (`str`): what messages call the method.
        max_length (`int`, *optional*): most tokens of prompt and completion together.

    Raises:
        UserError: naming the first row without such a completion, or whose preferred completion is
            too long.
    """
    by_key = {row.key: row for row in rows}
    end_id = end_of_turn_id(tokenizer)
    complete = []
    for item in encoded:
        if item.preferred_ids:
            complete.append(item)
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
        found = encode_row(row.with_completion(text), tokenizer, end_id)
        whole, start = found.prompt_ids + found.completion_ids, len(item.prompt_ids)
        # behind the prompt of a row with a trace the template may write something before an answer
        behind = whole[:start] == item.prompt_ids and len(whole) > start
        ids = whole[start:] if behind else found.completion_ids
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
        complete.append(replace(item, preferred_ids=ids))
    return complete
