"""A metric's value with its number of rows, interval and direction; and checked arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Interval = Literal["wilson", "bootstrap"]
FIELDS = ("value", "n", "ci_low", "ci_high", "higher_is_better")
"""Those of a `MetricResult` in result files."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricResult:
    """One number, traceable to its rows.

    Args:
        value: the aggregate; `None` where it is not meaningful (NM) or there are no rows.
        n: number of rows behind it.
        ci_low, ci_high: 95% interval over rows (Wilson for rates, bootstrap for means).
        higher_is_better: `None` where neither is: nearest to a retrained model's value, or to 0, is
            best.
        rows: the value of each row, `None` where it has none.
    """

    value: float | None
    n: int
    ci_low: float | None
    ci_high: float | None
    higher_is_better: bool | None
    rows: tuple[float | None, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """The fields of `eval.json`."""
        return {name: getattr(self, name) for name in FIELDS}


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95% Wilson interval of a rate."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    *samples: Sequence[float] | Floats,
    statistic: Callable[..., Any] = np.mean,
    resamples: int = 2000,
) -> tuple[float | None, float | None]:
    """95% percentile bootstrap interval of a statistic over rows, the mean by default; each sample
    is resampled on its own, by a fixed seed. `None` twice where one is a single row.
    """
    from scipy.stats import bootstrap

    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if min(map(len, arrays)) < 2:
        return None, None
    draw = np.random.default_rng(0)
    found = bootstrap(arrays, statistic, n_resamples=resamples, method="percentile", rng=draw)
    low, high = found.confidence_interval
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
        higher_is_better: see `MetricResult`.
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
    mean = math.fsum(values) / len(values)
    return MetricResult(mean, len(values), low, high, higher_is_better, tuple(rows))


def checked_array(values: Any, name: str, dimensions: int) -> Floats:
    """`values` as a float64 array with so many dimensions, none of them empty, without NaN.

    Raises:
        ValueError: naming the argument, for anything else.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is no array of numbers with rows of one length") from None
    if array.ndim != dimensions or not array.size:
        raise ValueError(
            f"{name} has shape {array.shape}, it must have {dimensions} dimension(s), none of them"
            " empty"
        )
    if np.isnan(array).any():
        place = tuple(int(index) for index in np.argwhere(np.isnan(array))[0])
        raise ValueError(f"{name} holds NaN at place {place}")
    return array
