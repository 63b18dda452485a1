"""A metric's value with its number of rows, interval and direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Interval = Literal["wilson", "bootstrap"]


@dataclass(frozen=True)
class MetricResult:
    """One number, traceable to its rows.

    Args:
        value (`float`, *optional*): the aggregate; `None` where it is not meaningful (NM) or there
            are no rows.
        n (`int`): number of rows behind it.
        ci_low, ci_high (`float`, *optional*): 95% interval over rows (Wilson for rates, bootstrap
            for means).
        higher_is_better (`bool`, *optional*): `None` where neither is: nearest to a retrained
            model's value, or to 0, is best.
        rows (`tuple`): the value of each row, `None` where it has none.
    """

    value: float | None
    n: int
    ci_low: float | None
    ci_high: float | None
    higher_is_better: bool | None
    rows: tuple[float | None, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """The fields of `eval.json`."""
        return {
            "value": self.value,
            "n": self.n,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "higher_is_better": self.higher_is_better,
        }


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95% Wilson interval of a rate."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float | None, float | None]:
    """95% percentile bootstrap interval of a mean over rows (2,000 resamples, fixed seed); `None`
    twice for a single row.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return None, None
    if np.ptp(array) == 0:
        return float(array.mean()), float(array.mean())
    picks = np.random.default_rng(seed).integers(0, len(array), (2000, len(array)))
    low, high = np.quantile(array[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def summarise(
    rows: Sequence[float | None],
    *,
    higher_is_better: bool | None,
    interval: Interval | None = "bootstrap",
) -> MetricResult:
    """Mean of per-row values with its interval; rows without a value are left out of the mean and
    of n.

    Args:
        rows: per-row values.
        higher_is_better (`bool`, *optional*)
        interval: `wilson` for values that are 0 or 1, `bootstrap` for a mean, `None` for none.
    """
    values = [row for row in rows if row is not None and not math.isnan(row)]
    if not values:
        return MetricResult(None, 0, None, None, higher_is_better, tuple(rows))
    low: float | None = None
    high: float | None = None
    if interval == "wilson":
        low, high = wilson_interval(round(sum(values)), len(values))
    elif interval == "bootstrap":
        low, high = bootstrap_interval(values)
    return MetricResult(
        math.fsum(values) / len(values), len(values), low, high, higher_is_better, tuple(rows)
    )
