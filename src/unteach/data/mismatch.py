"""Random completions that have nothing to do with a forget prompt (Y_rdn of Yao et al. 2024)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError

REFUSAL = "I can't assist with that."


def row_generator(*parts: object) -> np.random.Generator:
    """A random generator that depends on `parts` alone: the same draw in any process, order or resumed run."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


class MismatchPool:
    """Draws K mismatch completions for a forget row, by seed, epoch and row alone.

    Args:
        rows (`Sequence[EncodedRow]`): where completions come from: training rows of the retain set (never validation or test rows),
            or the one templated refusal.
        count (`int`): K.
        seed (`int`)

    Raises:
        UserError: if no completion is left to draw from.
    """

    def __init__(self, rows: Sequence[EncodedRow], count: int, seed: int) -> None:
        if count < 1:
            raise UserError(f"mismatch_completions is {count}, it must be at least 1")
        self.count = count
        self.seed = seed
        self._by_kind: dict[str, list[tuple[int, ...]]] = {}
        for row in rows:
            if row.completion_ids:
                self._by_kind.setdefault(row.kind, []).append(row.completion_ids)
        for kind, completions in self._by_kind.items():
            self._by_kind[kind] = list(dict.fromkeys(completions))
        if not self._by_kind:
            raise UserError("mismatch completions come from the retain set, and it has no completion that is not empty")

    def draw(self, row: EncodedRow, epoch: int) -> list[tuple[int, ...]]:
        """K completions of the row's own kind where there are any; without repetition while the pool allows; never its own."""
        same = self._by_kind.get(row.kind) or [ids for group in self._by_kind.values() for ids in group]
        candidates = [ids for ids in same if ids != row.completion_ids]
        if not candidates:
            raise UserError(f"forget row {row.key}: the only mismatch completion there is equals its own completion")
        generator = row_generator("mismatch", self.seed, epoch, row.key)
        picks = generator.choice(len(candidates), size=self.count, replace=len(candidates) < self.count)
        return [candidates[int(pick)] for pick in picks]
