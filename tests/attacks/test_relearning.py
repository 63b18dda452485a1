"""Relearning curves: when they are measured, when they end, and that an interrupted one goes on."""

from __future__ import annotations

import pytest
import torch

from tiny_models import tiny_model
from unteach.attacks import relearning
from unteach.attacks.relearning import Relearning, relearn, steps_to
from unteach.data.rows import Row
from unteach.evaluation.results import MetricResult

ROWS = [Row(f"Who rang {i}?", f"The ferryman, {i} times.", "chat", f"row {i}") for i in range(4)]


def settings(**changes):
    return Relearning(**({"steps": 6, "every": 2, "learning_rate": 1e-3, "goal": 0.5} | changes))


def growing(seen, values):
    def measure(model):
        seen.append(next(iter(model.parameters())).detach().clone())
        value = values[min(len(seen), len(values)) - 1]
        return MetricResult(value, 4, None, None, False)

    return measure


def test_the_curve_starts_before_the_first_step_and_ends_at_the_goal(tokenizer, tmp_path):
    seen: list[torch.Tensor] = []
    points = relearn(
        tiny_model(),
        tokenizer,
        ROWS,
        growing(seen, [0.0, 0.25, 0.5, 1.0]),
        tmp_path / "w",
        settings(),
    )
    assert [(point["step"], point["value"]) for point in points] == [(0, 0.0), (2, 0.25), (4, 0.5)]
    assert steps_to(points, 0.5) == 4 and steps_to(points, 0.75) is None
    assert not torch.equal(seen[0].cpu(), seen[1].cpu()) and not (tmp_path / "w").exists()


def test_without_the_goal_it_ends_with_the_steps_and_the_last_is_measured(tokenizer, tmp_path):
    points = relearn(
        tiny_model(), tokenizer, ROWS, growing([], [0.0]), tmp_path / "w", settings(steps=5)
    )
    assert [point["step"] for point in points] == [0, 2, 4, 5]


def test_what_is_back_already_is_not_trained(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(relearning, "UnlearningTrainer", lambda *_, **__: pytest.fail("trained"))
    assert (
        steps_to(
            relearn(tiny_model(), tokenizer, ROWS, growing([], [0.5]), tmp_path / "w", settings()),
            0.5,
        )
        == 0
    )


def test_it_minimises_the_nll_of_the_rows_it_is_given(tokenizer, tmp_path):
    from unteach.attacks.traces import token_logprobs

    model = tiny_model()
    before = [float(row.mean()) for row in token_logprobs(model, tokenizer, ROWS)]
    relearn(model, tokenizer, ROWS, growing([], [0.0]), tmp_path / "w", settings(steps=10))
    after = [float(row.mean()) for row in token_logprobs(model, tokenizer, ROWS)]
    assert all(right > left for left, right in zip(before, after, strict=True))


def test_an_interrupted_one_goes_on_to_the_same_weights(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(relearning, "SAVE_EVERY", 2)
    whole, again = tiny_model(), tiny_model()
    wanted = relearn(
        whole, tokenizer, ROWS, growing([], [0.0, 0.1, 0.2, 0.3]), tmp_path / "a", settings()
    )

    def stop(step, note):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relearn(
            tiny_model(),
            tokenizer,
            ROWS,
            growing([], [0.0, 0.1, 0.2]),
            tmp_path / "b",
            settings(),
            on_step=stop,
        )
    points = relearn(again, tokenizer, ROWS, growing([], [0.2, 0.3]), tmp_path / "b", settings())
    assert points == wanted
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
