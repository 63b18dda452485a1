"""Personal data within a text: e-mail addresses, phone numbers, card and account numbers, found by
patterns and check digits, or by Presidio.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from unteach.data.rows import Row, letters_and_digits
from unteach.errors import UserError

SPACY_MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
"""Models of names that Presidio can use, the best first."""
PRESIDIO_SCORE = 0.4
"""Least confidence of a finding by Presidio: a name has 0.85, a number 0.05 to 0.4 unless a word
beside it says what it is.
"""


class Span(NamedTuple):
    """Start, end and kind of a finding in a text."""

    start: int
    end: int
    kind: str


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812 (cards).

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether the check digits are those of ISO 13616 (account numbers).

    >>> iban("GB82 WEST 1234 5698 7654 32"), iban("GB82 WEST 1234 5698 7654 33")
    (True, False)
    """
    plain = text.replace(" ", "").upper()
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_card(text: str) -> bool:
    digits = _digits(text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def _is_iban(text: str) -> bool:
    return 15 <= len(text.replace(" ", "")) <= 34 and iban(text)


DATE = re.compile(
    r"\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{2,4}|\d{4} ?[-\u2013/] ?\d{2,4}"
)
"""Days, and spans of years."""
DAY_FIRST = re.compile(r"(?:\d{1,2}([-./])\d{1,2}\1\d{4}|\d{4}([-./])\d{1,2}\2\d{1,2})(?!\d)")
"""A day and whatever follows it, such as the hour."""


def _is_phone(text: str) -> bool:
    """Seven to fifteen digits (ITU-T E.164) that begin as a phone number does, or stand in groups
    as one does; no day, no span of years, no sum.
    """
    digits = _digits(text)
    if not 7 <= len(digits) <= 15 or DATE.fullmatch(text.strip()) or DAY_FIRST.match(text):
        return False
    if re.fullmatch(r"\d{1,3}([ .]\d{3})+", text) and not text.startswith("0"):
        return False  # a sum with its thousands apart
    started = re.match(r"\+|00[1-9]|0[1-9]|\(|1[-. ]", text)
    grouped = re.fullmatch(r"\d{3}[-. ]\d{3,4}([-. ]\d{4})?", text)
    separated = re.search(r"[ ()/.-]", text) or text.startswith("+") or digits.startswith("0")
    return bool((started and separated) or grouped)


PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        "email",
        re.compile(r"[\w.+%-]*\w@[^\W_][\w-]*(?:\.[\w-]*[^\W_])+"),
        lambda text: True,
    ),
    (
        "account",
        re.compile(
            r"(?<!\w)[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?(?!\w)"
        ),
        _is_iban,
    ),
    ("card", re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?!\w)"), _is_card),
    (
        "phone",
        re.compile(r"(?<![\w.,/$€£+-])(?:\+|\()?\d(?:[ ()/.-]{0,3}\d){6,16}(?!\w|[.,]\d)"),
        _is_phone,
    ),
)
"""Kind, pattern and check, those first that are the surest."""


def pattern_spans(text: str) -> list[Span]:
    """E-mail addresses, account numbers (IBAN), card numbers (Luhn) and phone numbers in a text, in
    their order; no two overlap.

    >>> pattern_spans("Ring +44 20 9705 7537.")
    [Span(start=5, end=21, kind='phone')]
    """
    found: list[Span] = []
    for kind, pattern, check in PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span()
            free = all(end <= span.start or span.end <= start for span in found)
            if free and check(match.group()):
                found.append(Span(start, end, kind))
    return sorted(found)


@cache
def _analyzer() -> Any:
    """Presidio's analyzer with the best installed model of names."""
    check_finder("presidio")
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    name = next(name for name in SPACY_MODELS if importlib.util.find_spec(name))
    models = [{"lang_code": "en", "model_name": name}]
    settings = {"nlp_engine_name": "spacy", "models": models}
    provider = NlpEngineProvider(nlp_configuration=settings)
    return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])


def presidio_spans(text: str) -> list[Span]:
    """What the patterns find, and what Presidio finds beside it in an English text, in its order;
    of two findings that overlap the surer one.

    The patterns come first: Presidio takes "vi.cranmer35@mailroom.example" for the address "vi.cr"
    of a page, as the domain is not on its list, and is not sure of phone numbers.
    """
    results = _analyzer().analyze(text, language="en", score_threshold=PRESIDIO_SCORE)
    found = pattern_spans(text)
    for result in sorted(results, key=lambda item: (-item.score, item.start - item.end)):
        if all(result.end <= span.start or span.end <= result.start for span in found):
            found.append(Span(result.start, result.end, str(result.entity_type).lower()))
    return sorted(found)


FINDERS: dict[str, Callable[[str], list[Span]]] = {
    "none": lambda text: [],
    "patterns": pattern_spans,
    "presidio": presidio_spans,
}
"""Values of the option `secrets`."""


def check_finder(name: str) -> None:
    """Raises `UserError`, with the command to install it, for a finder whose package is missing."""
    if name != "presidio":
        return
    if importlib.util.find_spec("presidio_analyzer") is None:
        raise UserError(
            "option 'secrets' is 'presidio', which is not installed: pip install"
            " 'unteach[presidio]'"
        )
    if not any(importlib.util.find_spec(model) for model in SPACY_MODELS):
        raise UserError(
            "option 'secrets' is 'presidio', which needs a spaCy model of English: python -m spacy"
            f" download {SPACY_MODELS[0]}"
        )


def secrets_of(row: Row, finder: str) -> tuple[str, ...]:
    """What the finder finds in the row's completion and its prompt does not say already."""

    def texts() -> Iterator[str]:
        prompt = letters_and_digits(row.prompt_text)
        for start, end, _ in FINDERS[finder](row.completion):
            text = row.completion[start:end]
            plain = letters_and_digits(text)
            if plain and plain not in prompt:
                yield text

    return tuple(dict.fromkeys(texts()))


def with_secrets(rows: Sequence[Row], finder: str) -> list[Row]:
    """The rows, each without a `secret` with the personal data in its completion as its secret.

    Args:
        finder (`str`): a name in `FINDERS`.

    Raises:
        UserError: if the finder's packages are missing.
    """
    check_finder(finder)
    return [row if row.secret else replace(row, secret=secrets_of(row, finder)) for row in rows]
