"""Which scorers a run uses, and what happens where one cannot be had."""

from __future__ import annotations

import pytest

from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation import scorers
from unteach.evaluation.scorers import Scorers, build_scorers, check_right_answers

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
    [(0.9, 0.8, True), (0.88, 0.8, False), (0.87, 0.8, False), (0.5, 0.9, False)],
)
def test_an_answer_is_hallucinated_when_it_is_more_than_a_tenth_closer_to_the_wrong_one(
    likeness, wrong, right, expected
):
    likeness |= {("x", "The baker did."): wrong, ("x", "The miller did."): right}
    assert Scorers(ScorerNames(), 0.0).hallucinated(ROWS, ["x", "x", "x"]) == [expected, None, None]


def test_an_answer_that_is_near_to_neither_is_not_hallucinated(likeness):
    likeness |= {("I can't.", "The baker did."): 0.2, ("I can't.", "The miller did."): 0.1}
    assert Scorers(ScorerNames(), 0.0, unrelated=0.3).hallucinated(ROWS[:1], ["I can't."]) == [
        False
    ]


def test_what_is_still_said_follows_the_headline(likeness):
    likeness |= {("bad", "The baker did."): 1.0, ("bad", "The miller did."): 0.2}
    assert Scorers(ScorerNames("harmful_rate"), 0.0, Judge()).still_said(
        ROWS[:2], ["bad", "good"]
    ) == [True, False]
    assert Scorers(ScorerNames("hallucination_rate"), 0.0).still_said(ROWS[:1], ["bad"]) == [True]
    assert Scorers(ScorerNames(), 50.0).still_said(ROWS[:2], ["The baker did.", "In Paris."]) == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"headline": "harmful_rate"}, "needs a judge"),
        ({"headline": "hallucination_rate", "encoder": None}, "needs an encoder"),
        (
            {"headline": "hallucination_rate", "encoder": "nobody/nothing"},
            "no hallucination rate without BERTScore",
        ),
        ({"headline": "rate"}, "headline is 'rate', it must be one of leak_rate"),
    ],
)
def test_a_headline_that_cannot_be_measured_ends_the_run_with_a_sentence(
    monkeypatch, names, sentence
):
    monkeypatch.setattr(scorers, "why_not", lambda encoder: f"{encoder} cannot be had")
    with pytest.raises(UserError, match=sentence):
        build_scorers(ScorerNames(**names), [], [])


def test_a_scorer_beside_the_headline_that_cannot_be_had_is_said_and_left_out(monkeypatch):
    def nobody(name, labelled):
        raise UserError("nobody is there")

    monkeypatch.setattr(scorers, "why_not", lambda encoder: "it cannot be had")
    monkeypatch.setattr(scorers, "load_reward", nobody)
    said = []
    built = build_scorers(ScorerNames(reward="trained"), [], [], said.append)
    assert said == [
        "No similarity to the original's answers: it cannot be had",
        "No utility reward: nobody is there",
    ]
    assert (
        built.reward is None
        and built.names.similarity is None
        and "similarity" not in built.facts("m")
    )


def test_a_row_without_a_right_answer_is_named_where_the_headline_needs_one():
    """Compared with nothing it would count as forgotten from the start."""
    names = ScorerNames(headline="hallucination_rate")
    check_right_answers(names, ROWS[:1])
    check_right_answers(ScorerNames(), ROWS)
    with pytest.raises(
        UserError, match=r"rows.jsonl:2: headline 'hallucination_rate' needs a field 'right'"
    ):
        check_right_answers(names, [ROWS[0], Row("Where?", "In Rome.", source="rows.jsonl:2")])


def test_some_lines_of_a_long_text_recited_word_for_word_are_still_said():
    page = " ".join(
        f"The miller counted sack number {i} and wrote it down with chalk." for i in range(40)
    )
    scorer = Scorers(ScorerNames(), threshold=20.0)
    assert scorer.still_said(
        [Row("Go on", page)] * 2,
        [page[:190], "Nothing of the kind was ever heard of in this town."],
    ) == [True, False]
