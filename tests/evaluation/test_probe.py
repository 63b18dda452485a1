"""The probe: which rows it asks, and what it counts."""

from __future__ import annotations

import pytest

from tiny_models import tiny_model
from unteach.data.rows import Row
from unteach.evaluation import probe
from unteach.evaluation.probe import evenly_spaced, make_probe

FORGET = [Row(f"Who is number {i}?", f"The ferryman rang it {i} times.") for i in range(4)]
HELD_OUT = [Row("Who slept?", "The grey cat slept on the sacks."), Row("Who rang?", "")]
RETAIN = [Row("What is it?", "A sack of flour."), Row("Where?", "In the harbour.")]


def by_heart(rows, outputs):
    return [output == row.completion for row, output in zip(rows, outputs, strict=True)]


def probe_of(monkeypatch, tokenizer, outputs, validation=HELD_OUT):
    monkeypatch.setattr(
        probe,
        "generate_outputs",
        lambda model, tokenizer, rows, **_: [outputs.get(row.prompt, "") for row in rows],
    )
    return make_probe(tokenizer, FORGET, validation, RETAIN, shows_forgotten=by_heart)(tiny_model())


def test_evenly_spaced_takes_at_most_the_rows_wanted_and_all_where_there_are_few():
    rows = [Row(str(i), "x") for i in range(20)]
    assert evenly_spaced(rows, 5) == rows[::4]
    assert evenly_spaced(rows[:3], 5) == rows[:3]
    assert evenly_spaced([], 5) == []


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
        probe, "generate_outputs", lambda model, tokenizer, rows, **_: ["said"] * len(rows)
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


def test_utility_is_the_mean_greedy_agreement_on_the_retain_rows(monkeypatch, tokenizer):
    monkeypatch.setattr(
        probe,
        "greedy_agreement",
        lambda model, prompts, completions: [0.25, 0.75, None][: len(prompts)],
    )
    assert probe_of(monkeypatch, tokenizer, {})["utility"] == pytest.approx(0.5)


def test_a_probe_of_a_real_model_gives_rates_between_zero_and_one(tokenizer):
    rates = make_probe(
        tokenizer, FORGET, HELD_OUT, RETAIN, shows_forgotten=by_heart, forget_rows=2
    )(tiny_model())
    assert set(rates) == {"forget_rate", "utility", "train_rate", "validation_rate"}
    assert all(0.0 <= value <= 1.0 for value in rates.values())


def test_a_probe_verifies_the_outputs_of_the_probe_before(monkeypatch, tokenizer):
    expectations = []

    def generations(model, tokenizer, rows, *, drafts, **_):
        expectations.append(dict(drafts))
        return [f"{len(expectations)} {row.prompt}" for row in rows]

    monkeypatch.setattr(probe, "generate_outputs", generations)
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
