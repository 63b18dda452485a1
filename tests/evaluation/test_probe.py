"""The probe: which rows it asks, and what it counts."""

from __future__ import annotations

import pytest

from tiny_models import tiny_model
from unteach.data.rows import Row
from unteach.evaluation import probe
from unteach.evaluation.probe import make_probe

FORGET = [Row(f"Who is number {i}?", f"The ferryman rang it {i} times.") for i in range(4)]
HELD_OUT = [Row("Who slept?", "The grey cat slept on the sacks."), Row("Who rang?", "")]
RETAIN = [Row("What is it?", "A sack of flour."), Row("Where?", "In the harbour.")]


def by_heart(rows, outputs):
    return [output == row.completion for row, output in zip(rows, outputs, strict=True)]


def probe_of(monkeypatch, tokenizer, outputs, validation=HELD_OUT):
    monkeypatch.setattr(
        probe,
        "generate_answers",
        lambda model, tokenizer, rows, **_: [(outputs.get(row.prompt, ""), False) for row in rows],
    )
    return make_probe(tokenizer, FORGET, validation, RETAIN, shows_forgotten=by_heart)(tiny_model())


def test_the_forget_rate_is_the_mean_of_both_splits(monkeypatch, tokenizer):
    said_by_heart = {row.prompt: row.completion for row in FORGET[:3]}
    rates = probe_of(monkeypatch, tokenizer, said_by_heart)
    assert (rates["train_rate"], rates["validation_rate"], rates["forget_rate"]) == (
        0.75,
        0.0,
        0.375,
    )
    rates = probe_of(monkeypatch, tokenizer, {HELD_OUT[0].prompt: HELD_OUT[0].completion})
    assert (rates["train_rate"], rates["validation_rate"], rates["forget_rate"]) == (0.0, 1.0, 0.5)


def test_without_validation_rows_the_training_rows_decide(monkeypatch, tokenizer):
    rates = probe_of(monkeypatch, tokenizer, {}, validation=[])
    assert rates["forget_rate"] == rates["train_rate"] == 0.0
    assert "validation_rate" not in rates, "nothing was held out, so nothing is said of it"


def test_the_outputs_of_a_probe_are_given_to_the_callback(monkeypatch, tokenizer):
    monkeypatch.setattr(
        probe, "generate_answers", lambda model, tokenizer, rows, **_: [("said", False)] * len(rows)
    )
    seen = []
    make_probe(
        tokenizer,
        FORGET[:2],
        [],
        RETAIN,
        shows_forgotten=by_heart,
        on_outputs=lambda *at: seen.append(at),
    )(tiny_model())
    assert seen == [(FORGET[:2], ["said", "said"])]


def test_utility_and_neighbours_are_the_mean_greedy_agreement_on_their_rows(monkeypatch, tokenizer):
    """One forward reads both: the first token of each row is right, of the second row the first
    two. Of a row with facts only the facts' tokens count.
    """
    calls = []

    def matches(model, prompts, completions):
        calls.append([len(completion) for completion in completions])
        return [
            [place <= row for place in range(len(completion))]
            for row, completion in enumerate(completions)
        ]

    monkeypatch.setattr(probe, "greedy_matches", matches)
    monkeypatch.setattr(
        probe, "generate_answers", lambda model, tokenizer, rows, **_: [("said", False)] * len(rows)
    )

    def rates(kept, near):
        options = {"neighbours": near, "shows_forgotten": by_heart}
        return make_probe(tokenizer, FORGET, [], kept, **options)(tiny_model())

    found = rates(RETAIN, [Row("Who is it?", "Ann of the mill.")])
    (lengths,) = calls
    assert len(lengths) == 3 and max(lengths) <= probe.KEPT_TOKENS
    assert found["utility"] == pytest.approx((1 / lengths[0] + 2 / lengths[1]) / 2)
    assert found["neighbours"] == pytest.approx(3 / lengths[2])
    found = rates([], [Row("And who is it?", "It is Ann Lee.", secret=("Ann Lee",))])
    assert (found["neighbours"], found["utility"]) == (0.0, 1.0), "the first token is no fact"


@pytest.mark.parametrize(("wrong", "said"), [(0, 1.0), (1, 0.0)])
def test_a_fact_of_which_one_token_is_wrong_is_not_said(monkeypatch, tokenizer, wrong, said):
    """The share of right tokens is 0.95 where 61% of the facts are still said."""
    monkeypatch.setattr(probe, "generate_answers", lambda *_, **__: [("", False)] * len(FORGET))
    monkeypatch.setattr(
        probe,
        "greedy_matches",
        lambda model, prompts, completions: [
            [False] * wrong + [True] * (len(completion) - wrong) for completion in completions
        ],
    )
    near = [Row("And who is it?", "Ann Lee.", secret=("Ann Lee",))]
    options = {"neighbours": near, "shows_forgotten": by_heart}
    assert make_probe(tokenizer, FORGET, [], [], **options)(tiny_model())["neighbours"] == said


def test_readable_is_the_share_of_outputs_that_are_language(monkeypatch, tokenizer):
    said = ["stonestonestonestonestone", "t t t t t t t t t t t t", "The cat slept.", ""]
    outputs = {row.prompt: text for row, text in zip(FORGET, said, strict=True)}
    assert probe_of(monkeypatch, tokenizer, outputs, validation=[])["readable"] == 0.25


def test_at_most_so_many_forget_rows_are_prompted_a_half_of_them_held_out(monkeypatch, tokenizer):
    seen = []

    def outputs(model, tokenizer, rows, *, max_new_tokens, **_):
        seen.append(([row.prompt for row in rows], max_new_tokens))
        return [("", False)] * len(rows)

    monkeypatch.setattr(probe, "generate_answers", outputs)
    validation = [Row(f"Who slept {i}?", "A cat.") for i in range(9)]
    for held_out in (validation, []):
        options = {"shows_forgotten": by_heart, "forget_rows": 6}
        make_probe(tokenizer, FORGET * 9, held_out, RETAIN, **options)(tiny_model())
    (mixed, _), (alone, most) = seen
    assert len(mixed) == len(alone) == 6 and sum("slept" in prompt for prompt in mixed) == 3
    longest = max(len(tokenizer(row.completion)["input_ids"]) for row in FORGET)
    assert most == min(probe.PROBE_TOKENS, longest + probe.MORE_TOKENS)


def test_a_probe_of_a_real_model_gives_rates_between_zero_and_one(tokenizer):
    options = {"neighbours": RETAIN[:1], "shows_forgotten": by_heart, "forget_rows": 2}
    rates = make_probe(tokenizer, FORGET, HELD_OUT, RETAIN, **options)(tiny_model())
    names = {"forget_rate", "utility", "neighbours", "readable", "train_rate", "validation_rate"}
    assert set(rates) == {*names, "cut_off"}
    assert all(0.0 <= value <= 1.0 for value in rates.values())


def test_a_probe_verifies_the_outputs_of_the_probe_before(monkeypatch, tokenizer):
    expectations = []

    def generations(model, tokenizer, rows, *, drafts, **_):
        expectations.append(dict(drafts))
        return [(f"{len(expectations)} {row.prompt}", False) for row in rows]

    monkeypatch.setattr(probe, "generate_answers", generations)
    measure = make_probe(
        tokenizer,
        FORGET[:2],
        HELD_OUT,
        RETAIN,
        shows_forgotten=by_heart,
        drafts={FORGET[0].key: "from the original"},
    )
    for _ in range(2):
        measure(tiny_model())
    assert expectations[0] == {FORGET[0].key: "from the original"}
    assert expectations[1] == {row.key: f"1 {row.prompt}" for row in [*FORGET[:2], HELD_OUT[0]]}
