"""`method=auto`: the order of trials, the pick, and whole runs on a tiny model."""

from __future__ import annotations

import json
import math

import pytest

from tiny_models import FORGET, RETAIN, SHORT
from unteach import unlearn
from unteach.config.resolve import resolve
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.methods import METHODS
from unteach.models import weights_hash
from unteach.prepare.search import (
    TRIED,
    Trial,
    best_of,
    candidates,
    search,
    untried,
    why,
    with_trial,
)

NAMES = [settings["method"] for settings in TRIED]


def world(answers):
    """An `attempt` that looks results up, `(method, learning rate) -> (forget rate, utility)`, and
    what it was asked.
    """
    asked = []

    def attempt(settings):
        key = (settings["method"], settings["learning_rate"])
        asked.append(key)
        rate, utility = answers.get(key, (1.0, 1.0))
        return Trial(settings, 10, 20, rate, rate, utility, 0.0, 0.1, seconds=1.0)

    return attempt, asked


def first_rate(name: str) -> float:
    """The learning rate of a method's first trial, where the search starts from 1e-4."""
    return float(f"{1e-4 * METHODS[name].rate:.2g}")


def test_each_method_gets_a_trial_then_the_best_two_climb():
    answers = {
        (NAMES[0], 1e-4): (0.5, 1.0),
        (NAMES[0], 3e-4): (0.2, 1.0),
        (NAMES[0], 9e-4): (0.0, 0.5),
        (NAMES[2], 1e-4): (0.6, 1.0),
    }
    attempt, asked = world(answers)
    trials = search(attempt, first_rate, 1e9)
    assert asked[: len(TRIED)] == [(name, first_rate(name)) for name in NAMES]
    assert asked[len(TRIED) : len(TRIED) + 2] == [(NAMES[0], 3e-4), (NAMES[0], 9e-4)]
    assert {name for name, _ in asked[len(TRIED) :]} == {NAMES[0], NAMES[2]}
    assert best_of(trials).settings["learning_rate"] == 3e-4
    assert len(asked) == len(set(asked))


def test_what_forgets_but_keeps_too_little_goes_down():
    attempt, asked = world({(NAMES[0], 1e-4): (0.0, 0.7), (NAMES[0], 3.3e-5): (0.0, 0.99)})
    trials = search(attempt, first_rate, 1e9)
    assert (
        asked[len(TRIED)] == (NAMES[0], 3.3e-5)
        and best_of(trials).settings["learning_rate"] == 3.3e-5
    )


def test_a_search_that_has_found_what_it_wants_ends():
    attempt, asked = world({(name, first_rate(name)): (0.0, 1.0) for name in NAMES})
    assert len(search(attempt, first_rate, 1e9)) == len(TRIED) == len(asked)


def test_what_breaks_goes_down_before_it_goes_up():
    attempt, asked = world({("npo", 1e-4): (0.5, 0.3), ("npo", 3.3e-5): (1.0, 1.0)})
    search(attempt, first_rate, 1e9, candidates=({"method": "npo"},))
    assert asked[:2] == [("npo", 1e-4), ("npo", 3.3e-5)] and asked[2] in [
        ("npo", 9.9e-5),
        ("npo", 1.1e-5),
    ]


def test_the_user_s_options_override_the_trial_s_but_for_method_and_learning_rate():
    trial = {"method": "npo", "learning_rate": 1e-4, "mismatch_completions": 1}
    given = {"method": "auto", "learning_rate": 9.0, "mismatch_completions": 3, "max_steps": 5}
    found = with_trial(resolve(given), trial).training
    assert {name: found[name] for name in given} == {
        "method": "npo",
        "learning_rate": 1e-4,
        "mismatch_completions": 3,
        "max_steps": 5,
    }


def test_what_time_did_not_suffice_for_is_named():
    attempt, _ = world({})
    assert untried(search(attempt, first_rate, 0.5), TRIED) == NAMES[1:]
    assert untried(search(attempt, first_rate, 1e9), TRIED) == []


def test_named_candidates_are_tried_with_what_they_need():
    assert [settings["method"] for settings in candidates("rmu, unlikelihood_mismatch")] == [
        "rmu",
        "unlikelihood_mismatch",
    ]
    assert (
        candidates("unlikelihood_mismatch")[0]["mismatch_weight"] == 0.1
        and candidates(None) == TRIED
    )


def test_a_candidate_may_have_a_wrapper_and_is_a_method_of_its_own():
    plain, wrapped = candidates("unlikelihood, unlikelihood+sam")
    assert wrapped == {**plain, "robust": "sam"}
    rates = {"unlikelihood": 0.9, "unlikelihood+sam": 0.2}

    def attempt(settings):
        name = "+".join([settings["method"], *filter(None, [settings.get("robust")])])
        return Trial(dict(settings), 1, 1, rates[name], rates[name], 1.0, 0.0, 0.1, 1.0)

    trials = search(attempt, lambda _: 1e-4, 2.0, candidates=(plain, wrapped))
    assert [trial.name for trial in trials[:2]] == [
        "unlikelihood at 0.0001",
        "unlikelihood+sam at 0.0001",
    ]
    assert best_of(trials).settings["robust"] == "sam"
    resolved = resolve({"model": "m", "method": "auto", "robust": "relearn"})
    assert with_trial(resolved, wrapped).training["robust"] == "sam"
    assert with_trial(resolved, plain).training["robust"] == "relearn"
    with pytest.raises(UserError, match="unknown robust 'sma'"):
        candidates("npo+sma")
    for wrong, what in (("", "empty name"), ("npo,", "empty name"), ("npo,npo", "'npo' twice")):
        with pytest.raises(UserError, match=what):
            candidates(wrong)


def test_the_default_method_for_the_rows_is_tried_first():
    short = [Row("Who rang the bell?", "The ferryman.")]
    assert candidates(None, short) == ({"method": "counterfactual"}, *TRIED)
    assert candidates(None, [Row("", "Once upon a time.", "text")]) == TRIED
    assert candidates("npo", short) == ({"method": "npo"},)


@pytest.mark.parametrize(("seconds", "count"), [(0.5, 1), (2.0, 2), (3.5, 3)])
def test_time_ends_it_but_one_trial_is_always_made(seconds, count):
    attempt, _ = world({})
    assert len(search(attempt, first_rate, seconds)) == count


def test_learning_rates_stay_within_bounds():
    attempt, asked = world({})
    search(attempt, first_rate, 1e9)
    for name in NAMES:
        rates = [rate for method, rate in asked if method == name]
        assert max(rates) <= 27 * first_rate(name) * 1.05 and math.isclose(
            min(rates), first_rate(name)
        )


def test_a_method_that_breaks_goes_down_from_its_own_start():
    attempt, asked = world(
        {("ga", 1.5e-5): (0.5, 0.3), ("ga", 5e-6): (0.5, 0.5), ("ga", 1.7e-6): (0.5, 0.9)}
    )
    search(attempt, first_rate, 1e9, candidates=({"method": "ga"},))
    assert [rate for _, rate in asked[:3]] == [1.5e-5, 5e-6, 1.7e-6]


def test_time_does_not_run_out_before_one_method_has_a_result():
    asked = []

    def attempt(settings):
        asked.append(settings["method"])
        return trial(
            settings["method"], 0.0, 1.0, seconds=99.0, note="" if len(asked) == 2 else "broke"
        )

    assert len(search(attempt, first_rate, 1.0)) == 2 and asked == NAMES[:2]


def trial(method, rate, utility, **others):
    return Trial(
        {"method": method, "learning_rate": 1e-4},
        10,
        20,
        rate,
        rate,
        utility,
        others.pop("nm", 0.0),
        others.pop("kl", 0.1),
        **others,
    )


def test_near_ties_go_to_the_lower_retain_kl_and_nonsense_counts_against():
    assert (
        best_of([trial("a", 0.0, 0.99, kl=0.3), trial("b", 0.0, 0.98, kl=0.1)]).settings["method"]
        == "b"
    )
    assert best_of([trial("a", 0.0, 1.0, nm=0.5), trial("b", 0.2, 1.0)]).settings["method"] == "b"
    assert (
        best_of([trial("a", 0.0, 1.0, note="broke"), trial("b", 0.9, 0.9)]).settings["method"]
        == "b"
    )
    assert "b at 0.0001" in why([trial("b", 0.0, 1.0), trial("c", 0.5, 0.5)]) and "c at" in why(
        [trial("b", 0.0, 1.0), trial("c", 0.5, 0.5)]
    )


def test_where_no_method_can_be_tried_the_first_reason_is_given():
    with pytest.raises(UserError, match="no method could be tried; rows are missing"):
        best_of([Trial({"method": "a"}, note="rows are missing")])


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_picks_and_says_why_and_ends_as_if_the_method_had_been_named(model, tmp_path, lora):
    result = unlearn(
        model,
        FORGET,
        RETAIN,
        output_dir=str(tmp_path / "auto"),
        method="auto",
        search_steps=2,
        lora=lora,
        **SHORT,
    )
    run = json.loads((tmp_path / "auto" / "run.json").read_text())
    picked = run["search"]["picked"]
    assert run["method"] == picked["method"] in ("counterfactual", *NAMES)
    assert len(run["search"]["trials"]) > len(TRIED)
    assert not [one for one in run["search"]["trials"] if one["note"]]
    assert {cost["stage"] for cost in run["costs"]} >= {"method search", "unlearning"}
    assert not (tmp_path / "auto" / "work" / "trial").exists()
    for name in ("report.md", "report.html"):
        text = (tmp_path / "auto" / name).read_text(encoding="utf-8")
        assert "Choice of the method" in text and picked["method"] in text
    named = unlearn(
        model, FORGET, RETAIN, output_dir=str(tmp_path / "named"), lora=lora, **(SHORT | picked)
    )
    assert weights_hash(named.model) == weights_hash(result.model)


def test_a_search_in_mixed_precision_leaves_the_model_as_it_was(model, tmp_path):
    settings = {"candidates": "npo,simnpo", "search_steps": 1, "bf16": True, **SHORT}
    result = unlearn(
        model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), method="auto", **settings
    )
    found = json.loads((tmp_path / "out" / "run.json").read_text())["search"]
    assert len(found["trials"]) >= 2 and not [one for one in found["trials"] if one["note"]]
    named = unlearn(
        model,
        FORGET,
        RETAIN,
        output_dir=str(tmp_path / "named"),
        bf16=True,
        **(SHORT | found["picked"]),
    )
    assert weights_hash(named.model) == weights_hash(result.model)


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ({}, {"npo": 2.3e-3, "ga": 3.5e-4}),
        ({"learning_rate": 1.25e-5}, {"npo": 1.25e-5, "ga": 1.25e-5}),
    ],
)
def test_trials_start_from_the_rate_that_is_named_or_from_each_method_s_own(
    model, tmp_path, named, wanted
):
    settings = {
        "method": "auto",
        "candidates": "ga,npo",
        "search_steps": 1,
        "search_minutes": 10.0,
        **{k: v for k, v in SHORT.items() if k != "learning_rate"},
    }
    unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), **settings, **named)
    trials = json.loads((tmp_path / "out" / "run.json").read_text())["search"]["trials"]
    assert {
        one["settings"]["method"]: one["settings"]["learning_rate"] for one in trials[:2]
    } == wanted


def test_a_candidate_that_prefers_another_answer_of_the_model_s_own_gets_one(model, tmp_path):
    settings = {"method": "auto", "candidates": "altpo", "search_steps": 1, "search_minutes": 1e-6}
    unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), **settings, **SHORT)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["method"] == "altpo" and not run["search"]["trials"][0]["note"]


def test_a_second_start_makes_no_trial_anew(model, tmp_path, monkeypatch):
    settings = {
        "output_dir": str(tmp_path / "out"),
        "method": "auto",
        "search_steps": 1,
        "search_minutes": 1e-6,
        **SHORT,
    }
    first = unlearn(model, FORGET, RETAIN, **settings)
    found = json.loads((tmp_path / "out" / "run.json").read_text())["search"]
    assert len(found["trials"]) == 1 and found["untried"] == NAMES
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"Not tried, for lack of time: {NAMES[0]}" in report
    monkeypatch.setattr(
        "unteach.prepare.search.SearchContext.train", lambda *_, **__: pytest.fail("tried again")
    )
    assert weights_hash(unlearn(model, FORGET, RETAIN, **settings).model) == weights_hash(
        first.model
    )


def test_a_method_that_breaks_leaves_a_note_and_the_weights_as_they_were(
    model, tmp_path, monkeypatch
):
    broken = ({"method": "ga", "retain_weight": 0.0}, {"method": "unlikelihood"})
    monkeypatch.setattr("unteach.prepare.search.TRIED", broken)
    monkeypatch.setattr("unteach.prepare.search.method_for", lambda rows: ("ga", ""))

    def refuse(config, *_):
        if config.method == "ga":
            raise UserError("nothing to ascend")

    monkeypatch.setattr("unteach.trainer.trainer.check_rows", refuse)
    unlearn(
        model,
        FORGET,
        RETAIN,
        output_dir=str(tmp_path / "out"),
        method="auto",
        search_steps=1,
        search_minutes=1e-3,
        **SHORT,
    )
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (
        run["search"]["trials"][0]["note"] == "nothing to ascend"
        and run["method"] == "unlikelihood"
    )
    assert "nothing to ascend" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mismatch_weight": 0.5}, "'mismatch_weight' belongs to one method"),
        ({"search_minutes": 0.0}, "must be positive"),
        ({"search_steps": 0}, "must be positive"),
        ({"candidates": "unlikelihood, nqo"}, "did you mean 'npo'"),
        ({"candidates": "task_vector"}, "a trial says nothing of it"),
        ({"method": "npo", "candidates": "npo"}, "'candidates' is for method 'auto'"),
    ],
)
def test_options_that_do_not_go_with_it(model, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        unlearn(
            model,
            FORGET,
            RETAIN,
            output_dir=str(tmp_path / "out"),
            **({"method": "auto"} | SHORT | given),
        )
