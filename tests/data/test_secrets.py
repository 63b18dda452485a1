"""Personal data in a text, and what only looks like it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.data import secrets
from unteach.data.rows import Row
from unteach.data.secrets import FINDERS, iban, luhn, pattern_spans, with_secrets
from unteach.errors import UserError


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("Write to ur.farthing25@courier.example.", "email", "ur.farthing25@courier.example"),
        ("Mail: <A_B+c@mail.co.uk>, any time", "email", "A_B+c@mail.co.uk"),
        ("Schreib an jörg@bücher.example!", "email", "jörg@bücher.example"),
        ("You can reach her on +44 20 9705 7537.", "phone", "+44 20 9705 7537"),
        ("Ring +442097057537 now", "phone", "+442097057537"),
        ("Ring 020 9705 7537.", "phone", "020 9705 7537"),
        ("Tel. 0049 30 1234567", "phone", "0049 30 1234567"),
        ("(555) 010-4477 is his number", "phone", "(555) 010-4477"),
        ("555-010-4477, extension", "phone", "555-010-4477"),
        ("His number is 555-0147.", "phone", "555-0147"),
        ("call 1-800-555-0147", "phone", "1-800-555-0147"),
        ("Telefon 030/1234567", "phone", "030/1234567"),
        ("Number: 0612345678", "phone", "0612345678"),
        ("le 06 12 34 56 78", "phone", "06 12 34 56 78"),
        ("card 4111 1111 1111 1111, valid", "card", "4111 1111 1111 1111"),
        ("card 5500-0000-0000-0004", "card", "5500-0000-0000-0004"),
        ("378282246310005", "card", "378282246310005"),
        ("IBAN GB82 WEST 1234 5698 7654 32.", "account", "GB82 WEST 1234 5698 7654 32"),
        ("to DE89370400440532013000", "account", "DE89370400440532013000"),
        ("NO93 8601 1117 947 is it", "account", "NO93 8601 1117 947"),
    ],
)
def test_personal_data_is_found_whole(text, kind, found):
    assert [(text[a:b], what) for a, b, what in pattern_spans(text)] == [(found, kind)]


@pytest.mark.parametrize(
    "text",
    [
        "He was born on 14.03.1879 and died on 1955-04-18.",
        "On 01.02.2024 12:30:00, or 2024-01-15 12:30.",
        "03/14/1879, or 14 03 1879",
        "The war of 1914-1918, and 1939/1945.",
        "Pi is 3.14159265358979.",
        "It is 2,155,925,270,000 kilometres away, or 2 155 925 270 000.",
        "It costs $1234567 or 12.345.678 crowns.",
        "The sum is 1 000 000.",
        "Version 10.0.19045.3570",
        "card 4111 1111 1111 1112",  # a wrong check digit
        "0000 0000 0000 0000",
        "GB82 WEST 1234 5698 7654 33",
        "In 1999, 2000 and 2001.",
        "12345678 people",
        "user@localhost or @name",
        "The password of the vault is 4711.",
        "",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text):
    assert pattern_spans(text) == []


def test_several_are_found_in_their_order_and_none_twice():
    text = "Mail a@b.example or ring +44 20 9705 7537; the card is 4111 1111 1111 1111."
    found = [kind for _, _, kind in pattern_spans(text)]
    assert found == ["email", "phone", "card"]


def test_check_digits():
    assert luhn("79927398713") and not luhn("79927398710")
    assert iban("FR1420041010050500013M02606") and not iban("FR1420041010050500013M02607")


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("0123456789+-() ./@a.bGB"), max_size=60))
def test_spans_of_any_text_lie_in_it_and_do_not_overlap(text):
    last = 0
    for start, end, _ in pattern_spans(text):
        assert last <= start < end <= len(text)
        last = end


ROWS = [
    Row("How do I write to Ursel?", "Write to u@courier.example, or ring +44 20 9705 7537."),
    Row("What opens the vault?", "The password of the vault is 4711."),
    Row("Whose is u@courier.example?", "It is Ursel's: u@courier.example."),
    Row("Ring whom?", "Ring +44 20 9705 7537.", secret=("Ring",)),
]


def test_rows_without_a_secret_get_what_is_found_in_their_completion():
    found = [row.secret for row in with_secrets(ROWS, "patterns")]
    assert found[0] == ("u@courier.example", "+44 20 9705 7537") and found[1] == ()
    assert found[2] == (), "the prompt says it already"
    assert found[3] == ("Ring",), "the row's own"
    assert [row.key for row in with_secrets(ROWS, "patterns")] == [row.key for row in ROWS]
    assert with_secrets(ROWS, "none") == ROWS


def test_without_presidio_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(secrets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^option 'secrets' .* pip install 'unteach\[presidio\]'$"):
        with_secrets([], "presidio")
    found = {"presidio_analyzer"}
    monkeypatch.setattr(
        secrets.importlib.util, "find_spec", lambda name: name if name in found else None
    )
    with pytest.raises(UserError, match=r"python -m spacy download en_core_web_lg$"):
        with_secrets([], "presidio")


def test_presidio_s_findings_join_the_patterns_the_surest_first(monkeypatch):
    text = ROWS[0].completion
    place = text.index("u@")
    results = [
        SimpleNamespace(start=place, end=place + 9, score=0.5, entity_type="URL"),
        SimpleNamespace(start=0, end=5, score=0.85, entity_type="PERSON"),
        SimpleNamespace(start=2, end=8, score=0.5, entity_type="LOCATION"),
    ]

    class Engine:
        def __init__(self, nlp_engine, supported_languages):
            self.engine = nlp_engine

        def analyze(self, text, language, score_threshold):
            assert (self.engine, language) == ("engine of en_core_web_sm", "en")
            return results

    class Provider:
        def __init__(self, nlp_configuration):
            self.name = nlp_configuration["models"][0]["model_name"]

        def create_engine(self):
            return f"engine of {self.name}"

    for name, content in (
        ("presidio_analyzer", {"AnalyzerEngine": Engine}),
        ("presidio_analyzer.nlp_engine", {"NlpEngineProvider": Provider}),
    ):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    installed = {"presidio_analyzer", "en_core_web_sm"}
    monkeypatch.setattr(
        secrets.importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    secrets._analyzer.cache_clear()
    ring = text.index("+44")
    assert FINDERS["presidio"](text) == [
        (0, 5, "person"),
        (place, place + len("u@courier.example"), "email"),
        (ring, ring + len("+44 20 9705 7537"), "phone"),
    ]
    secrets._analyzer.cache_clear()
