"""The losses by hand, and what each method uses."""

from __future__ import annotations

import math

import pytest
import torch

from unteach.errors import UserError
from unteach.objectives import METHODS, RoleTokens, clamped_log_odds, get_method, gradient_ascent, objective_terms, total_loss, unlikelihood
from unteach.tokenwise import TokenStatistics, log_complement, log_probability


def statistics(*probabilities: float, kl: float | None = None) -> TokenStatistics:
    p = torch.tensor(probabilities, dtype=torch.float64)
    return TokenStatistics(p.log(), (1 - p).log(), None if kl is None else torch.full_like(p, kl))


def test_a_step_by_hand():
    """Forget p = 1/2, 1/4; K = 2 mismatch completions of p = 1/2 (one token) and p = 1/4, 1/4 (two tokens); retain KL 0.1.

    unlikelihood: (log 2 + log 4/3) / 2; mismatch: (1/2 log 2 + 1/2 * 2 log 4) / (1/2 + 2/2) = (1/2 + 2) log 2 / (3/2).
    """
    roles = {
        "forget": RoleTokens(statistics(0.5, 0.25), torch.ones(2)),
        "mismatch": RoleTokens(statistics(0.5, 0.25, 0.25), torch.full((3,), 0.5)),
        "retain": RoleTokens(statistics(0.9, kl=0.1), torch.ones(1)),
    }
    counts = {"forget": 2.0, "mismatch": 1.5, "retain": 1.0}
    method = METHODS["unlikelihood_mismatch"]
    loss = total_loss(objective_terms(method, roles), {"forget": 1.0, "mismatch": 0.5, "retain": 2.0}, counts)
    wanted = (math.log(2) + math.log(4 / 3)) / 2 + 0.5 * 2.5 * math.log(2) / 1.5 + 2 * 0.1
    assert loss.item() == pytest.approx(wanted, abs=1e-12)


def test_gradient_ascent_is_the_negative_cross_entropy():
    assert gradient_ascent(statistics(0.25)).item() == pytest.approx(-math.log(4))


def test_unlikelihood_pushes_hardest_where_the_model_is_surest_and_gradient_ascent_hardly_there():
    """d/dz of log p is 1 - p; of -log(1 - p) it is p (both by the target's logit)."""
    for sure in (0.999, 0.5, 0.001):
        logits = torch.tensor([[sure, 1 - sure]]).log().requires_grad_()
        target = torch.tensor([0])
        (ascent,) = torch.autograd.grad(log_probability(logits, target).sum(), logits)
        (unlikely,) = torch.autograd.grad(-log_complement(logits, target).sum(), logits)
        assert ascent[0, 0].item() == pytest.approx(1 - sure, abs=1e-5)
        assert unlikely[0, 0].item() == pytest.approx(sure, abs=1e-5)


def test_unlikelihood_is_bounded_below_by_zero_and_gradient_ascent_is_not():
    forgotten = statistics(1e-30)
    assert 0 <= unlikelihood(forgotten).item() < 1e-12
    assert gradient_ascent(forgotten).item() < -60


def test_a_role_without_tokens_in_the_whole_step_adds_nothing():
    roles = {"forget": RoleTokens(statistics(), torch.ones(0)), "retain": RoleTokens(statistics(0.5, kl=0.3), torch.ones(1))}
    counts = {"forget": 0.0, "mismatch": 0.0, "retain": 1.0}
    loss = total_loss(objective_terms(METHODS["unlikelihood"], roles), {"forget": 1.0, "mismatch": 0.0, "retain": 1.0}, counts)
    assert loss.item() == pytest.approx(0.3)


def test_missing_statistics_are_refused_and_not_taken_as_zero():
    plain = TokenStatistics(torch.zeros(1))
    with pytest.raises(ValueError, match="complement"):
        unlikelihood(plain)
    with pytest.raises(ValueError, match="reference"):
        objective_terms(METHODS["ga"], {"retain": RoleTokens(plain, torch.ones(1))})


def test_an_unknown_method_is_answered_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'ga_mismatch'"):
        get_method("ga_mismach")


def test_the_paper_s_methods_are_there_with_the_paper_s_weights():
    assert METHODS["ga_mismatch"].weights == (0.5, 1.0, 1.0)
    assert METHODS["ga"].mismatch is False and METHODS["ga"].retain == "kl"
    assert METHODS["finetuning"].forget is None and METHODS["finetuning"].retain == "nll"
    for name, method in METHODS.items():
        assert method.source, name
        assert (method.retain is None) == (method.weights[2] == 0)
        assert method.mismatch == (method.weights[1] > 0)


def test_clamped_log_odds_push_with_force_one_until_the_token_is_forgotten():
    """d/dz of log p/(1 - p) by the target's logit is 1 for every p; at p = 0.1 and below the loss is 0."""
    for p, force in ((0.999999, 1.0), (0.5, 1.0), (0.11, 1.0), (0.09, 0.0), (1e-9, 0.0)):
        logits = torch.tensor([[p, 1 - p]], dtype=torch.float64).log().requires_grad_()
        target = torch.tensor([0])
        loss = clamped_log_odds(TokenStatistics(log_probability(logits, target), log_complement(logits, target)))
        wanted = max(0.0, math.log(p / (1 - p)) - math.log(0.1 / 0.9))
        assert loss.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient[0].tolist() == [pytest.approx(force), pytest.approx(-force)]
