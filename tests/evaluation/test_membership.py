"""Six membership attacks, by hand and against float64 loops of one position at a time."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

import naive
from tiny_models import FAMILIES, tiny_model
from unteach.evaluation.membership import (
    ATTACKS,
    Evidence,
    attack_scores,
    auc,
    auc_interval,
    collect_evidence,
    gradient_norms,
    min_k,
    min_k_plus_plus,
    token_moments,
    vocabulary_moments,
)

PROMPTS = [[5, 9, 31], [11], [77, 78], [3, 4]]
COMPLETIONS = [[7, 400, 2, 8], [90], [], [17, 18, 19, 20, 21, 22, 23]]


def test_auc_by_hand():
    assert auc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auc([1.0, 2.0], [3.0, 4.0]) == 0.0
    assert auc([1.0, 1.0], [1.0, 1.0]) == 0.5, "ties count half"
    assert auc([2.0, 1.0], [1.0, 0.0]) == (1 + 1 + 0.5 + 1) / 4
    assert auc([-math.inf, 0.0], [-math.inf]) == 0.75


def test_auc_is_every_pair_compared():
    draw = np.random.default_rng(0)
    members, others = draw.integers(0, 6, 23), draw.integers(0, 6, 17)
    wanted = np.mean([(a > b) + 0.5 * (a == b) for a in members for b in others])
    assert auc(members, others) == pytest.approx(wanted, abs=1e-12)
    low, high = auc_interval(members, others)
    assert 0 <= low < auc(members, others) < high <= 1
    assert (low, high) == auc_interval(members, others), "the seed is fixed"
    assert auc_interval([1.0], others) == (None, None)


def test_min_k_takes_the_lowest_share_and_at_least_one_token():
    tokens = [-1.0, -4.0, -2.0, -3.0, -5.0]
    assert min_k(tokens, 0.4) == -4.5
    assert min_k(tokens, 1.0) == -3.0
    assert min_k(tokens, 0.01) == -5.0 and min_k([-7.0], 0.2) == -7.0


def test_a_share_that_floating_point_writes_a_little_short_still_counts_whole_tokens():
    """0.29 * 100 is 28.999999999999996: 29 tokens, one of -100, the others <= 0."""
    tokens = -np.arange(100.0)
    assert min_k(tokens, 0.29) == pytest.approx(-np.arange(71, 100).mean())


def test_min_k_plus_plus_by_hand():
    """Standardised: (-1 + 2) / 1 = 1, (-4 + 2) / 0.5 = -4, (-3 + 2) / 2 = -0.5; the lowest two
    thirds: (-4 - 0.5) / 2.
    """
    assert min_k_plus_plus([-1.0, -4.0, -3.0], [-2.0] * 3, [1.0, 0.5, 2.0], 2 / 3) == -2.25


def test_min_k_plus_plus_where_every_token_is_equally_likely():
    assert min_k_plus_plus([-2.0], [-2.0], [0.0], 1.0) == 0.0
    assert min_k_plus_plus([-300.0], [0.0], [0.0], 1.0) == -math.inf


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: auc([], [1.0]), "member_scores"),
        (lambda: auc([1.0], [math.nan]), "nonmember_scores"),
        (lambda: auc([[1.0]], [1.0]), "member_scores"),
        (lambda: min_k([], 0.2), "token_logprobs"),
        (lambda: min_k([math.nan], 0.2), "token_logprobs"),
        (lambda: min_k([-1.0], 0), "k is 0"),
        (lambda: min_k([-1.0], 1.5), "k is 1.5"),
        (lambda: min_k([-1.0], math.nan), "k is nan"),
        (lambda: min_k_plus_plus([-1.0], [-1.0, -1.0], [1.0], 0.5), "mean has 2"),
        (lambda: min_k_plus_plus([-1.0], [-1.0], [1.0, 1.0], 0.5), "std has 2"),
        (lambda: min_k_plus_plus([-1.0], [-1.0], [-1.0], 0.5), "negative"),
    ],
)
def test_empty_nan_and_ill_fitting_inputs_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_every_attack_scores_what_is_likelier_known_higher():
    text = "the grey cat slept on the sacks"
    known = Evidence(
        np.array([-0.1, -0.2]), np.array([-1.0, -1.0]), np.array([1.0, 1.0]), text, 3.0, 0.1
    )
    unknown = Evidence(
        np.array([-5.0, -6.0]), np.array([-1.0, -1.0]), np.array([1.0, 1.0]), text, 3.0, 9.0
    )
    assert len(ATTACKS) == 6
    for name, (high, low) in attack_scores([known, unknown]).items():
        assert high > low, name


def test_the_share_of_tokens_is_that_of_the_paper_of_min_k_unless_given():
    """MUSE has another one, and hands it over."""
    row = Evidence(-np.arange(1.0, 11.0), np.zeros(10), np.ones(10))
    assert min_k(row.logp) == -9.5
    assert attack_scores([row])["min_k"] == [-9.5]
    assert attack_scores([row], k=0.4)["min_k"] == [-8.5]
    assert attack_scores([row])["min_k_plus_plus"] == [-9.5]


def test_the_simple_attacks_by_hand():
    row = Evidence(
        np.array([-1.0, -3.0]), np.array([-2.0, -2.0]), np.array([1.0, 1.0]), "abc", 5.0, 0.25
    )
    assert attack_scores([row])["loss"][0] == -2.0
    assert attack_scores([row])["zlib"][0] == -2.0 / len(zlib.compress(b"abc"))
    assert attack_scores([row])["reference"][0] == 3.0
    assert attack_scores([row])["gradient_norm"][0] == -0.25
    bare = Evidence(row.logp, row.mean, row.std)
    assert (
        attack_scores([bare])["reference"][0] is None
        and attack_scores([bare])["gradient_norm"][0] is None
    )


def test_vocabulary_moments_by_hand():
    """p = (1/2, 1/4, 1/4): mean of log p under p is -1.5 log 2, deviation 0.5 log 2. Uniform and
    certain ones have deviation 0.
    """
    mean, std = vocabulary_moments(torch.tensor([[0.5, 0.25, 0.25]]).double().log())
    assert (mean.item(), std.item()) == pytest.approx((-1.5 * math.log(2), 0.5 * math.log(2)))
    mean, std = vocabulary_moments(
        torch.tensor([[0.0, 0.0, 0.0, 0.0], [900.0, 0.0, 0.0, -math.inf]])
    )
    assert mean.tolist() == pytest.approx([-math.log(4), 0.0]) and std.tolist() == pytest.approx(
        [0.0, 0.0], abs=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_in_ragged_batches_and_chunks_match_one_position_at_a_time(family):
    model = tiny_model(family, dtype=torch.float64)
    for settings in ({}, {"tokens_per_batch": 8, "budget_bytes": 512 * 4 * 2}):
        found = token_moments(model, PROMPTS, COMPLETIONS, **settings)
        assert found[2] is None
        for prompt, completion, row in zip(PROMPTS, COMPLETIONS, found, strict=True):
            if row is None:
                continue
            with torch.no_grad():
                steps = naive.distributions(model, prompt, completion)
            for place, (step, token) in enumerate(zip(steps, completion, strict=True)):
                mean = (step.exp() * step).sum()
                std = (step.exp() * step.square()).sum().sub(mean.square()).sqrt()
                wanted = [step[token].item(), mean.item(), std.item()]
                assert [float(part[place]) for part in row] == pytest.approx(
                    wanted, rel=1e-6, abs=1e-9
                )


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_gradient_norms_match_the_backward_pass_of_one_row(family):
    model = tiny_model(family, dtype=torch.float64)
    found = gradient_norms(model, PROMPTS, COMPLETIONS)
    assert found[2] is None
    for prompt, completion, norm in zip(PROMPTS, COMPLETIONS, found, strict=True):
        if norm is None:
            continue
        model.zero_grad()
        (naive.nll(model, prompt, completion) / len(completion)).backward()
        wanted = (
            sum(
                weight.grad.square().sum()
                for weight in model.parameters()
                if weight.grad is not None
            )
            ** 0.5
        )
        assert norm == pytest.approx(float(wanted), rel=1e-5)


def test_gradient_norms_leave_the_model_as_it_was_and_work_without_gradients_around():
    model = tiny_model("gpt_neox")
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    with torch.no_grad():
        norms = gradient_norms(model, PROMPTS, COMPLETIONS)
        assert norms == gradient_norms(model, PROMPTS, COMPLETIONS), "dropout is off"
    assert (
        model.training
        and not first.requires_grad
        and all(weight.grad is None for weight in model.parameters())
    )


def test_evidence_holds_what_all_six_attacks_need_and_a_row_without_tokens_is_named():
    model = tiny_model()
    prompts, completions = PROMPTS[:2], COMPLETIONS[:2]
    rows = collect_evidence(model, prompts, completions, ["a b", "c"], reference_losses=[1.0, 2.0])
    assert all(None not in scores for scores in attack_scores(rows).values())
    with pytest.raises(ValueError, match="completions has no tokens at row 2"):
        collect_evidence(model, PROMPTS, COMPLETIONS, [""] * 4, gradients=False)
