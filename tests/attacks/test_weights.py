"""Attacks on the weights: rounding, pruning and merging against the formulas."""

from __future__ import annotations

import builtins
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_models import tiny_model
from unteach.attacks.attack import LeftOut, Trial
from unteach.attacks.weights import (
    GROUP,
    NothingToRound,
    group_size,
    merge_back,
    missing_torchao,
    prune,
    quantize,
)
from unteach.errors import UserError
from unteach.run.folder import QuantizedWeights


def test_on_quantised_weights_an_attack_on_weights_is_left_out_and_the_others_go_on():
    def load(role, exact):
        raise QuantizedWeights("quantised weights")

    target: Any = SimpleNamespace(folder=SimpleNamespace(load_model=load))
    with pytest.raises(LeftOut, match="quantised weights"):
        Trial(target, "pruning_10", "original", {}, lambda *_: None).copy()


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


def test_pruning_takes_the_smallest_share_of_each_layer():
    model = tiny_model()
    before = linear_layers(model)
    head = model.get_output_embeddings().weight.clone()
    for name, pruned in linear_layers(prune(model, 0.25)).items():
        gone = pruned == 0
        assert gone.float().mean() == pytest.approx(0.25, abs=0.01)
        assert before[name].abs()[gone].max() <= before[name].abs()[~gone].min()
        assert torch.equal(pruned[~gone], before[name][~gone])
    assert torch.equal(model.get_output_embeddings().weight, head)


def test_merging_back_moves_every_weight_that_share_of_the_way():
    model, original = tiny_model(seed=1), tiny_model(seed=2)
    wanted = [
        0.75 * one.detach() + 0.25 * other.detach()
        for one, other in zip(model.parameters(), original.parameters(), strict=True)
    ]
    for weight, value in zip(merge_back(model, original, 0.25).parameters(), wanted, strict=True):
        torch.testing.assert_close(weight.detach(), value)
