"""One pass over blocks of logits against the plain formulas, in value and gradient."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.models import fused_statistics
from unteach.models.parts import OutputHead
from unteach.models.token_statistics import (
    forward_kl,
    log_complement,
    log_probability,
    token_statistics,
)

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "soft-capped": {"softcap": 3.0},
    "scaled and soft-capped": {"scale": 1.7, "softcap": 2.0},
}


def problem(
    seed: int,
    tokens: int,
    referenced: int,
    vocabulary: int,
    dtype: torch.dtype = torch.float64,
    **head: Any,
) -> dict[str, Any]:
    """Random states, targets and heads; the reference's states belong to the last `referenced`
    tokens.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    hidden, weight, bias = normal(tokens, 5), normal(vocabulary, 5), normal(vocabulary)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    return {
        "leaves": leaves,
        "targets": torch.randint(vocabulary, (tokens,), generator=draw),
        "head": OutputHead(weight, bias, **head),
        "reference_hidden": normal(referenced, 5) if referenced else None,
        "reference_head": OutputHead(normal(vocabulary, 5), normal(vocabulary), **head),
        "upstream": normal(3, tokens),
    }


def plain(some: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log p, log(1 - p), KL of the last tokens) by their formulas, on all logits at once."""
    logits = some["head"].logits(some["leaves"][0])
    states = some["reference_hidden"]
    kl = logits.new_zeros(0)
    if states is not None:
        kl = forward_kl(some["reference_head"].logits(states), logits[len(logits) - len(states) :])
    return log_probability(logits, some["targets"]), log_complement(logits, some["targets"]), kl


def fused(
    some: dict[str, Any], budget_bytes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same from `token_statistics`."""
    found = token_statistics(
        some["leaves"][0],
        some["targets"],
        some["head"],
        complement=True,
        reference_hidden=some["reference_hidden"],
        reference_head=some["reference_head"],
        budget_bytes=budget_bytes,
    )
    assert found.log_complement is not None
    return (
        found.logp,
        found.log_complement,
        found.logp.new_zeros(0) if found.kl is None else found.kl,
    )


def weighted(values: tuple[torch.Tensor, ...], upstream: torch.Tensor) -> torch.Tensor:
    """A sum whose gradient by each value is another random number."""
    return sum(
        (value * weights[: len(value)]).sum()
        for value, weights in zip(values, upstream, strict=True)
    )


@pytest.mark.parametrize("block", [1, 7, 64], ids=lambda block: f"blocks of {block}")
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 9999),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(2, 40),
    st.sampled_from([1, 700, 10**6]),
)
def test_value_and_gradient_equal_the_formulas_for_any_blocks_and_budget(
    block, head, seed, tokens, referenced, vocabulary, budget
):
    some = problem(seed, tokens, min(tokens, referenced), vocabulary, **head)
    before, fused_statistics.CPU_BLOCK = fused_statistics.CPU_BLOCK, block
    try:
        found = fused(some, budget)
        ours = torch.autograd.grad(weighted(found, some["upstream"]), some["leaves"])
    finally:
        fused_statistics.CPU_BLOCK = before
    wanted = plain(some)
    naive = torch.autograd.grad(weighted(wanted, some["upstream"]), some["leaves"])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-9)


def test_a_vocabulary_of_many_real_blocks_in_float32():
    some = problem(3, 40, 15, 3 * fused_statistics.CPU_BLOCK + 17, torch.float32)
    found, wanted = fused(some, 10**9), plain(some)
    ours, naive = (
        torch.autograd.grad(weighted(values, some["upstream"]), some["leaves"])
        for values in (found, wanted)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [10**9, 50_000], ids=["logits kept", "logits made again"])
@pytest.mark.parametrize(
    "vocabulary", [90, 2 * fused_statistics.CPU_BLOCK + 5], ids=["one block", "three blocks"]
)
def test_under_bfloat16_autocast_the_gradients_are_those_of_autocast_itself(vocabulary, budget):
    some = problem(5, 12, 5, vocabulary, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = fused(some, budget), plain(some)
    assert all(value.dtype == torch.float32 for value in found)
    ours, naive = (
        torch.autograd.grad(weighted(values, some["upstream"]), some["leaves"])
        for values in (found, wanted)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours, naive, rtol=0.05, atol=0.05)


def test_a_second_backward_makes_the_logits_again():
    some = problem(7, 6, 2, 30)
    total = weighted(fused(some, 10**9), some["upstream"])
    first = torch.autograd.grad(total, some["leaves"], retain_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(total, some["leaves"]), first, rtol=1e-12, atol=1e-12
    )


def test_a_frozen_head_gets_no_gradient():
    some = problem(9, 6, 2, 30)
    head = OutputHead(some["head"].weight.detach(), some["head"].bias.detach())
    found = token_statistics(some["leaves"][0], some["targets"], head)
    (gradient,) = torch.autograd.grad(found.logp.sum(), some["leaves"][:1])
    (wanted,) = torch.autograd.grad(
        log_probability(head.logits(some["leaves"][0]), some["targets"]).sum(), some["leaves"][:1]
    )
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trained", [True, False])
def test_nothing_of_a_pass_outlives_its_gradient(trained):
    def held() -> int:
        gc.collect()
        return sum(
            isinstance(thing, torch.Tensor) and thing.shape == (301, 5)
            for thing in gc.get_objects()
        )

    some = problem(0, 7, 3, 301, torch.float32)
    counts = []
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = [values.sum() for values in fused(some, 2**30)]
        if trained:
            torch.stack(found).sum().backward()
        del found
        counts.append(held())
    assert (
        counts[1] == counts[2]
    )  # the heads rounded to 16 bits, and what they were multiplied with
