"""Runs of tokens of a forgotten text."""

from __future__ import annotations

import pytest

from tiny_models import byte_level_bpe
from unteach.data.counterfactuals import Counterfactual, counterfactual
from unteach.data.ngrams import PASSAGE_CHARS, RUN, ForgottenRuns, is_passage
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row

PASSAGE = Row("The miller rose", " before the light and went out. " * 4, "text")


@pytest.mark.parametrize("text", ["the sun rose red", "red rose rose rose red", "the", ""])
def test_what_completes_a_run_is_what_a_search_of_the_text_finds(text):
    tokenizer = byte_level_bpe()
    ids = tokenizer.encode(PASSAGE.completion)
    runs = ForgottenRuns([ids], tokenizer)
    before = tokenizer.encode(text)
    for end in range(len(before) + 1):
        last = before[max(0, end - RUN + 1) : end]
        places = range(len(ids) - RUN + 1)
        naive = {ids[i + RUN - 1] for i in places if ids[i : i + RUN - 1] == last}
        words = {tokenizer.decode([token]).strip().casefold() for token in naive}
        spelled = {
            token
            for token in range(len(tokenizer))
            if (word := tokenizer.decode([token]).strip().casefold()) in words and word.isalnum()
        }
        assert runs.completing(before[:end]) == tuple(sorted(naive | spelled))


def test_a_banned_word_is_banned_in_every_spelling():
    tokenizer = byte_level_bpe()
    runs = ForgottenRuns([[5, 6, tokenizer.encode("a")[0]]], tokenizer)
    found = {tokenizer.decode([token]) for token in runs.completing([9, 5, 6])}
    assert {"a", "A"} <= found and {text.strip().casefold() for text in found} == {"a"}
    assert runs.completing([5, 7]) == runs.completing([5]) == runs.completing([]) == ()


def test_a_passage_is_running_text_of_some_length_without_a_named_fact():
    assert is_passage(PASSAGE)
    assert not is_passage(Row("Who?", PASSAGE.completion))
    assert not is_passage(Row("The capital of France is", " Paris", "text"))
    assert not is_passage(Row("", "x" * PASSAGE_CHARS, "text", secret=("x",)))
    assert not is_passage(Row("", "x" * PASSAGE_CHARS, "text", diverted=True))


def test_a_passage_avoids_its_own_runs_and_a_diverted_answer_those_of_the_passage():
    tokenizer = byte_level_bpe()
    item = encode_row(PASSAGE, tokenizer, None)
    runs = ForgottenRuns([item.prompt_ids + item.completion_ids], tokenizer)
    part = counterfactual(PASSAGE, item, tokenizer, runs=runs)
    assert part == Counterfactual((), avoid=runs.along(item.prompt_ids, item.completion_ids))
    pairs = zip(item.completion_ids, part.avoid, strict=True)
    assert all(token in avoid for token, avoid in pairs)
    other = Row("The miller rose", " late", "text", diverted=True)
    item = encode_row(other, tokenizer, None)
    avoid = counterfactual(other, item, tokenizer, runs=runs).avoid
    assert len(avoid) == len(item.completion_ids) and any(avoid) and not all(avoid)
