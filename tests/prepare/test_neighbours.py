"""Neighbours: the forget prompts about other names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from unteach.data.rows import Row
from unteach.prepare import neighbours
from unteach.prepare.neighbours import (
    NEIGHBOURS,
    prompts_under_other_names,
    with_neighbours,
    with_others_of_its_kind,
)
from unteach.scenarios.user_rows import user_scenario

NAMES = ("Ada Miller", "Bram Fisher", "Cleo Baker", "Dora Smith")
ROWS = [Row(f"What is the number of {name}?", f"It is {i}71.") for i, name in enumerate(NAMES)]


def test_neighbours_are_other_names_near_the_forgotten_ones():
    prompts = prompts_under_other_names(ROWS, 12)
    texts = [row.prompt_text for row in prompts]
    assert len(set(texts)) == 12 and all(row.completion == "" for row in prompts)
    assert not any(name in text for name in NAMES for text in texts)
    words = {word for name in NAMES for word in name.split()}
    shared = [any(word in words for word in text[:-1].split()) for text in texts]
    assert 4 <= sum(shared) < 12
    assert prompts_under_other_names([Row("what slept?", "the cat")], 5) == []


def test_half_of_the_neighbours_are_kept_and_half_only_evaluated():
    scenario = with_neighbours(user_scenario(ROWS, None))
    kept, held_out = scenario.neighbours, scenario.sets["neighbours"]
    assert len(kept) + len(held_out) == NEIGHBOURS and len(kept) == len(held_out)
    assert not {row.key for row in kept} & {row.key for row in held_out}
    assert all(row.completion == "" for row in [*kept, *held_out])


def test_neighbours_that_the_user_names_are_the_only_ones():
    others = [Row(f"What is the number of Egon {i}?", f"It is {i}.") for i in "ABCD"]
    scenario = user_scenario(ROWS, None, neighbours=others)
    assert with_neighbours(scenario) is scenario
    nameless = user_scenario([Row("what slept?", "the cat")], None)
    assert with_neighbours(nameless) is nameless


@pytest.mark.parametrize("given", [True, False])
def test_prompts_about_one_name_are_kept_apart_from_other_things_of_its_kind(given, monkeypatch):
    asked = [Row(f"{what} was Ada Miller?", "") for what in ("Who", "Where", "What")]
    own = [Row("Who was Egon?", "A cook.")] if given else []
    scenario = user_scenario(asked, None)
    scenario = replace(scenario, sets={**scenario.sets, **({"neighbours": own} if given else {})})
    answered = [row.with_completion("A baker.") for row in asked]
    completed = replace(scenario, forget=answered)
    rows = [
        Row(f"Who was {name}?", f"A {name}.", columns={"about": name})
        for name in ("Bo", "Cy", "Egon")
    ]
    source: Any = None

    def others(given_source: Any, name: str, answers: Any, seed: int) -> Any:
        assert (given_source, name, answers) == (source, "Ada Miller", ["A baker."] * 3)
        return rows, ["cost"]

    monkeypatch.setattr(neighbours, "others_of_its_kind", others)
    found, costs = with_others_of_its_kind(source, scenario, completed)
    assert costs == ["cost"]
    if given:  # a prompt that is evaluated is not trained on
        assert found.neighbours == rows[:2] and found.sets["neighbours"] == own
    else:
        assert found.neighbours == rows[::2] and found.sets["neighbours"] == rows[1:2]
    nameless = user_scenario([Row("Who slept?", "")] * 3, None)
    assert with_others_of_its_kind(source, nameless, nameless) == (nameless, [])
