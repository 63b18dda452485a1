"""Which rows the probe of a run reads."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from unteach.data.rows import Row
from unteach.evaluation.scoring import Generations
from unteach.run.probing import kept_rows, run_probe
from unteach.scenarios.scenario import Scenario


def rows(name: str, count: int = 12) -> list[Row]:
    return [Row(f"{name} {i}?", f"{name}, {i}.") for i in range(count)]


SETS = {
    "unlearned": rows("forget"),
    "neighbours": rows("near"),
    "kept": rows("kept"),
    "kept_unseen": rows("aside"),
    "normal": [row.with_completion("") for row in rows("everyday")],
}
SCENARIO = Scenario("s", rows("forget"), [], rows("own"), SETS)


def outputs(sets) -> Generations:
    return Generations(
        {name: [row.completion or f"Own {row.prompt}" for row in sets[name]] for name in sets}, {}
    )


def chosen(most: int = 24, *without: str, **changed):
    sets = {name: part for name, part in SETS.items() if name not in without} | changed
    return kept_rows(replace(SCENARIO, sets=sets), outputs(sets), most)


def kinds(part) -> set[str]:
    return {row.prompt.split()[0] for row in part}


def test_nothing_that_is_trained_on_is_read_where_there_is_something_else():
    found = chosen()
    assert kinds(found.utility) == {"aside", "everyday"} and kinds(found.neighbours) == {"near"}
    assert len(found.utility) == 16 and len(found.neighbours) == 8
    assert found.facts == {
        "utility": {"kept_unseen": 8, "normal": 8},
        "neighbours": 8,
        "held_out": True,
    }
    everyday = [row for row in found.utility if row.prompt.startswith("everyday")]
    assert all(row.completion == f"Own {row.prompt}" for row in everyday)


def test_trained_rows_take_their_place_only_where_none_is_held_out():
    found = chosen(24, "kept_unseen", "neighbours")
    assert kinds(found.utility) == {"kept", "everyday"} and len(found.utility) == 24
    assert found.neighbours == [] and not found.facts["held_out"]
    found = chosen(24, "kept_unseen", "kept", "neighbours", "normal")
    assert kinds(found.utility) == {"own"} and found.facts["utility"] == {"trained": 12}
    found = chosen(24, "kept_unseen", "kept")
    assert kinds(found.utility) == {"everyday"} and found.facts["held_out"]


def test_first_lines_to_continue_in_any_words_are_not_read():
    assert kinds(chosen(prose=rows("prose")).utility) == {"aside", "everyday"}


def test_few_rows_of_one_set_leave_room_for_more_of_the_other():
    found = chosen(24, "neighbours", kept_unseen=rows("aside", 2), normal=rows("everyday", 30))
    assert found.facts["utility"] == {"kept_unseen": 2, "normal": 22}


def test_of_rows_with_facts_those_that_the_original_model_says_are_read():
    near = [Row("near 0?", "It is Ann.", secret=("Ann",)), Row("near 1?", "Bob.", secret=("Bob",))]
    sets = {**SETS, "neighbours": near}
    said = outputs(sets)
    said.outputs["neighbours"][0] = "It is Bob."
    assert kept_rows(replace(SCENARIO, sets=sets), said, 24).neighbours == near[1:]


def test_a_short_answer_to_keep_that_the_original_model_gives_is_a_fact_as_a_whole():
    sets = {**SETS, "kept_unseen": [*rows("aside", 2), Row("Go on", "aside, 2.", kind="text")]}
    said = outputs(sets)
    said.outputs["kept_unseen"][1] = "Something else."
    utility = kept_rows(replace(SCENARIO, sets=sets), said, 24).utility
    facts = {row.prompt: row.secret for row in utility if row.prompt.split()[0] != "everyday"}
    assert facts == {"aside 0?": ("aside, 0.",), "aside 1?": (), "Go on": ()}


def test_rows_of_which_nothing_can_be_seen_to_be_forgotten_are_not_asked(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "unteach.run.probing.make_probe",
        lambda tokenizer, forget, validation, *_, **__: asked.update(f=forget, v=validation),
    )
    scorers = SimpleNamespace(shows_forgotten=None)
    for unknown, left in ((SCENARIO.forget[:5], 7), (SCENARIO.forget, 12), ([], 12)):
        keys = frozenset(row.key for row in unknown)
        scenario = replace(SCENARIO, validation=SCENARIO.forget[:1], unknown=keys)
        make, _ = run_probe(None, scenario, outputs(SETS), scorers, forget_rows=24, drafts={})
        make()
        assert len(asked["f"]) == left and asked["v"] == SCENARIO.forget[:1]
