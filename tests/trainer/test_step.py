"""A step's means: sums and counts over micro-batches and processes, divided once."""

from __future__ import annotations

import pytest
import torch

from unteach.data.packing import PADDING
from unteach.losses.statistics import TokenStatistics
from unteach.methods.objective import RoleTokens
from unteach.trainer.step import StepMeans


def tokens(logp, kl=None, weights=None):
    statistics = TokenStatistics(torch.tensor(logp), kl=None if kl is None else torch.tensor(kl))
    return RoleTokens(
        statistics, torch.ones(len(logp)) if weights is None else torch.tensor(weights)
    )


def test_means_are_over_the_tokens_of_all_micro_batches_not_over_their_means():
    means = StepMeans()
    tree = torch.tensor([[1, 1, 2, PADDING]])
    forget = [{"forget": (torch.tensor(total), torch.tensor(2.0))} for total in (3.0, 5.0)]
    means.add({"retain": tokens([-1.0], kl=[0.2])}, tree, torch.tensor(0.5), forget[0])
    means.add(
        {"retain": tokens([-2.0, -3.0, -4.0], kl=[0.4, 0.4, 0.4])},
        tree,
        torch.tensor(0.25),
        forget[1],
    )
    found = means.take()
    assert found["retain_nll"] == pytest.approx(10 / 4) and found["retain_kl"] == pytest.approx(
        1.4 / 4
    )
    assert found["forget_loss"] == pytest.approx(8 / 4) and found["loss"] == pytest.approx(0.75)
    assert (found["tokens"], found["padded_tokens"]) == (6.0, 8.0)
    assert means.take() == {}, "taken means are cleared"


def test_over_processes_the_sums_are_added_before_they_are_divided():
    means = StepMeans()
    means.add(
        {"forget": tokens([-1.0, -2.0], weights=[1.0, 0.0])},
        torch.tensor([[1]]),
        torch.tensor(1.0),
        {},
    )
    found = means.take(lambda sums: sums + torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert found["forget_nll"] == pytest.approx((1 + 2) / (1 + 1)) and found[
        "loss"
    ] == pytest.approx(3.0)


def test_a_process_without_retain_rows_sends_as_much_as_one_with_some():
    """Tensors of different shapes would abort both, or add one role's sums to another's."""
    sent: list[torch.Tensor] = []

    def taken(roles, extra=None):
        means = StepMeans()
        means.add(roles, torch.tensor([[1]]), torch.tensor(1.0), {})

        def reduce(sums):
            sent.append(sums)
            return sums if extra is None else sums + extra

        return means.take(reduce)

    alone = taken({"forget": tokens([-1.0])})
    both = taken({"forget": tokens([-3.0]), "retain": tokens([-2.0], kl=[0.5])}, extra=sent[0])
    assert sent[0].shape == sent[1].shape and "retain_kl" not in alone
    assert (both["forget_nll"], both["retain_nll"], both["retain_kl"]) == pytest.approx(
        (2.0, 2.0, 0.5)
    )
