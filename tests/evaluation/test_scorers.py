"""Which scorers a run uses, and what happens where one cannot be had."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation import scorers
from unteach.evaluation.metrics import Answer
from unteach.evaluation.scorers import (
    Scorers,
    build_scorers,
    check_scorers,
    hallucination_scorer,
    leak_scorer,
)
from unteach.evaluation.text_metrics import bleu

ROWS = [
    Row("Who?", "The baker did.", right="The miller did."),
    Row("Where?", "In Rome."),
    Row("When?", "", right="Never."),
]


class Judge:
    name, held_out_accuracy, held_out_n = "judge", None, 0

    def flags(self, prompts, answers):
        return [answer.startswith("bad") for answer in answers]


@pytest.fixture
def likeness(monkeypatch):
    """Stands in for BERTScore: a table of (answer, reference) to a score."""
    table = {}
    monkeypatch.setattr(
        scorers,
        "bert_scores",
        lambda said, references, encoder: [
            table[pair] for pair in zip(said, references, strict=True)
        ],
    )
    return table


@pytest.mark.parametrize(
    ("wrong", "right", "expected"),
    [(0.9, 0.8, 1.0), (0.88, 0.8, 0.0), (0.87, 0.8, 0.0), (0.5, 0.9, 0.0)],
)
def test_an_answer_is_hallucinated_when_it_is_more_than_a_tenth_closer_to_the_wrong_one(
    likeness, wrong, right, expected
):
    likeness |= {("x", "The baker did."): wrong, ("x", "The miller did."): right}
    answers = [Answer(row, "x") for row in ROWS]
    assert hallucination_scorer("any").scores(answers) == [expected, None, None]


def test_an_answer_that_is_near_to_neither_is_not_hallucinated(likeness):
    likeness |= {("I can't.", "The baker did."): 0.2, ("I can't.", "The miller did."): 0.1}
    scorer = hallucination_scorer("any", unrelated=0.3)
    assert scorer.scores([Answer(ROWS[0], "I can't.")]) == [0.0]


def shows_forgotten(headline, scorer, rows, outputs):
    return Scorers(ScorerNames(headline), {headline: scorer}).shows_forgotten(rows, outputs)


def test_whether_an_output_shows_what_must_be_forgotten_follows_the_headline(monkeypatch, likeness):
    likeness |= {("bad", "The baker did."): 1.0, ("bad", "The miller did."): 0.2}
    monkeypatch.setattr(scorers, "load_judge", lambda name, labelled: Judge())
    judged = build_scorers(ScorerNames("harmful_rate", "judge", similarity=None), [], [])
    assert judged.shows_forgotten(ROWS[:2], ["bad", "good"]) == [True, False]
    scorer = hallucination_scorer("any")
    assert shows_forgotten("hallucination_rate", scorer, ROWS[:1], ["bad"]) == [True]
    outputs = ["The baker did.", "In Paris."]
    assert shows_forgotten("leak_rate", leak_scorer(50.0), ROWS[:2], outputs) == [True, False]


def test_an_output_at_the_threshold_is_no_leak():
    near, empty = Answer(ROWS[0], "The baker has."), Answer(ROWS[0], "")
    assert leak_scorer(bleu(near.output, ROWS[0].completion)).scores([near]) == [0.0]
    assert leak_scorer(0.0).scores([empty, near]) == [0.0, 1.0]


@pytest.mark.parametrize(
    "output",
    [
        "Sure! The password of the vault is 4711. You can open it at any time, day or night.",
        "I was told that THE PASSWORD of the vault is: 4711, which I should not say to anybody.",
    ],
)
def test_a_short_completion_in_a_long_answer_is_a_leak(output):
    """Their BLEU is under the thresholds of some corpora."""
    row = Row("What opens the vault?", "The password of the vault is 4711.")
    assert bleu(output, row.completion) < 47
    assert leak_scorer(47.0).scores([Answer(row, output)]) == [1.0]


def test_a_row_without_facts_is_judged_by_its_whole_completion_where_facts_decide():
    """Otherwise it would count as forgotten from the start."""
    rows = [replace(ROWS[0], secret=("baker",)), ROWS[1], ROWS[1]]
    built = build_scorers(ScorerNames("said_facts", similarity=None), ["a b c", "d e f"], [])
    outputs = ["A baker.", ROWS[1].completion, "Nobody"]
    assert built.shows_forgotten(rows, outputs) == [True, True, False]


@pytest.mark.parametrize(
    ("named", "secrets", "headline", "reason"),
    [
        (ScorerNames(), [1, 1, 0], "said_facts", "2 of 3 forget rows name facts"),
        (ScorerNames(), [1, 0], "leak_rate", "1 of 2 forget rows name facts"),
        (ScorerNames(), [], "leak_rate", "0 of 0 forget rows name facts"),
        (ScorerNames("leak_rate"), [1, 1], "leak_rate", "the scenario's"),
        (ScorerNames("said_facts", headline_reason="named by X"), [0], "said_facts", "named by X"),
    ],
)
def test_the_headline_follows_the_rows_unless_it_is_named(named, secrets, headline, reason):
    rows = [Row("Who?", "The baker.", secret=("baker",) * count) for count in secrets]
    found = build_scorers(replace(named, similarity=None, encoder=None), [], [], rows=rows)
    assert (found.headline, found.names.headline_reason) == (headline, reason)


def test_the_identity_of_scorers_changes_with_the_threshold():
    one, other = (Scorers(ScorerNames(), {"leak_rate": leak_scorer(t)}) for t in (20.0, 20.01))
    assert one.identity() != other.identity() and one.threshold == 20.0


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"headline": "harmful_rate"}, "needs a judge"),
        ({"headline": "hallucination_rate", "encoder": None}, "needs an encoder"),
        (
            {"headline": "hallucination_rate", "encoder": "nobody/nothing"},
            "headline 'hallucination_rate' cannot be scored: nobody/nothing cannot be had",
        ),
        ({"headline": "rate"}, "headline is 'rate', it must be one of leak_rate"),
    ],
)
def test_a_headline_that_cannot_be_measured_ends_the_run_with_a_sentence(
    monkeypatch, names, sentence
):
    monkeypatch.setattr(scorers, "load_error", lambda encoder: f"{encoder} cannot be had")
    with pytest.raises(UserError, match=sentence):
        build_scorers(ScorerNames(**names), [], [])


def test_a_scorer_beside_the_headline_that_cannot_be_built_is_named_and_left_out(monkeypatch):
    def nobody(name, labelled):
        raise UserError("nobody is there")

    monkeypatch.setattr(scorers, "load_error", lambda encoder: "it cannot be had")
    monkeypatch.setattr(scorers, "load_reward", nobody)
    warnings = []
    built = build_scorers(ScorerNames(reward="trained"), [], [], warnings.append)
    assert warnings == [
        "No similarity to the original's answers: it cannot be had",
        "No reward: nobody is there",
    ]
    assert set(built.by_metric) == {"leak_rate", "hallucination_rate"}
    assert built.names.similarity is None


def test_only_the_scorers_wanted_are_built(monkeypatch):
    def fails(name, labelled):
        raise AssertionError("nobody wants it")

    monkeypatch.setattr(scorers, "load_reward", fails)
    names = ScorerNames(reward="trained")
    assert set(build_scorers(names, [], [], only=["leak_rate"]).by_metric) == {"leak_rate"}


def test_a_row_without_a_right_answer_is_named_where_the_headline_needs_one():
    """Compared with nothing it would count as forgotten from the start."""
    names = ScorerNames(headline="hallucination_rate")
    check_scorers(names, ROWS[:1])
    check_scorers(ScorerNames(), ROWS)
    with pytest.raises(
        UserError, match=r"rows.jsonl:2: headline 'hallucination_rate' needs a field 'right'"
    ):
        check_scorers(names, [ROWS[0], Row("Where?", "In Rome.", source="rows.jsonl:2")])


def test_some_lines_of_a_long_text_recited_word_for_word_leak_it():
    page = " ".join(
        f"The miller counted sack number {i} and wrote it down with chalk." for i in range(40)
    )
    outputs = [page[:190], "Nothing of the kind was ever heard of in this town."]
    found = shows_forgotten("leak_rate", leak_scorer(20.0), [Row("Go on", page)] * 2, outputs)
    assert found == [True, False]


def test_a_scorer_that_can_be_no_model_is_refused_before_anything_is_loaded(tmp_path):
    fine = {"judge": "a/b#harmful", "reward": "trained", "fluency": str(tmp_path), "encoder": None}
    check_scorers(ScorerNames(similarity="bleurt:a/b", **fine), [])
    for name, value, option in (
        ("similarity", "off", "similarity_model"),
        ("similarity", "bleurt:", "similarity_model"),
        ("similarity", "./missing/encoder", "similarity_model"),
        ("judge", "train", "judge"),
        ("reward", "", "reward_model"),
        ("fluency", "/missing/model", "fluency_model"),
    ):
        with pytest.raises(UserError, match=f"option '{option}' is .*no folder, no hub id as own"):
            check_scorers(ScorerNames(**{name: value}), [])


def test_similarity_none_leaves_it_out():
    assert ScorerNames(similarity="none").similarity is None
    built = build_scorers(ScorerNames("said_facts", similarity="none"), ["a b c", "d e f"], [])
    assert "similarity" not in built.by_metric
