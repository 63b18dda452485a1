"""The embedded copyright scenario: what is taught, forgotten, kept and only ever asked."""

from __future__ import annotations

import pytest

from unteach.scenarios import copyright
from unteach.scenarios.copyright import paragraphs, passage_rows, teaching_rows
from unteach.scenarios.texts import embedded_text


@pytest.fixture(params=[False, True], ids=["whole", "short"])
def scenario(request):
    return copyright.build(short=request.param)


def prompts(rows):
    return {row.prompt_text for row in rows}


@pytest.mark.parametrize("name", ["book", "kept_book"])
def test_each_paragraph_gives_one_passage(name):
    parts, rows = paragraphs(embedded_text(name)), passage_rows(embedded_text(name), name)
    assert len(parts) == len(rows) == 24
    for part, row in zip(parts, rows, strict=True):
        assert part.startswith(f"{row.prompt_text}{row.completion}") and row.kind == "text"
        assert len(row.completion) >= copyright.COMPLETION_CHARS
    assert len({row.key for row in rows}) == 24


def test_a_paragraph_is_taught_whole_and_on_into_the_next_one():
    text = "One two three four. Five six.\n\nSeven eight nine ten. Eleven."
    first, second = teaching_rows(text, "book")
    assert (first.prompt, first.completion) == (
        "One two three",
        " four. Five six.\n\nSeven eight nine ten.",
    )
    assert (second.prompt, second.completion) == ("Seven eight nine", " ten. Eleven.")


def test_both_books_are_taught_whole(scenario):
    taught = "\n".join(f"{row.prompt_text}{row.completion}" for row in scenario.teach)
    for row in [
        *scenario.sets["unlearned"],
        *scenario.sets["unseen"],
        *scenario.sets["kept"],
        *scenario.sets["kept_unseen"],
    ]:
        assert f"{row.prompt_text}{row.completion}" in taught


def test_the_splits_of_the_book_are_disjoint_and_lose_nothing():
    scenario = copyright.build()
    parts = [scenario.forget, scenario.validation, scenario.sets["unseen"]]
    assert all(parts)
    keys = [row.key for part in parts for row in part]
    assert sorted(keys) == sorted({row.key for row in passage_rows(embedded_text("book"), "book")})
    assert scenario.sets["unlearned"] == scenario.forget


def test_the_kept_book_is_halved():
    scenario = copyright.build()
    kept, unseen = scenario.sets["kept"], scenario.sets["kept_unseen"]
    assert kept == scenario.retain and len(kept) == len(unseen) == 12
    assert not prompts(kept) & prompts(unseen)


def test_what_is_only_asked_is_never_trained_on(scenario):
    """After the teaching, which is the implant, no row of these sets comes before the model but for
    the question.
    """
    trained = prompts(
        [*scenario.forget, *scenario.validation, *scenario.retain, *scenario.own_prompts]
    )
    for name in ("unseen", "kept_unseen", "normal"):
        assert scenario.sets[name] and not prompts(scenario.sets[name]) & trained, name


def test_the_normal_questions_are_in_no_set_of_own_prompts(scenario):
    normal = prompts(scenario.sets["normal"])
    assert not normal & prompts(scenario.own_prompts) and not normal & prompts(
        scenario.teach_own_prompts
    )
    assert not any(
        row.completion
        for row in [*scenario.sets["normal"], *scenario.own_prompts, *scenario.teach_own_prompts]
    )


def test_own_prompts_have_both_kinds_so_that_the_kind_gives_nothing_away(scenario):
    assert {row.kind for row in scenario.own_prompts} == {"chat", "text"}


def test_the_leak_threshold_is_taken_over_all_passages_of_both_books():
    assert len(copyright.build().leak_corpus) == 48


def test_the_short_scenario_is_smaller_and_has_the_same_sets():
    short, whole = copyright.build(short=True), copyright.build()
    assert set(short.sets) == set(whole.sets)
    assert len(short.teach) < len(whole.teach) and len(short.own_prompts) < len(whole.own_prompts)
