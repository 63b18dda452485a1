"""Per-token statistics against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.losses.statistics import weighted_sum_and_count
from unteach.models.parts import OutputHead
from unteach.models.token_statistics import (
    forward_kl,
    log_complement,
    log_probability,
    token_statistics,
)


def test_log_probability_and_its_complement_by_hand():
    """Logits log 1, log 2, log 5: p = 1/8, 2/8, 5/8; so log p(2) = log 5/8 and log(1 - p(2)) = log
    3/8.
    """
    logits = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()
    target = torch.tensor([2])
    assert log_probability(logits, target).item() == pytest.approx(math.log(5 / 8))
    assert log_complement(logits, target).item() == pytest.approx(math.log(3 / 8))


def test_forward_kl_by_hand_and_in_the_right_direction():
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3; KL(q ||
    p) would be 3/4 log 3 - log 2.
    """
    p, q = torch.tensor([[1.0, 1.0]]).double().log(), torch.tensor([[1.0, 3.0]]).double().log()
    assert forward_kl(p, q).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert forward_kl(q, p).item() == pytest.approx(0.75 * math.log(3) - math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_of_identical_distributions_is_zero_and_has_no_gradient(dtype):
    logits = torch.randn(5, 1000, dtype=dtype).mul_(20).requires_grad_()
    kl = forward_kl(logits.detach(), logits)
    assert kl.abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    assert gradient.abs().max() < 1e-5


def test_kl_counts_tokens_that_the_reference_never_says_as_nothing():
    reference = torch.tensor([[0.0, float("-inf")]])
    logits = torch.zeros(1, 2, requires_grad=True)
    kl = forward_kl(reference, logits)
    assert kl.item() == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("gap", [1.0, 30.0, 100.0, 3000.0])
def test_complement_is_finite_with_a_bounded_gradient_where_p_rounds_to_one(gap):
    """With two tokens at distance g, log(1 - p) = -softplus(g), and its gradient by the target's
    logit is -p, never beyond -1.
    """
    logits = torch.tensor([[gap, 0.0]], requires_grad=True)
    value = log_complement(logits, torch.tensor([0]))
    assert value.item() == pytest.approx(-gap - math.log1p(math.exp(-gap)), rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient[0, 0].item() == pytest.approx(-1 / (1 + math.exp(-gap)), rel=1e-5)
    naive = torch.log(1 - torch.softmax(logits, -1)[0, 0])
    assert gap < 20 or not torch.isfinite(naive)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(2, 40), st.integers(0, 10_000), st.floats(0.1, 30))
def test_statistics_in_chunks_equal_the_naive_ones(tokens, vocabulary, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 7, generator=generator, dtype=torch.float64).requires_grad_()
    weight = (
        torch.randn(vocabulary, 7, generator=generator, dtype=torch.float64) * scale
    ).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    reference = torch.randn(tokens, 7, generator=generator, dtype=torch.float64)
    old_head = OutputHead(weight.detach() + 0.1)
    found = token_statistics(
        hidden,
        targets,
        OutputHead(weight),
        complement=True,
        reference_hidden=reference,
        reference_head=old_head,
        budget_bytes=vocabulary * 4 * 2,
    )
    logp = (hidden @ weight.T).log_softmax(-1)
    chosen = logp[torch.arange(tokens), targets]
    p = (reference @ old_head.weight.T).softmax(-1)
    kl = (p * ((reference @ old_head.weight.T).log_softmax(-1) - logp)).sum(-1)
    torch.testing.assert_close(found.logp, chosen, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.kl, kl, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad((found.logp * 2 + found.kl).sum(), [hidden, weight])
    naive = torch.autograd.grad((chosen * 2 + kl).sum(), [hidden, weight])
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-9)
    rest = 1 - chosen.exp()
    sure = rest > 1e-6
    torch.testing.assert_close(found.log_complement[sure], rest[sure].log(), rtol=1e-7, atol=1e-7)


def test_logit_scale_bias_and_soft_cap_are_part_of_the_head():
    hidden, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    logits = OutputHead(weight, bias, scale=0.5, softcap=2.0).logits(hidden)
    torch.testing.assert_close(logits, 2 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 2))


def test_logits_of_a_bfloat16_model_are_float32():
    logits = OutputHead(torch.randn(5, 4, dtype=torch.bfloat16)).logits(
        torch.randn(3, 4, dtype=torch.bfloat16)
    )
    assert logits.dtype == torch.float32


def test_a_frozen_head_does_not_follow_training():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    frozen = OutputHead(weight).frozen()
    with torch.no_grad():
        weight.zero_()
    assert frozen.weight.sum() == 4 and not frozen.weight.requires_grad


def test_no_tokens_give_empty_statistics():
    found = token_statistics(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.long),
        OutputHead(torch.zeros(5, 4)),
        complement=True,
    )
    assert found.logp.shape == (0,) and found.log_complement is not None and found.kl is None


def test_sum_and_count_stay_apart():
    value, count = weighted_sum_and_count(
        torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 0.5])
    )
    assert value.item() == 4.0 and count.item() == 2.0
