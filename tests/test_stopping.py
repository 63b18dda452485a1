"""Stopping on behaviour, holding the retain KL."""

from __future__ import annotations

import pytest

from unteach.stopping import RetainBudget, StopRule


def rule(**settings) -> StopRule:
    return StopRule(**({"target_rate": 0.1, "hold": 2, "min_utility": 0.8} | settings))


def feed(stop: StopRule, *probes: tuple[float, float]) -> list[bool]:
    return [stop.record(step, {"forget_rate": rate, "utility": utility}) for step, (rate, utility) in enumerate(probes)]


def test_it_stops_only_when_the_target_has_held():
    stop = rule()
    feed(stop, (1, 1), (0.1, 1), (0.2, 1), (0.05, 1))
    assert not stop.should_stop
    stop.record(4, {"forget_rate": 0.0, "utility": 1.0})
    assert stop.should_stop and "2 probes in a row" in stop.reason


def test_it_stops_when_utility_has_fallen_under_its_share_of_the_start():
    stop = rule()
    feed(stop, (1, 0.5), (0.9, 0.41))
    assert not stop.should_stop
    stop.record(2, {"forget_rate": 0.9, "utility": 0.39})
    assert "utility fell to 78% of its start" in stop.reason


def test_the_best_probe_is_a_trade_off_later_of_equals_and_never_the_start():
    stop = rule(hold=99)
    assert feed(stop, (0, 1), (0.5, 1), (0.2, 0.9), (0.0, 0.5), (0.3, 1.0)) == [False, True, True, False, True]
    assert stop.best_step == 4


def test_no_loss_is_looked_at():
    stop = rule(hold=1)
    stop.record(0, {"forget_rate": 1.0, "utility": 1.0, "forget_nll": 60.0})
    assert not stop.should_stop


def test_its_state_is_plain_data_that_gives_it_back():
    stop = rule()
    feed(stop, (1, 1), (0.05, 1))
    again = rule()
    again.load(stop.state())
    assert again == stop
    again.record(2, {"forget_rate": 0.0, "utility": 1.0})
    assert again.should_stop


def test_the_weight_rises_above_the_budget_falls_below_it_and_stays_in_bounds():
    budget = RetainBudget(0.05, 1.0)
    assert budget.update(0.06) == pytest.approx(1.15)
    assert budget.update(0.04) == pytest.approx(1.15 * 0.95)
    for _ in range(200):
        budget.update(1.0)
    assert budget.weight == budget.most
    for _ in range(400):
        budget.update(0.0)
    assert budget.weight == budget.least


def test_without_a_budget_or_a_retain_term_the_weight_stays():
    assert RetainBudget(None, 1.0).update(9.0) == 1.0
    assert RetainBudget(0.05, 0.0).update(9.0) == 0.0
