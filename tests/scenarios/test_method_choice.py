"""The method that suits the forget rows."""

from __future__ import annotations

from unteach.config.resolve import resolve
from unteach.data.rows import Row
from unteach.methods import DEFAULT_METHOD
from unteach.scenarios.method_choice import method_for, with_suitable_method
from unteach.scenarios.user_rows import user_scenario

ROWS = [Row(f"Who is number {i}?", f"The ferryman, {i} times.") for i in range(4)]


def test_short_answers_are_forgotten_by_their_facts_and_long_ones_whole():
    assert method_for(ROWS)[0] == "counterfactual"
    assert method_for([Row("Who?", "")])[0] == "counterfactual"
    assert method_for([Row("Who?", "word " * 100)])[0] == DEFAULT_METHOD
    assert method_for([Row("", "Once upon a time.", "text")])[0] == DEFAULT_METHOD
    book = Row("Once upon", " a time " * 20, "text")
    assert method_for([book]) == (
        "divert",
        "1 of 1 forget rows are passages: their wording is forgotten, the language is kept",
    )
    assert method_for([book, Row("Who?", "word " * 100)])[0] == DEFAULT_METHOD
    assert "3 of 4" in method_for([*ROWS[:3], Row("", "Once.", "text")])[1]


def test_a_method_that_somebody_named_stays_and_nothing_is_said():
    scenario = user_scenario(ROWS, None)
    found, why = with_suitable_method(resolve({}), scenario)
    assert found.run.method == "counterfactual" and why.startswith("Method counterfactual: 4 of 4")
    named = resolve({"method": "npo"})
    assert with_suitable_method(named, scenario) == (named, "")
