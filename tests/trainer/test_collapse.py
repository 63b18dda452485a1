"""When a model counts as beyond saving."""

from __future__ import annotations

from unteach.trainer.collapse import STEPS_IN_A_ROW, CollapseWatch


def test_collapse_is_five_steps_in_a_row_over_the_limit():
    watch = CollapseWatch(3.0)
    highs = [
        watch.reason(step, {"loss": 1.0, "retain_kl": 4.0}) for step in range(1, STEPS_IN_A_ROW)
    ]
    assert (
        not any(highs) and not watch.reason(5, {"loss": 1.0, "retain_kl": 2.0}) and watch.count == 0
    )
    reasons = [
        watch.reason(step, {"loss": 1.0, "retain_kl": 4.0}) for step in range(6, 6 + STEPS_IN_A_ROW)
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
        for step in range(1, 2 * STEPS_IN_A_ROW)
    ]
    assert not any(reasons[:-1]) and reasons[-1]
