"""Many drawn answers instead of one greedy one: what a model says rarely, it still knows."""

from __future__ import annotations

from collections.abc import Sequence

from unteach.attacks.answers import Asked


def repeated(asked: Sequence[Asked], samples: int) -> list[Asked]:
    """Each prompt `samples` times, those of one row in one group (Scholten et al. 2025 judge a
    distribution, not its mode).
    """
    return [item for item in asked for _ in range(samples)]
