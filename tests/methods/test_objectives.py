"""The losses by hand, and what each method uses."""

from __future__ import annotations

import math

import pytest
import torch

from unteach.errors import UserError
from unteach.losses.sequence import (
    Sequences,
    direct_preference,
    negative_preference,
    simple_negative_preference,
    sums_by_sequence,
)
from unteach.losses.statistics import TokenStatistics
from unteach.losses.token import (
    clamped_log_odds,
    gradient_ascent,
    saturation_importance,
    unlikelihood,
    weighted_gradient_ascent,
)
from unteach.losses.vocabulary import (
    adjusted_self_distillation,
    cross_entropy_unlearning,
    logit_margin_flattening,
)
from unteach.methods import METHODS, get_method
from unteach.methods.objective import RoleTokens, objective_terms, step_counts, total_loss
from unteach.models.token_statistics import log_complement, log_probability


def statistics(*probabilities: float, kl: float | None = None) -> TokenStatistics:
    p = torch.tensor(probabilities, dtype=torch.float64)
    return TokenStatistics(p.log(), (1 - p).log(), None if kl is None else torch.full_like(p, kl))


def test_a_step_by_hand():
    """Forget p = 1/2, 1/4; K = 2 mismatch completions of p = 1/2 (one token) and p = 1/4, 1/4 (two
    tokens); retain KL 0.1.

    unlikelihood: (log 2 + log 4/3) / 2; mismatch: (1/2 log 2 + 1/2 * 2 log 4) / (1/2 + 2/2) = (1/2
        + 2) log 2 / (3/2).
    """
    roles = {
        "forget": RoleTokens(statistics(0.5, 0.25), torch.ones(2)),
        "mismatch": RoleTokens(statistics(0.5, 0.25, 0.25), torch.full((3,), 0.5)),
        "retain": RoleTokens(statistics(0.9, kl=0.1), torch.ones(1)),
    }
    counts = {"forget": 2.0, "mismatch": 1.5, "retain": 1.0}
    method = METHODS["unlikelihood_mismatch"]
    loss = total_loss(
        objective_terms(method, roles), {"forget": 1.0, "mismatch": 0.5, "retain": 2.0}, counts
    )
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
    roles = {
        "forget": RoleTokens(statistics(), torch.ones(0)),
        "retain": RoleTokens(statistics(0.5, kl=0.3), torch.ones(1)),
    }
    counts = {"forget": 0.0, "mismatch": 0.0, "retain": 1.0}
    loss = total_loss(
        objective_terms(METHODS["unlikelihood"], roles),
        {"forget": 1.0, "mismatch": 0.0, "retain": 1.0},
        counts,
    )
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
    """d/dz of log p/(1 - p) by the target's logit is 1 for every p; at p = 0.1 and below the loss
    is 0.
    """
    for p, force in ((0.999999, 1.0), (0.5, 1.0), (0.11, 1.0), (0.09, 0.0), (1e-9, 0.0)):
        logits = torch.tensor([[p, 1 - p]], dtype=torch.float64).log().requires_grad_()
        target = torch.tensor([0])
        loss = clamped_log_odds(
            TokenStatistics(log_probability(logits, target), log_complement(logits, target))
        )
        wanted = max(0.0, math.log(p / (1 - p)) - math.log(0.1 / 0.9))
        assert loss.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient[0].tolist() == [pytest.approx(force), pytest.approx(-force)]


def sequences(
    *probabilities: float, reference: float | None = None, length: float = 2.0
) -> Sequences:
    p = torch.tensor(probabilities, dtype=torch.float64)
    return Sequences(
        p.log(),
        torch.full_like(p, length),
        None if reference is None else torch.full_like(p, reference).log(),
    )


def test_sequence_losses_by_hand():
    """p = 1/2, p_ref = 1/4 and beta 1: NPO 2 log(1 + 2); SimNPO of 2 tokens, gamma log 2: r =
    (1/2)^(1/2), 2 log(1 + 2 r).

    DPO with a preferred completion of p = 1/2, p_ref = 1/2 (log ratio 0) against the log ratio log
    2: -log sigmoid(-log 2) = log 3.
    """
    assert negative_preference(
        sequences(0.5, reference=0.25), None, beta=1.0
    ).item() == pytest.approx(2 * math.log(3))
    simple = simple_negative_preference(sequences(0.5), None, beta=1.0, gamma=math.log(2)).item()
    assert simple == pytest.approx(2 * math.log(1 + 2 * math.sqrt(0.5)))
    dpo = direct_preference(sequences(0.5, reference=0.25), sequences(0.5, reference=0.5), beta=1.0)
    assert dpo.item() == pytest.approx(math.log(3))


def test_npo_is_gradient_ascent_on_the_sum_for_a_beta_towards_zero():
    logp = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    loss = negative_preference(
        Sequences(logp, torch.ones(1), torch.tensor([-1.0])), None, beta=1e-6
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient.item() == pytest.approx(1.0, abs=1e-5)


def test_preference_losses_are_finite_far_away_and_refuse_what_is_missing():
    far = Sequences(torch.tensor([-2000.0]), torch.ones(1), torch.tensor([-1.0]))
    near = Sequences(torch.tensor([-1.0]), torch.ones(1), torch.tensor([-2000.0]))
    assert 0 <= negative_preference(far, None, beta=0.1).item() < 1e-6
    assert direct_preference(near, far, beta=0.1).item() == pytest.approx(2 * 1999, rel=1e-6)
    with pytest.raises(ValueError, match="reference's log-probability"):
        negative_preference(sequences(0.5), None, beta=0.1)
    with pytest.raises(ValueError, match="one preferred completion for each"):
        direct_preference(sequences(0.5, reference=0.5), None, beta=0.1)


def test_sums_by_sequence_take_the_numbers_in_their_order_whatever_that_of_the_tokens():
    tokens = TokenStatistics(
        torch.tensor([-1.0, -2.0, -4.0]), reference_logp=torch.tensor([-8.0, -16.0, -32.0])
    )
    found = sums_by_sequence(tokens, torch.tensor([7, 3, 7]))
    assert found.logp.tolist() == [-2.0, -5.0] and found.length.tolist() == [1.0, 2.0]
    assert found.reference_logp.tolist() == [-16.0, -40.0]


def test_weighted_ascent_by_hand_and_its_weights_are_constants():
    """p = 1/4: WGA with beta 1 is -log 4 / 4, SatImp with 1, 1 is -3/16 log 4; the gradient by log
    p is the weight alone.
    """
    p = torch.tensor([0.25], dtype=torch.float64)
    logp = p.log().requires_grad_()
    tokens = TokenStatistics(logp, (1 - p).log())
    for loss, weight in (
        (weighted_gradient_ascent(tokens, beta=1.0), 1 / 4),
        (saturation_importance(tokens, beta=1.0, gamma=1.0), 3 / 16),
    ):
        assert loss.item() == pytest.approx(-weight * math.log(4))
        assert torch.autograd.grad(loss.sum(), logp)[0].item() == pytest.approx(weight)


def test_vocabulary_losses_by_hand():
    """Three tokens, p = 1/2, 1/4, 1/4, the first to be forgotten.

    CE-U: q = 0, 1/2, 1/2, so log 4. UNDIAL from the same reference with gamma log 2: q = 1/3 each,
    so (log 2 + 2 log 4)/3. Margin: logits 2, 0, 1 have the largest 2 and the mean 1, so 1.
    """
    logits, target = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log(), torch.tensor([0])
    assert cross_entropy_unlearning(logits, None, target).item() == pytest.approx(math.log(4))
    found = adjusted_self_distillation(logits, logits, target, gamma=math.log(2)).item()
    assert found == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert logit_margin_flattening(
        torch.tensor([[2.0, 0.0, 1.0]]), None, target
    ).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="reference's distribution"):
        adjusted_self_distillation(logits, None, target, gamma=1.0)


def test_cross_entropy_unlearning_has_the_gradient_of_unlikelihood():
    torch.manual_seed(0)
    logits = (torch.randn(5, 11, dtype=torch.float64) * 4).requires_grad_()
    targets = torch.tensor([0, 3, 10, 5, 5])
    (ours,) = torch.autograd.grad(cross_entropy_unlearning(logits, None, targets).sum(), logits)
    (other,) = torch.autograd.grad(-log_complement(logits, targets).sum(), logits)
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)


def test_a_forget_loss_of_completions_is_divided_by_their_number_and_not_by_tokens():
    """Two completions of 1 and 3 tokens, each with the ratio 1: 2/beta log 2, once."""
    tokens = TokenStatistics(torch.full((4,), -1.0), reference_logp=torch.full((4,), -1.0))
    roles = {"forget": RoleTokens(tokens, torch.ones(4), torch.tensor([0, 1, 1, 1]))}
    batch = {
        "role": torch.zeros(4, dtype=torch.long),
        "weight": torch.ones(4, dtype=torch.float64),
        "offset": torch.tensor([0, 0, 1, 2]),
    }
    counts = step_counts(METHODS["npo"], batch)
    assert counts.tolist() == [2, 0, 0, 0] and step_counts(METHODS["ga"], batch).tolist() == [
        4,
        0,
        0,
        0,
    ]
    method = METHODS["npo"].with_retain(None)
    loss = total_loss(objective_terms(method, roles), {"forget": 1.0}, {"forget": counts[0]})
    assert loss.item() == pytest.approx(20 * math.log(2))


def test_another_retain_term_comes_with_weight_one_and_none_with_zero():
    assert METHODS["rmu"].with_retain("kl").weights == (1.0, 0.0, 1.0)
    assert METHODS["npo"].with_retain(None).weights == (1.0, 0.0, 0.0)
    assert METHODS["rmu"].with_retain("states") is METHODS["rmu"]
