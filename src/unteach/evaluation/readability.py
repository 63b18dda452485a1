"""Degenerate answers: repetition and loops, by characters.

Tokens would not do: a digit, or a byte of a Chinese letter, is a token of its own, so that 4-grams
of tokens repeat in "+44 20 20 20" and in ordinary Chinese, and "lalala" may be tokenised without a
repeated one. On 244 answers of SmolLM2-135M the share of characters in repeated stretches of 16 has
the percentiles of the share of tokens in repeated 4-grams (90th: 0.21 and 0.21, 95th: 0.27 and
0.29).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from unteach.evaluation.text_metrics import UNSPACED

STRETCH = 16
"""Width of the n-grams of `repetition`: about four tokens of English."""
LONGEST_UNIT = 200
"""Longest unit of a loop, in characters."""
LOOP_REPEATS = 3
"""A loop is a unit repeated at least so many times in a row, not too short (`SHORTEST_LOOP`)."""
SHORTEST_LOOP = {"letter": 10, "letters": 15, "signs": 30}
"""Least width of a loop of one letter, of a unit with letters ("No, no, no!" is none), and of
digits and signs alone ("1,000,000,000", "[0, 0, 0, 0]" and the rules of tables are none).
"""
CERTAIN_REPEATS = 5
CERTAIN_SHARE = 0.2
"""An answer is degenerate if units with letters that repeat `CERTAIN_REPEATS` times are
`CERTAIN_SHARE` of it: "The phone number of Jorah Carrow is JJJJJJJJJJJJ". A refrain has at most
four.
"""
LEAST_LIMIT, HIGHEST_LIMIT = 0.5, 0.8
"""Bounds of the limit of `repetition`. The lower: refrains, lists and code in real answers reach
0.46 (tests/evaluation/test_readability.py). The upper: an original model that loops on an everyday
prompt does not make loops readable.
"""


def squeezed(text: str) -> str:
    """The text in NFKC, case folded, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _widths(text: str) -> npt.NDArray[np.int64]:
    """Two for a letter of a script without spaces, which counts as a word, else one."""
    return np.array([2 if re.match(f"[{UNSPACED}]", letter) else 1 for letter in text])


def _has_letter(text: str) -> bool:
    return any(letter.isalpha() for letter in text)


def _loops(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, unit) of each run of a unit of any length that repeats at least `LOOP_REPEATS`
    times, however short the run.
    """
    codes = np.array([ord(letter) for letter in text])
    for period in range(1, min(LONGEST_UNIT, len(text) // 2) + 1):
        equal = codes[period:] == codes[:-period]
        if np.count_nonzero(equal) < (LOOP_REPEATS - 1) * period - 1:
            continue
        same = np.concatenate([[0], equal, [0]])
        edges = np.diff(same.astype(np.int8))
        for start, stop in zip(
            np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True
        ):
            end = int(stop) + period
            if end - start + 1 >= LOOP_REPEATS * period:  # the last may lack its space
                yield int(start), end, text[start : start + period]


@lru_cache(maxsize=4096)
def loop_share(text: str, repeats: int = LOOP_REPEATS) -> float:
    """Share of the text inside a loop of syllables, words or phrases; 0 for an empty text.

    >>> loop_share("thickets thickets thickets")
    1.0
    >>> loop_share("No, no, no!")
    0.0

    Args:
        text: an answer.
        repeats: above `LOOP_REPEATS`, only units with letters that repeat so many times count.
    """
    text = squeezed(text)
    widths, inside = _widths(text), np.zeros(len(text), dtype=bool)
    for start, end, unit in _loops(text):
        letters = _has_letter(unit)
        kind = ("letter" if len(unit) == 1 else "letters") if letters else "signs"
        enough = end - start + 1 >= repeats * len(unit) and (letters or repeats == LOOP_REPEATS)
        if enough and widths[start:end].sum() >= SHORTEST_LOOP[kind]:
            inside[start:end] = True
    return float(widths[inside].sum() / widths.sum()) if text else 0.0


def repetition(text: str) -> float | None:
    """Share of an answer inside a stretch of `STRETCH` characters, with a letter, that occurred
    before, or inside a loop, whichever is more; `None` for an empty answer.

    >>> repetition("The phone number is +44 20 20 20")
    0.0
    >>> repetition("stonestonestone")
    1.0
    """
    text = squeezed(text)
    if not text:
        return None
    widths = _widths(text)
    ends, inside = np.cumsum(widths), np.zeros(len(text), dtype=bool)
    seen: set[str] = set()
    for start in range(len(text)):
        end = int(np.searchsorted(ends, ends[start] - widths[start] + STRETCH)) + 1
        if end > len(text):
            break
        stretch = text[start:end]
        if stretch in seen and _has_letter(stretch):
            inside[start:end] = True
        seen.add(stretch)
    return max(float(widths[inside].sum() / widths.sum()), loop_share(text))


def is_not_meaningful(output: str) -> bool:
    """NM of Yao et al. 2024, and loops: empty, or more than half of it one character or a loop of
    syllables, words or phrases. One letter, a word or a number is meaningful.
    """
    text = " ".join(output.split())
    if len(text) <= 1:
        return not text.isalnum()
    number = re.fullmatch(r"[\d\s.,+()/-]*\d[\d\s.,+()/-]*", text)
    if number and len(text) < SHORTEST_LOOP["signs"]:
        return False
    return Counter(text).most_common(1)[0][1] / len(text) > 0.5 or loop_share(text) > 0.5


def degeneration_limit(originals: Sequence[str]) -> float:
    """The repetition above which an answer is degenerate: the 99th percentile of the original
    model's answers to everyday prompts, between `LEAST_LIMIT` and `HIGHEST_LIMIT`.

    Args:
        originals: these answers; without any, the limit is `LEAST_LIMIT`.
    """
    found = [value for value in map(repetition, originals) if value is not None]
    limit = float(np.percentile(found, 99)) if found else LEAST_LIMIT
    return min(max(limit, LEAST_LIMIT), HIGHEST_LIMIT)


def is_degenerate(output: str, limit: float = LEAST_LIMIT) -> bool:
    """Whether an answer is empty or one character, not meaningful, has more repetition than `limit`
    (see `degeneration_limit`), or units that repeat `CERTAIN_REPEATS` times in a fifth of it.
    """
    text = squeezed(output)
    if len(text) <= 1 or is_not_meaningful(output):
        return True
    return (repetition(text) or 0.0) > limit or loop_share(text, CERTAIN_REPEATS) >= CERTAIN_SHARE
