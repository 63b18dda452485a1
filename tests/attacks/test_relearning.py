"""Relearning: its curves, that it resumes, and what it trains on."""

from __future__ import annotations

import pytest
import torch

from tiny_models import tiny_model
from unteach.attacks import relearning
from unteach.attacks.likelihood import token_logprobs
from unteach.attacks.options import AttackOptions
from unteach.attacks.relearning import public_rows, relearn, steps_to
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.evaluation.results import MetricResult

ROWS = [Row(f"Who rang {i}?", f"The ferryman, {i} times.", "chat", f"row {i}") for i in range(4)]


def run_relearning(model, tokenizer, folder, measure, *, steps=6, **more):
    options = AttackOptions(steps=steps, every=2, learning_rate=1e-3)
    return relearn(model, tokenizer, ROWS, measure, folder, options, **{"goal": 0.5, **more})


def measured(*values, weights=None):
    """A measurement that returns these values in order, then the last again; appends the first
    parameter of the model to `weights`.
    """
    seen = [] if weights is None else weights

    def measure(model):
        seen.append(next(iter(model.parameters())).detach().clone())
        value = values[min(len(seen), len(values)) - 1]
        return MetricResult(value, 4, None, None, False).as_json()

    return measure


def test_the_curve_starts_before_the_first_step_and_ends_at_the_goal(tokenizer, tmp_path):
    seen: list[torch.Tensor] = []
    measure = measured(0.0, 0.25, 0.5, 1.0, weights=seen)
    points = run_relearning(tiny_model(), tokenizer, tmp_path / "w", measure)
    assert [(point["step"], point["value"]) for point in points] == [(0, 0.0), (2, 0.25), (4, 0.5)]
    assert steps_to(points, 0.5) == 4 and steps_to(points, 0.75) is None
    assert not torch.equal(seen[0].cpu(), seen[1].cpu()) and not (tmp_path / "w").exists()


def test_without_the_goal_it_ends_with_the_steps_and_the_last_is_measured(tokenizer, tmp_path):
    points = run_relearning(tiny_model(), tokenizer, tmp_path / "w", measured(0.0), steps=5)
    assert [point["step"] for point in points] == [0, 2, 4, 5]


def test_a_model_at_the_goal_is_not_trained(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(relearning, "UnlearningTrainer", lambda *_, **__: pytest.fail("trained"))
    points = run_relearning(tiny_model(), tokenizer, tmp_path / "w", measured(0.5))
    assert steps_to(points, 0.5) == 0


def test_it_minimises_the_nll_of_the_training_rows(tokenizer, tmp_path):
    model = tiny_model()
    before = [float(row.mean()) for row in token_logprobs(model, tokenizer, ROWS)]
    run_relearning(model, tokenizer, tmp_path / "w", measured(0.0), steps=10)
    after = [float(row.mean()) for row in token_logprobs(model, tokenizer, ROWS)]
    assert all(right > left for left, right in zip(before, after, strict=True))


def test_an_interrupted_one_resumes_to_the_same_weights(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(relearning, "SAVE_EVERY", 2)
    whole, again = tiny_model(), tiny_model()
    values = [0.0, 0.1, 0.2, 0.3]
    wanted = run_relearning(whole, tokenizer, tmp_path / "a", measured(*values))

    def stop(step, note):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure = measured(*values)
        run_relearning(tiny_model(), tokenizer, tmp_path / "b", measure, on_step=stop)
    points = run_relearning(again, tokenizer, tmp_path / "b", measured(*values[2:]))
    assert points == wanted
    pairs = zip(whole.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_without_a_goal_every_step_is_trained_and_the_rows_are_kept(tokenizer, tmp_path):
    value = {**MetricResult(1.0, 2, None, None, False).as_json(), "rows": [1.0, 1.0]}
    points = run_relearning(tiny_model(), tokenizer, tmp_path / "w", lambda _: value, goal=None)
    assert [point["step"] for point in points] == [0, 2, 4, 6]
    assert all(point["rows"] == [1.0, 1.0] for point in points)


def test_an_adapter_learns_the_rows_and_leaves_the_other_weights(tokenizer, tmp_path):
    model = tiny_model()
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    seen = []

    def measure(adapted):
        seen.append(float(token_logprobs(adapted, tokenizer, ROWS)[0].mean()))
        return MetricResult(0.0, 4, None, None, False).as_json()

    run_relearning(model, tokenizer, tmp_path / "w", measure, steps=12, adapter_rank=4)
    assert seen[-1] > seen[0]
    left = {name.replace(".base_layer", ""): weight for name, weight in model.named_parameters()}
    assert all(torch.equal(left[name], weight) for name, weight in kept.items())


def test_public_text_is_running_text_that_a_tokenizer_takes(any_tokenizer):
    rows = public_rows()
    assert len(rows) >= 8 and all(row.kind == "text" for row in rows)
    assert all(encode_row(row, any_tokenizer, None).completion_ids for row in rows)
