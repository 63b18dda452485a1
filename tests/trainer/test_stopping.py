"""The stop rule, the retain budget, and when a model counts as collapsed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.trainer.stopping import (
    COLLAPSED_STEPS,
    CollapseWatch,
    ForgetGrowth,
    RetainBudget,
    StopRule,
    probe_interval,
)


def rule(**settings):
    return StopRule(**({"target_rate": 0.05, "hold": 2, "min_utility": 0.8} | settings))


def probe(forget_rate, utility=1.0, **more):
    return {"forget_rate": forget_rate, "utility": utility, **more}


def run(stop, *probes, every=10):
    """The steps at which a better probe came, with the stop rule fed until the end."""
    return [
        every * number for number, rates in enumerate(probes) if stop.record(every * number, rates)
    ]


def test_training_stops_only_after_the_rate_has_held():
    stop = rule()
    run(stop, probe(1.0), probe(0.0))
    assert not stop.should_stop
    run(stop, probe(0.5))
    assert stop.held == 0 and not stop.should_stop
    run(stop, probe(0.0), probe(0.05))
    assert stop.should_stop and stop.reason == "forget rate at most 5% in 2 probes in a row"


def test_training_stops_when_utility_falls_under_its_share_of_the_start():
    stop = rule()
    run(stop, probe(1.0, 0.5), probe(1.0, 0.41))
    assert not stop.should_stop
    run(stop, probe(1.0, 0.39), probe(1.0, 0.41), probe(1.0, 0.39))
    assert not stop.should_stop
    run(stop, probe(1.0, 0.3))
    assert (
        stop.reason
        == "utility fell to 60% of its start, under the limit of 80% in 2 probes in a row"
    )


@pytest.mark.parametrize(
    ("rate", "utilities", "reason"),
    [
        (0.0, (0.8, 0.85, 0.9), "forget rate at most 5%"),
        (1.0, (0.6, 0.7, 0.75), "utility fell to 75%"),
    ],
)
def test_while_utility_is_low_and_comes_back_training_goes_on(rate, utilities, reason):
    stop = rule()
    run(stop, probe(1.0), *(probe(rate, utility) for utility in utilities))
    assert not stop.should_stop
    run(stop, probe(rate, utilities[-1]))
    assert stop.reason.startswith(reason)


def test_where_enough_is_kept_nothing_waits_for_the_rest():
    stop = rule()
    run(stop, probe(1.0), probe(0.0, 0.94), probe(0.0, 0.96))
    assert stop.should_stop


def test_utility_is_measured_against_the_first_probe_even_where_that_is_zero():
    stop = rule()
    run(stop, probe(1.0, 0.0), probe(1.0, 0.0))
    assert stop.starts["utility"] > 0 and stop.reason.startswith("utility fell")


WHOLE = {"forget_rate": 0.0, "utility": 1.0, "neighbours": 1.0, "readable": 1.0}


@pytest.mark.parametrize(
    "harm", [{"readable": 0.5}, {"neighbours": 0.7}, {"utility": 0.7}, {"readable": 0.0}]
)
@pytest.mark.parametrize("first", [True, False])
def test_gibberish_and_broken_neighbours_are_never_preferred_at_the_same_forget_rate(harm, first):
    kept = {**WHOLE, "utility": 0.8, "neighbours": 0.8, "readable": 0.9}
    probes = [kept, WHOLE | harm] if first else [WHOLE | harm, kept]
    stop = rule()
    run(stop, WHOLE | {"forget_rate": 1.0}, *probes)
    assert probes[stop.best_step // 10 - 1] is kept


def test_training_stops_when_neighbours_fall_and_goes_on_while_answers_become_readable_again():
    stop = rule()
    run(stop, probe(1.0, neighbours=0.5), *[probe(1.0, neighbours=0.3)] * 2)
    assert stop.reason.startswith("neighbours fell to 60% of its start")
    stop = rule()
    shares = (0.2, 0.5, 0.8)
    run(stop, probe(1.0, readable=1.0), *(probe(0.0, readable=share) for share in shares))
    assert not stop.should_stop, "gibberish alone is no end, and it gets less"
    run(stop, probe(0.0, readable=0.8))
    assert stop.reason.startswith("forget rate at most")


def test_what_the_model_did_not_have_cannot_be_lost():
    stop = rule()
    run(stop, *[probe(1.0, neighbours=0.0, readable=0.0)] * 3)
    assert not stop.should_stop and stop.best_score == 0.0
    assert stop.shares({"utility": 0.5}) == {"utility": 0.5, "neighbours": 1.0, "readable": 1.0}


def test_a_checkpoint_of_an_earlier_version_goes_on_from_its_first_probe():
    stop, again = rule(), rule()
    run(stop, probe(1.0, 0.5))
    state = {**stop.state(), "start_utility": 0.5}
    del state["starts"]
    again.load(state)
    run(again, probe(1.0, 0.3), probe(1.0, 0.3))
    assert again.reason.startswith("utility fell to 60%")


def test_what_is_still_said_counts_as_a_share_of_what_was_known():
    stop = rule()
    run(stop, probe(0.5), probe(0.0, 0.87), probe(0.1, 1.0))
    assert stop.best_step == 10, "a fifth of what was known against 0.13 of what is kept"
    state = stop.state()
    del state["starts"]["forget_rate"]
    again = rule()
    again.load(state)
    assert again.starts == stop.starts


def test_a_difference_of_one_row_is_a_tie_that_goes_to_the_later_probe_and_does_not_add_up():
    stop = rule()
    scores = [probe(0.0, value) for value in (0.95, 0.92, 0.9, 0.99, 0.96)]
    run(stop, probe(1.0), *scores[:2])
    assert stop.best_step == 20, "0.92 is within one row of 0.95"
    stop = rule()
    run(stop, probe(1.0), *scores[:3])
    assert stop.best_step == 20, "0.90 is not, though it is of 0.92"
    stop = rule()
    run(stop, probe(1.0), *scores)
    assert stop.best_step == 50


def test_with_patience_training_stops_when_the_validation_rate_has_stopped_falling():
    """Lows at the start (0.8), the second (0.5) and the fourth probe (0.4); an equal rate is no new
    low.
    """
    stop = rule(patience=2)
    validation = [0.8, 0.5, 0.5, 0.4, 0.4]
    run(stop, *(probe(0.9, validation_rate=rate) for rate in validation))
    assert stop.stale == 1 and not stop.should_stop
    run(stop, probe(0.1, validation_rate=0.6))
    assert stop.reason == "validation rate not under 40% in 2 probes in a row"


def test_patience_counts_from_the_start_and_is_off_by_default():
    never, impatient = rule(), rule(patience=3)
    for stop in (never, impatient):
        run(stop, *(probe(1.0) for _ in range(4)))
    assert impatient.should_stop and not never.should_stop


def test_patience_survives_a_checkpoint():
    stop, again = rule(patience=2), rule(patience=2)
    run(stop, probe(1.0), probe(1.0))
    again.load(json.loads(json.dumps(stop.state())))
    run(again, probe(1.0))
    assert again.should_stop


@pytest.mark.parametrize(
    ("probe_steps", "steps", "every"),
    [(10, 60, 10), (1, 5, 1), (0.125, 48, 6), (0.125, 10, 2), (0.1, 30, 3), (0.5, 1, 1)],
)
def test_a_probe_interval_under_one_is_a_share_of_the_steps(probe_steps, steps, every):
    assert probe_interval(probe_steps, steps) == every


@pytest.mark.parametrize("loss", [0.0, 60.0, -1e9, math.inf, math.nan])
def test_no_loss_is_ever_read(loss):
    with_loss, without = rule(), rule()
    for step, rate in enumerate([1.0, 0.4, 0.0, 0.3, 0.0]):
        better = with_loss.record(step, probe(rate, loss=loss, forget_loss=loss, forget_nll=loss))
        assert better == without.record(step, probe(rate))
    assert (with_loss.reason, with_loss.best_step, with_loss.held) == (
        without.reason,
        without.best_step,
        without.held,
    )


def test_the_best_step_has_the_most_utility_less_forget_rate():
    stop = rule(hold=99)
    assert run(stop, probe(1.0), probe(0.5, 1.0), probe(0.1, 0.9), probe(0.0, 0.7)) == [10, 20]
    assert (stop.best_step, stop.best_score) == (20, pytest.approx(0.8))


def test_of_equally_good_steps_the_later_one_is_best():
    stop = rule(hold=99)
    assert run(stop, probe(1.0), probe(0.0), probe(0.0), probe(0.2), probe(0.0)) == [10, 20, 40]
    assert stop.best_step == 40


def test_utility_above_its_start_earns_nothing():
    stop = rule(hold=99)
    run(stop, probe(1.0, 0.5), probe(0.2, 1.0), probe(0.2, 0.5))
    assert stop.best_step == 20 and stop.best_score == pytest.approx(0.8)


def test_step_0_is_never_the_best():
    stop = rule()
    assert stop.record(0, probe(0.0)) is False
    assert stop.best_step == -1
    assert stop.record(10, probe(0.9, 0.5)) is True


def test_a_probe_without_utility_counts_as_whole():
    stop = rule(hold=1)
    stop.record(0, {"forget_rate": 1.0})
    assert stop.record(10, {"forget_rate": 0.0}) and stop.should_stop and stop.best_score == 1.0


def test_a_rule_that_is_stored_and_loaded_goes_on_the_same():
    probes = [probe(1.0, 0.9), probe(0.3, 0.8), probe(0.0, 0.8), probe(0.0, 0.85)]
    whole, first, second = rule(), rule(), rule()
    run(whole, *probes)
    run(first, *probes[:2])
    second.load(json.loads(json.dumps(first.state())))
    for number in (2, 3):
        second.record(10 * number, probes[number])
    assert second.state() == whole.state()
    assert [entry["step"] for entry in second.history] == [0, 10, 20, 30]


def test_the_state_is_a_copy():
    stop = rule()
    state = stop.state()
    stop.record(0, probe(1.0))
    assert state["history"] == [] and state["starts"] == {}


def test_the_weight_rises_above_the_budget_and_falls_at_it_and_below():
    budget = RetainBudget(0.05, 2.0)
    assert budget.update(0.06) == pytest.approx(2.3)
    assert budget.update(0.05) == pytest.approx(2.3 * 0.95)
    assert budget.update(0.0) == pytest.approx(2.0) == budget.weight
    assert budget.update(0.0) == pytest.approx(2.0 * 0.95)
    assert budget.update(0.0) == pytest.approx(2.0 * 0.95**2)


def test_a_weight_that_has_risen_falls_as_fast_but_slowly_below_its_first_value():
    budget = RetainBudget(0.05, 3.0)
    driven = [budget.update(0.2) for _ in range(20)][-1]
    assert driven == pytest.approx(3 * 1.15**20)
    assert budget.update(0.049) == pytest.approx(driven * 0.95)
    assert budget.update(0.05 * 0.6) == pytest.approx(driven * 0.95 * 0.6**0.2)
    assert budget.update(0.001) == pytest.approx(driven * 0.95 * 0.6**0.2 / 1.15)
    falling = [budget.update(0.001) for _ in range(20)]
    assert falling == sorted(falling, reverse=True) and 3.0 in falling
    assert falling[falling.index(3.0) + 1] == pytest.approx(3 * 0.95)


def test_the_weight_stays_without_a_budget_and_at_zero():
    assert RetainBudget(None, 2.0).update(9.0) == 2.0
    assert RetainBudget(0.05, 0.0).update(9.0) == 0.0


@given(st.lists(st.floats(0, 10), max_size=200), st.floats(0.1, 100))
def test_the_weight_stays_within_its_bounds(divergences, weight):
    budget = RetainBudget(0.05, weight)
    assert all(0.1 <= budget.update(kl) <= 100 for kl in divergences)


def test_the_weight_reaches_both_bounds():
    budget = RetainBudget(0.05, 1.0)
    assert [budget.update(9.0) for _ in range(50)][-1] == 100
    assert [budget.update(0.0) for _ in range(200)][-1] == 0.1


def test_a_first_weight_outside_the_bounds_widens_them():
    low, high = RetainBudget(0.05, 0.05), RetainBudget(0.05, 300.0)
    assert low.update(0.0) == 0.05 and low.update(0.06) == pytest.approx(0.05 * 1.15)
    assert high.update(0.06) == 300.0 and high.update(0.05) == pytest.approx(300 * 0.95)


@pytest.mark.parametrize(
    ("probes", "factors"),
    [
        ([(True, 1.0)] * 6, [2, 4, 8, 16, 16, 16]),
        ([(True, 1.0), (True, 0.9), (True, 0.9), (True, 0.8)], [2, 1, 2, 1]),
        ([(True, 0.9), (True, 0.87), (True, 0.96), (True, 0.95)], [1, 2, 4, 8]),
        ([(True, 1.0), (False, 1.0), (False, 0.9)], [2, 2, 1]),
    ],
    ids=["up to its bound", "down while something is lost", "a row is no loss", "once forgotten"],
)
def test_the_forget_term_grows_while_something_is_found_and_nothing_lost(probes, factors):
    growth = ForgetGrowth(2.0)
    found, before = [], 1.0
    for over, kept in probes:
        growth.update(over=over, kept=kept, before=before)
        found.append(growth.factor)
        before = kept
    assert found == factors


def test_without_growth_the_forget_term_keeps_its_weight():
    growth = ForgetGrowth()
    growth.update(over=True, kept=1.0, before=1.0)
    assert growth.factor == 1.0


def test_a_rule_that_goes_on_keeps_its_own_limits():
    old = StopRule(0.0, 2, 0.8, patience=1)
    old.record(0, probe(1.0))
    new = StopRule(0.1, 3, 0.5, patience=4)
    new.load(old.state())
    assert (new.target_rate, new.hold, new.min_utility, new.patience) == (
        0.1,
        3,
        0.5,
        4,
    ) and new.history == old.history


def test_collapse_is_five_steps_in_a_row_over_the_limit():
    watch = CollapseWatch(3.0)
    highs = [
        watch.reason(step, {"loss": 1.0, "retain_kl": 4.0}) for step in range(1, COLLAPSED_STEPS)
    ]
    assert (
        not any(highs) and not watch.reason(5, {"loss": 1.0, "retain_kl": 2.0}) and watch.count == 0
    )
    reasons = [
        watch.reason(step, {"loss": 1.0, "retain_kl": 4.0})
        for step in range(6, 6 + COLLAPSED_STEPS)
    ]
    assert (
        not any(reasons[:-1])
        and "collapse_kl (3 nats per token) in 5 steps in a row, 4 at step 10" in reasons[-1]
    )


def test_without_a_limit_or_a_retain_term_nothing_counts_as_collapse():
    assert not any(
        CollapseWatch(None).reason(step, {"loss": 1.0, "retain_kl": 99.0}) for step in range(9)
    )
    assert not any(CollapseWatch(1.0).reason(step, {"loss": 1.0}) for step in range(9))


def test_steps_without_retain_rows_neither_count_nor_start_anew():
    watch = CollapseWatch(3.0)
    reasons = [
        watch.reason(step, {"loss": 1.0, **({"retain_kl": 50.0} if step % 2 else {})})
        for step in range(1, 2 * COLLAPSED_STEPS)
    ]
    assert not any(reasons[:-1]) and reasons[-1]
