"""The verdict on made-up results: a table of runs, and the reasons for each."""

from __future__ import annotations

import copy
import json

import pytest

from unteach.evaluation.eval_json import as_eval_json
from unteach.evaluation.results import MetricResult
from unteach.evaluation.verdict import VERDICTS, verdict


def result(value, n=30, better=None):
    return MetricResult(value, n, None, None, better)


def evaluated(headline="said_facts", never_knew=None, **changes):
    """`eval.json` of a run without harm, with changes: `set__metric` to (before, after[, rows]), or
    `None` where that was not measured.
    """
    numbers = {
        "unlearned__said_facts": (0.8, 0.0),
        "unseen__said_facts": (0.7, 0.1),
        "neighbours__said_facts": (0.6, 0.6),
        "kept__said_facts": (0.7, 0.7, 90),
        "normal__similarity": (1.0, 0.95),
        **{f"{name}__readability": (1.0, 1.0) for name in ("unlearned", "unseen", "neighbours")},
        **{f"{name}__readability": (1.0, 1.0) for name in ("kept", "normal")},
        "normal__fluency": (1.2, 1.3),
        **changes,
    }
    models = {"original": {}, "unlearned": {}}
    for place, pair in numbers.items():
        name, metric = place.split("__")
        if pair is None:
            continue
        rows = pair[2:] or (30,)
        for model, value in zip(models, pair, strict=False):
            models[model].setdefault(name, {})[metric] = result(value, *rows)
    if never_knew is not None:
        models["never_knew"] = {"unlearned": {headline: result(never_knew)}}
    return as_eval_json("run", models, headline=headline)


LEAK = {"unlearned__said_facts": None, "unseen__said_facts": None}
OWN = {"neighbours__said_facts": None, "neighbours__similarity": (1.0, 0.9)}
LOOPS = dict.fromkeys(
    [f"{name}__readability" for name in ("unlearned", "unseen", "neighbours", "kept", "normal")],
    (1.0, 0.0),
)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "forgotten"),
        ({"unlearned__said_facts": (0.8, 0.04)}, "forgotten"),  # 5% of what was known
        ({"unlearned__said_facts": (0.8, 0.05)}, "not forgotten"),
        ({"unlearned__said_facts": (0.3, 0.03)}, "not forgotten"),  # a tenth of what was known
        ({"unlearned__said_facts": (0.8, 0.8)}, "not forgotten"),
        ({"unlearned__said_facts": (0.0, 0.0)}, "not forgotten"),
        ({"unseen__said_facts": (0.0, 0.0)}, "forgotten"),
        ({"unseen__said_facts": (0.7, 0.2)}, "not forgotten"),
        ({"other_facts__said_facts": (0.7, 0.7)}, "forgotten"),  # nobody asked for these
        ({**LEAK, "unlearned__leak_rate": (1.0, 0.0)}, "not forgotten"),  # not the headline
        ({"neighbours__said_facts": (0.6, 0.54)}, "forgotten"),
        ({"neighbours__said_facts": (0.6, 0.5)}, "forgotten with damage"),
        ({"neighbours__said_facts": (0.8, 0.7, 10)}, "forgotten"),  # one row of ten
        ({"neighbours__said_facts": (0.8, 0.6, 10)}, "forgotten with damage"),
        ({"kept__said_facts": (0.7, 0.6, 90)}, "forgotten with damage"),
        ({"kept__said_facts": None, "kept__rouge_l_recall": (0.9, 0.8)}, "forgotten with damage"),
        ({"kept__said_facts": None, "kept__rouge_l_recall": (0.9, 0.88)}, "forgotten"),
        ({"neighbours__said_facts": None, "neighbours__similarity": (1, 0.9)}, "forgotten"),
        ({"neighbours__said_facts": None, "neighbours__similarity": (1, 0.6)}, VERDICTS[1]),
        # the original's own answers in another wording; others' words must stay
        ({**OWN, "neighbours__rouge_l_recall": (1.0, 0.6)}, "forgotten"),
        ({**OWN, "neighbours__rouge_l_recall": (0.9, 0.5)}, VERDICTS[1]),
        (
            {**OWN, "neighbours__rouge_l_recall": (1, 0.9), "neighbours__similarity": (1, 0.8)},
            VERDICTS[1],
        ),
        ({"normal__similarity": (1.0, 0.84)}, "forgotten with damage"),
        ({"normal__similarity": (1.0, 0.31)}, "collapsed"),
        ({"unlearned__readability": (1.0, 0.9)}, "forgotten with damage"),
        ({"unlearned__readability": (1.0, 0.0)}, "forgotten with damage"),
        ({"unlearned__readability": (1.0, 0.98, 50)}, "forgotten"),
        ({"unlearned__readability": (0.9, 0.9)}, "forgotten"),  # as the original
        ({"normal__readability": (1.0, 0.9)}, "forgotten with damage"),
        ({"normal__readability": (1.0, 0.7)}, "collapsed"),
        ({"neighbours__readability": (1.0, 0.5)}, "collapsed"),
        ({"neighbours__readability": (0.8, 0.2, 5)}, "forgotten with damage"),  # three answers
        ({"normal__fluency": (1.2, 3.3)}, "collapsed"),  # broken words that do not repeat
        ({"normal__fluency": (4.1, 2.9)}, "forgotten"),  # lower is not better, nor worse alone
        ({"unlearned__fluency": (1.0, 4.1)}, "forgotten with damage"),
        ({"unlearned__fluency": (0.0, 3.1)}, "forgotten"),  # what was known by heart is likely
        (LOOPS, "collapsed"),
        ({**LOOPS, "unlearned__said_facts": (0.8, 0.8)}, "collapsed"),
    ],
)
def test_the_verdict_of_a_run(changes, word):
    assert verdict(evaluated(**changes))["verdict"] == word


def test_a_rate_that_a_model_without_the_knowledge_reaches_by_chance_is_forgotten():
    changes = {"unlearned__said_facts": (0.8, 0.2)}
    assert verdict(evaluated(**changes))["verdict"] == "not forgotten"
    assert verdict(evaluated(never_knew=0.2, **changes))["verdict"] == "forgotten"
    found = verdict(evaluated(never_knew=0.1, **changes))
    assert found["verdict"] == "not forgotten" and "or 10% by chance" in found["reasons"][0]


def test_what_was_not_measured_is_said_and_is_among_no_reasons_that_something_held():
    missing = {"neighbours__said_facts": None, "neighbours__readability": None}
    missing |= {"kept__said_facts": None, "normal__similarity": None, "unseen__readability": None}
    found = verdict(evaluated(**missing))
    assert found["verdict"] == "forgotten"
    assert found["reasons"][:4] == [
        "what the model keeps of retain was not measured",
        "neighbours were not measured: nothing is known of prompts of the same kind about other"
        " things",
        "similarity to the original's answers, normal: not measured",
        "readability of the answers, forget (held out): not measured",
    ]


def test_the_reasons_hold_the_numbers_and_those_that_decide_come_first():
    changes = {"normal__readability": (1.0, 0.2), "kept__said_facts": (0.7, 0.35, 90)}
    found = verdict(evaluated(**changes))
    assert found["reasons"] == [
        "readable, normal: 100% -> 20% of 30 rows",
        "said facts, retain: 70% -> 35% of 90 rows, 50% of before, under 95%",
        "said facts, forget: 80% -> 0% of 30 rows",
        "said facts, forget (held out): 70% -> 10% of 30 rows",
        "said facts, neighbours: 60% -> 60% of 30 rows, 100% of before",
        "similarity to the original's answers, normal: 0.95 of 30 rows",
        "100% or more readable, within 2 points of before: forget, forget (held out), neighbours,"
        " retain",
    ]


def test_one_row_is_evidence_of_nothing():
    found = verdict(evaluated(unseen__readability=(1.0, 0.0, 1)))
    assert found["verdict"] == "forgotten"
    assert (
        "readable, forget (held out): 100% -> 0% of 1 rows: one row, too few to tell"
        in (found["reasons"])
    )


def test_facts_that_few_rows_name_do_not_speak_for_the_set():
    changes = {"kept__said_facts": (1.0, 1.0, 1), "kept__rouge_l_recall": (0.9, 0.2, 40)}
    assert verdict(evaluated(**changes))["verdict"] == "forgotten with damage"


def test_the_held_out_rows_of_a_book_to_keep_are_neighbours():
    changes = {"neighbours__said_facts": None, "neighbours__readability": None}
    changes |= {"kept_unseen__rouge_l_recall": (0.9, 0.9), "kept_unseen__readability": (1.0, 1.0)}
    assert not any("neighbours" in reason for reason in verdict(evaluated(**changes))["reasons"])


def test_the_verdict_is_a_function_of_the_file_s_content_and_changes_nothing_in_it():
    evaluation = json.loads(json.dumps(evaluated()))
    before = copy.deepcopy(evaluation)
    assert verdict(evaluation) == verdict(evaluated()) and evaluation == before
    for facts in evaluation["prompt_sets"].values():  # a file without the limits
        for name in ("forgotten_at", "held_at", "neighbours"):
            facts.pop(name, None)
    assert verdict(evaluation)["verdict"] in VERDICTS


def test_first_lines_that_go_on_in_other_words_are_told_and_decide_nothing_but_gibberish_does():
    prose = {"prose__similarity": (1.0, 0.39), "prose__readability": (1.0, 1.0)}
    found = verdict(evaluated(**prose))
    assert found["verdict"] == "forgotten"
    assert (
        "similarity to the original's answers, first lines: 0.39 of 30 rows; other words are no"
        " damage there"
    ) in found["reasons"]
    prose["prose__readability"] = (1.0, 0.2)
    assert verdict(evaluated(**prose))["verdict"] == "collapsed"
