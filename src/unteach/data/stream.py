"""The order of training: position i of the stream is the same item in every process, however the
run was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unteach.data.completions import MismatchPool
from unteach.data.packing import Branch, Tree, make_batch
from unteach.data.token_store import longest_row
from unteach.data.tokenization import EncodedRow
from unteach.seeding import row_generator


@dataclass(frozen=True)
class StreamItem:
    """What one position of the stream adds to a batch: a forget row (and its number) with its
    mismatch completions, and some retain rows by number.
    """

    forget: EncodedRow | None
    mismatch: tuple[tuple[int, ...], ...]
    retain: tuple[int, ...]
    forget_row: int = -1


class TrainingStream(torch.utils.data.Dataset[StreamItem]):
    """A run's items, a function of (seed, position) alone, so that resuming and sharding change
    nothing.

    Args:
        forget (`Sequence[EncodedRow]`): may be empty for a method that uses none.
        retain (`Sequence[EncodedRow]`): may be empty for a method that uses none.
        length (`int`): number of items of the whole run.
        retain_ratio (`float`): retain rows for each forget row.
    """

    def __init__(
        self,
        forget: Sequence[EncodedRow],
        retain: Sequence[EncodedRow],
        mismatch: MismatchPool | None,
        *,
        length: int,
        retain_ratio: float,
        seed: int,
    ) -> None:
        self.forget = forget
        self.retain = retain
        self.mismatch = mismatch
        self.length = length
        self.retain_ratio = retain_ratio if retain else 0.0
        self.seed = seed
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def _row(self, name: str, size: int, position: int) -> tuple[int, int]:
        """(epoch, row) at a position of an endless sequence of shuffled passes over `size` rows."""
        epoch, place = divmod(position, size)
        if (name, epoch) not in self._orders:
            for old in [key for key in self._orders if key[0] == name and key[1] < epoch - 1]:
                del self._orders[old]
            self._orders[name, epoch] = row_generator("order", name, self.seed, epoch).permutation(
                size
            )
        return epoch, int(self._orders[name, epoch][place])

    def longest(self) -> StreamItem:
        """The longest forget row with mismatch completions, and the longest retain row: where
        limits of a model's attention show.
        """
        retain = (longest_row(self.retain),) if self.retain else ()
        if not self.forget:
            return StreamItem(None, (), retain)
        index = longest_row(self.forget)
        mismatch = self.mismatch.draw(self.forget[index], 0) if self.mismatch else ()
        return StreamItem(self.forget[index], tuple(mismatch), retain, index)

    def __getitem__(self, position: int) -> StreamItem:
        forget: EncodedRow | None = None
        mismatch: tuple[tuple[int, ...], ...] = ()
        index = -1
        if self.forget:
            epoch, index = self._row("forget", len(self.forget), position)
            forget = self.forget[index]
            mismatch = tuple(self.mismatch.draw(forget, epoch)) if self.mismatch else ()
        first, last = int(position * self.retain_ratio), int((position + 1) * self.retain_ratio)
        retain = tuple(
            self._row("retain", len(self.retain), place)[1] for place in range(first, last)
        )
        return StreamItem(forget, mismatch, retain, index)


def forget_branches(row: EncodedRow, number: int) -> list[Branch]:
    """The completion to forget and, if the row has one, the preferred completion; `number` is the
    row's in the forget set.
    """
    preferred = [Branch("preferred", row.preferred_ids, 1.0, number)] if row.preferred_ids else []
    return [Branch("forget", row.completion_ids, 1.0, number), *preferred]


def retain_branches(row: EncodedRow, number: int) -> list[Branch]:
    """The completion to keep; `number` is the row's in the retain set."""
    return [Branch("retain", row.completion_ids, 1.0, number)]


@dataclass
class Collator:
    """Makes one batch of stream items.

    Args:
        retain (`Sequence[EncodedRow]`): the rows that `StreamItem.retain` counts.
        packed (`bool`): see `make_batch`.
        row_tokens (`int`), apart (`bool`): see `make_batch`.
    """

    retain: Sequence[EncodedRow]
    pad_id: int
    packed: bool = True
    row_tokens: int = 256
    apart: bool = False

    def trees(self, items: Sequence[StreamItem]) -> list[Tree]:
        """The batch's trees: one for each forget row with its branches, one for each retain row."""
        trees = []
        for item in items:
            if item.forget is not None:
                share = 1.0 / max(1, len(item.mismatch))
                branches = forget_branches(item.forget, item.forget_row)
                branches += [Branch("mismatch", ids, share) for ids in item.mismatch]
                trees.append(Tree(item.forget.prompt_ids, tuple(branches)))
            for index in item.retain:
                row = self.retain[index]
                trees.append(Tree(row.prompt_ids, tuple(retain_branches(row, index))))
        return trees

    def batch(self, trees: Sequence[Tree], *, packed: bool | None = None) -> dict[str, Tensor]:
        """One batch of trees, see `make_batch`; in another layout than its own with `packed`."""
        layout = self.packed if packed is None else packed
        made = partial(make_batch, row_tokens=self.row_tokens, apart=self.apart)
        return made(trees, packed=layout, pad_id=self.pad_id)

    def __call__(self, items: Sequence[StreamItem]) -> dict[str, Tensor]:
        return self.batch(self.trees(items))
