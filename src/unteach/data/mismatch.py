"""Random completions that have nothing to do with a forget prompt (Y_rdn of Yao et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError
from unteach.seeding import row_generator

REFUSAL = "I can't assist with that."


class _Completions:
    """Different completions, four bytes a token, in the order in which they first came.

    Args:
        completions: what each is without its end, and the completion.
    """

    def __init__(self, completions: Iterable[tuple[bytes, bytes]]) -> None:
        different: dict[bytes, bytes] = {}
        for body, ids in completions:
            different.setdefault(body, ids)
        self.all = list(different.values())
        self._places = {body: place for place, body in enumerate(different)}

    def but(self, own: bytes) -> tuple[int, int]:
        """(how many there are without the one of this body, its place or one that no completion
        has).
        """
        place = self._places.get(own, len(self.all))
        return len(self.all) - (place < len(self.all)), place


def _packed(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype="<i4").tobytes()


class MismatchPool:
    """Draws K mismatch completions for a forget row, by seed, epoch and row alone.

    Args:
        rows (`Sequence[EncodedRow]`): where completions come from: training rows of the retain set
            (never validation or test rows), or the one templated refusal.
        count (`int`): K.
        seed (`int`)
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
        self.count = count
        self.seed = seed
        self.max_length = max_length or 2**30
        self.end_id = end_id
        by_kind: dict[str, list[tuple[bytes, bytes]]] = {}
        for row in rows:
            if row.completion_ids:
                by_kind.setdefault(row.kind, []).append(
                    (self._body(row), _packed(row.completion_ids))
                )
        if not by_kind:
            raise UserError(
                "mismatch completions come from the retain set, and it has no completion that is"
                " not empty"
            )
        self._of_kind = {kind: _Completions(completions) for kind, completions in by_kind.items()}
        whole = len(by_kind) > 1
        self._of_any = (
            _Completions(chain.from_iterable(by_kind.values()))
            if whole
            else next(iter(self._of_kind.values()))
        )

    def _body(self, row: EncodedRow) -> bytes:
        return _packed(row.without_end(self.end_id).completion_ids)

    def draw(self, row: EncodedRow, epoch: int) -> list[tuple[int, ...]]:
        """K completions of the row's own kind where there are any; without repetition while the
        pool allows; never its own.
        """
        pool = self._of_kind.get(row.kind, self._of_any)
        left, own = pool.but(self._body(row))
        if not left:
            raise UserError(
                f"forget row {row.key}: the only mismatch completion there is equals its own"
                " completion"
            )
        generator = row_generator("mismatch", self.seed, epoch, row.key)
        picks = generator.choice(left, size=self.count, replace=left < self.count)
        room = max(1, self.max_length - len(row.prompt_ids))
        return [
            tuple(np.frombuffer(pool.all[int(pick) + (int(pick) >= own)], "<i4")[:room].tolist())
            for pick in picks
        ]
