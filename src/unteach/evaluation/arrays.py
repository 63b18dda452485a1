"""Numbers that come from outside, as arrays: of the right shape, not empty, not NaN, or a
`ValueError` that names the argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def checked_array(values: Any, name: str, dimensions: int) -> Floats:
    """`values` as a float64 array of so many dimensions, none of them empty and nothing in it NaN.

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
        raise ValueError(
            f"{name} holds NaN at place"
            f" {tuple(int(place) for place in np.argwhere(np.isnan(array))[0])}"
        )
    return array
