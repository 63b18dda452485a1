"""Attacks on the weights: rounding against the formulas, and relearning curves."""

from __future__ import annotations

import builtins

import pytest
import torch

from tiny_models import tiny_model
from unteach.attacks import weights
from unteach.attacks.likelihood import token_logprobs
from unteach.attacks.options import AttackOptions
from unteach.attacks.weights import (
    GROUP,
    NothingToRound,
    group_size,
    missing_torchao,
    quantize,
    relearn,
    steps_to,
)
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.results import MetricResult


def linear_layers(model):
    head = model.get_output_embeddings()
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def rounded_to_4_bits(weight, size):
    """Sixteen steps from the least to the largest of each group of weights, zero among them."""
    groups = weight.reshape(weight.shape[0], -1, size)
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-8 - (low / scale).round()).clamp(-8, 7)
    return (((groups / scale).round() + zero).clamp(-8, 7) - zero).mul(scale).reshape(weight.shape)


def test_eight_bits_are_the_nearest_of_255_steps_of_each_row():
    """One scale a row, its largest weight at 127.5 steps: each weight moves by half a step at most,
    onto a whole number of steps.
    """
    model = tiny_model()
    before = linear_layers(model)
    for name, rounded in linear_layers(quantize(model, 8)).items():
        weight = before[name].double()
        scale = weight.abs().amax(1, keepdim=True) / 127.5
        steps = rounded.double() / scale
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert ((rounded.double() - weight).abs() / scale).max() <= 0.5 + 1e-3
        assert not torch.equal(rounded, before[name])


def test_four_bits_are_sixteen_steps_of_each_group():
    model = tiny_model()
    before = linear_layers(model)
    for name, rounded in linear_layers(quantize(model, 4)).items():
        wanted = rounded_to_4_bits(before[name].double(), GROUP)
        torch.testing.assert_close(rounded.double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_embedding_and_output_head_stay_as_they_are(bits):
    model = tiny_model()
    kept = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [layer.weight.detach().clone() for layer in kept]
    quantize(model, bits)
    for layer, weight in zip(kept, before, strict=True):
        assert torch.equal(layer.weight, weight)


def test_four_bits_leave_at_most_sixteen_values_in_a_group():
    for weight in linear_layers(quantize(tiny_model(), 4)).values():
        assert all(len(group.unique()) <= 16 for group in weight.reshape(-1, GROUP))


def test_a_rounded_model_is_a_plain_model_that_generates():
    model = quantize(tiny_model(), 4)
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())
    ids = torch.tensor([[5, 6]])
    made = model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert made.shape == (1, 4)


def test_a_group_divides_the_row():
    assert [group_size(length) for length in (64, 576, 48, 20, 7)] == [32, 32, 16, 4, 1]


def test_without_torchao_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("torchao"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "unteach[quantization]" in missing_torchao()
    with pytest.raises(UserError, match="torchao is not installed"):
        quantize(tiny_model(), 4)


def test_a_model_without_linear_layers_says_so():
    import transformers

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 32}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    with pytest.raises(NothingToRound, match="no linear layers"):
        quantize(model, 8)


ROWS = [Row(f"Who rang {i}?", f"The ferryman, {i} times.", "chat", f"row {i}") for i in range(4)]


def run_relearning(model, tokenizer, folder, measure, *, steps=6, on_step=None):
    options = AttackOptions(steps=steps, every=2, learning_rate=1e-3)
    return relearn(model, tokenizer, ROWS, measure, folder, options, goal=0.5, on_step=on_step)


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
    monkeypatch.setattr(weights, "UnlearningTrainer", lambda *_, **__: pytest.fail("trained"))
    points = run_relearning(tiny_model(), tokenizer, tmp_path / "w", measured(0.5))
    assert steps_to(points, 0.5) == 0


def test_it_minimises_the_nll_of_the_training_rows(tokenizer, tmp_path):
    model = tiny_model()
    before = [float(row.mean()) for row in token_logprobs(model, tokenizer, ROWS)]
    run_relearning(model, tokenizer, tmp_path / "w", measured(0.0), steps=10)
    after = [float(row.mean()) for row in token_logprobs(model, tokenizer, ROWS)]
    assert all(right > left for left, right in zip(before, after, strict=True))


def test_an_interrupted_one_resumes_to_the_same_weights(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SAVE_EVERY", 2)
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
