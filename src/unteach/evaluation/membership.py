"""Six membership-inference attacks: scores of rows, the statistics that they use, and the AUC of
two sets of rows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.evaluation.likelihood import Tokens, values_by_row
from unteach.evaluation.results import Floats, bootstrap_interval, checked_array
from unteach.models.token_statistics import LOGITS_BUDGET_BYTES, log_probability, token_statistics

DEFAULT_K = 0.2
"""Share of tokens for Min-K% and Min-K%++: 20%, as in Min-K%'s paper (arXiv 2310.16789). MUSE
has its own (`benchmarks.muse.MUSE_K`).
"""


@dataclass(frozen=True)
class Evidence:
    """Statistics of one row; arrays have shape (tokens,), of the completion's tokens, in nats.

    Args:
        logp: log p of each token.
        mean, std: mean and standard deviation of log p over the vocabulary, under p, at each
            token's position.
        text: the completion's text.
        reference_loss: mean NLL of the same tokens under a reference model.
        gradient_norm: global L2 norm of the gradient of the row's mean NLL.
    """

    logp: Floats
    mean: Floats
    std: Floats
    text: str = ""
    reference_loss: float | None = None
    gradient_norm: float | None = None


def _auc(members: Floats, others: Floats, axis: int = -1) -> Any:
    """Mann-Whitney's U over the number of pairs, along the last axis."""
    from scipy.stats import rankdata

    n, m = members.shape[axis], others.shape[axis]
    ranks = rankdata(np.concatenate([members, others], axis), axis=axis)
    return (ranks[..., :n].sum(axis) - n * (n + 1) / 2) / (n * m)


def auc(member_scores: Any, nonmember_scores: Any) -> float:
    """Area under the ROC curve: the probability that a member scores above a non-member, ties
    counting half.

    By ranks, as Min-K%++ may give infinite scores, which scikit-learn's `roc_auc_score` refuses.

    >>> auc([2.0, 1.0], [1.0, 0.0])
    0.875

    Args:
        member_scores, nonmember_scores: shape (N,) and (M,); higher means more likely a member.

    Raises:
        ValueError: naming the argument that is empty, not one row, or holds NaN.
    """
    members = checked_array(member_scores, "member_scores", 1)
    return float(_auc(members, checked_array(nonmember_scores, "nonmember_scores", 1)))


def auc_interval(member_scores: Any, nonmember_scores: Any) -> tuple[float | None, float | None]:
    """95% percentile bootstrap interval of `auc`, both sets of rows resampled (1,000 times, fixed
    seed); `None` twice where either is a single row.
    """
    members = checked_array(member_scores, "member_scores", 1)
    others = checked_array(nonmember_scores, "nonmember_scores", 1)
    return bootstrap_interval(members, others, statistic=_auc, resamples=1000)


def _lowest(values: Floats, k: float) -> float:
    """Mean of the lowest share `k` of the values, at least of one."""
    if not 0 < k <= 1:  # false for NaN too
        raise ValueError(f"k is {k}, it must be a share above 0 and at most 1")
    count = max(1, math.floor(k * len(values) + 1e-9))
    return float(np.sort(values)[:count].mean())


def min_k(token_logprobs: Any, k: float = DEFAULT_K) -> float:
    """Min-K% (Shi et al. 2024, arXiv 2310.16789): mean of the lowest share `k` of the tokens'
    log-probabilities, at least of one token.

    >>> min_k([-1.0, -2.0, -3.0, -4.0], 0.5)
    -3.5

    Args:
        token_logprobs: shape (tokens,).
        k (`float`): a share above 0 and at most 1.

    Raises:
        ValueError: naming the argument that is out of range, empty or NaN.
    """
    return _lowest(checked_array(token_logprobs, "token_logprobs", 1), k)


def min_k_plus_plus(token_logprobs: Any, mean: Any, std: Any, k: float = DEFAULT_K) -> float:
    """Min-K%++ (Zhang et al. 2024, arXiv 2404.02936): the same, each log-probability standardised
    by the mean and the standard deviation of log p over the vocabulary, under p, at its position.

    With a deviation of 0 (all possible tokens are equally likely) the standardised value of a
    possible token is 0, that of another -inf.

    Args:
        token_logprobs, mean, std: shape (tokens,).
        k (`float`): a share above 0 and at most 1.

    Raises:
        ValueError: naming the argument that is out of range, empty, NaN, or of another length.
    """
    logp = checked_array(token_logprobs, "token_logprobs", 1)
    centre, width = checked_array(mean, "mean", 1), checked_array(std, "std", 1)
    for array, name in ((centre, "mean"), (width, "std")):
        if len(array) != len(logp):
            raise ValueError(f"{name} has {len(array)} values, token_logprobs has {len(logp)}")
    if (width < 0).any():
        raise ValueError("std holds a negative deviation")
    flat = width == 0
    distance = logp - centre
    standardised = distance / np.where(flat, 1.0, width)
    return _lowest(np.where(flat, np.where(distance < 0, -np.inf, 0.0), standardised), k)


def loss_score(token_logprobs: Any) -> float:
    """Minus the mean NLL (Yeom et al. 2018, arXiv 1709.01604). Args: `token_logprobs` of shape
    (tokens,).
    """
    return float(checked_array(token_logprobs, "token_logprobs", 1).mean())


def zlib_score(token_logprobs: Any, text: str) -> float:
    """Minus mean NLL over the length in bytes of the completion's text under zlib (Carlini et al.
    2021, arXiv 2012.07805).
    """
    return loss_score(token_logprobs) / len(zlib.compress(text.encode("utf-8", "surrogatepass")))


def reference_score(token_logprobs: Any, reference_loss: float) -> float:
    """Minus (mean NLL minus the reference model's mean NLL) (Carlini et al. 2021)."""
    if math.isnan(reference_loss):
        raise ValueError("reference_loss is NaN")
    return loss_score(token_logprobs) + reference_loss


ATTACKS: dict[str, Callable[[Evidence, float], float | None]] = {
    "loss": lambda row, k: loss_score(row.logp),
    "zlib": lambda row, k: zlib_score(row.logp, row.text),
    "reference": lambda row, k: (
        None if row.reference_loss is None else reference_score(row.logp, row.reference_loss)
    ),
    "min_k": lambda row, k: min_k(row.logp, k),
    "min_k_plus_plus": lambda row, k: min_k_plus_plus(row.logp, row.mean, row.std, k),
    "gradient_norm": lambda row, k: None if row.gradient_norm is None else -row.gradient_norm,
}
"""Name to the score of a row, given the share of tokens for Min-K%; higher means more likely a
member, `None`: a statistic is missing.
"""


def attack_scores(rows: Sequence[Evidence], k: float = DEFAULT_K) -> dict[str, list[float | None]]:
    """The score of each row under each attack; `k`: share of tokens for Min-K% and Min-K%++."""
    return {name: [score(row, k) for row in rows] for name, score in ATTACKS.items()}


def vocabulary_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of log p over the vocabulary, under p, of each position.

    mean = sum_v p_v log p_v (minus the entropy) and std = sqrt(sum_v p_v (log p_v - mean)^2),
    centred before it is squared; a token of probability 0 adds nothing to either.

    Args:
        logits (`Tensor` of shape (tokens, vocabulary))

    Returns:
        two tensors of shape (tokens,).
    """
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = torch.where(p > 0, p * log_p, 0.0).sum(-1)
    variance = torch.where(p > 0, p * (log_p - mean[:, None]).square(), 0.0).sum(-1)
    return mean, variance.sqrt()


@torch.no_grad()
def token_moments(
    model: Any,
    prompts: Tokens,
    completions: Tokens,
    *,
    tokens_per_batch: int = 2048,
    budget_bytes: int = LOGITS_BUDGET_BYTES // 4,
) -> list[tuple[Floats, Floats, Floats] | None]:
    """(log p, mean, std) of each completion's tokens, see `Evidence`; logits exist for one chunk of
    positions at a time.

    Args:
        prompts, completions: token ids; a prompt has at least one.
        tokens_per_batch: see `likelihood.rows_by_length`.
        budget_bytes: most bytes of one (tokens, vocabulary) matrix, of which several exist at once.

    Returns:
        three arrays of shape (tokens,) for each row; `None` for one without completion.
    """
    head = models.output_head(model)
    rows = max(1, budget_bytes // (head.weight.shape[0] * 4))

    def numbers(hidden: Tensor, wanted: Tensor) -> Tensor:
        pieces = []
        for states, targets in zip(hidden.split(rows), wanted.split(rows), strict=True):
            logits = head.logits(states)
            moments = log_probability(logits, targets), *vocabulary_moments(logits)
            pieces.append(torch.stack(moments, dim=1))
        return torch.cat(pieces).double()

    found = values_by_row(model, prompts, completions, numbers, tokens_per_batch)
    return [None if row is None else tuple(row.T.contiguous().numpy()) for row in found]


@torch.enable_grad()
def gradient_norms(model: Any, prompts: Tokens, completions: Tokens) -> list[float | None]:
    """Global L2 norm of the gradient of each row's mean NLL with respect to all weights (an
    adapter's and its base model's).

    One row at a time, in evaluation mode; gradients, `requires_grad` and mode are restored.

    Args:
        prompts, completions: token ids; a prompt has at least one.

    Returns:
        a norm for each row, in nats; `None` for one without completion.
    """
    device, head = next(model.parameters()).device, models.output_head(model)
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    before, training = [weight.requires_grad for weight in weights], model.training
    norms: list[float | None] = [None] * len(prompts)
    model.eval()
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for index in range(len(prompts)):
            if not completions[index]:
                continue
            tree = Tree(tuple(prompts[index]), (Branch("retain", tuple(completions[index])),))
            batch = {
                name: tensor.to(device)
                for name, tensor in make_batch([tree], packed=False, pad_id=0).items()
            }
            hidden = models.predicting_states(model, batch, packed=False)
            loss = -token_statistics(hidden, batch["target"], head).logp.mean()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            sizes = [
                torch.linalg.vector_norm(gradient.float()).double()
                for gradient in gradients
                if gradient is not None
            ]
            norms[index] = float(torch.linalg.vector_norm(torch.stack(sizes)))
    finally:
        for weight, wanted in zip(weights, before, strict=True):
            weight.requires_grad_(wanted)
        model.train(training)
    return norms


def collect_evidence(
    model: Any,
    prompts: Tokens,
    completions: Tokens,
    texts: Sequence[str],
    *,
    reference_losses: Sequence[float | None] | None = None,
    gradients: bool = True,
) -> list[Evidence]:
    """The statistics of each row for the six attacks.

    Args:
        prompts, completions: token ids; none may be empty.
        texts: the completions' texts.
        reference_losses: each completion's mean NLL under a reference model, for that attack.
        gradients: whether to measure the gradients' norms, with a backward pass for each row.

    Raises:
        ValueError: for a row without completion.
    """
    moments = token_moments(model, prompts, completions)
    norms = gradient_norms(model, prompts, completions) if gradients else [None] * len(prompts)
    references = reference_losses if reference_losses is not None else [None] * len(prompts)
    rows = []
    for place, (found, text, reference, norm) in enumerate(
        zip(moments, texts, references, norms, strict=True)
    ):
        if found is None:
            raise ValueError(f"completions has no tokens at row {place}")
        rows.append(Evidence(*found, text, reference, norm))
    return rows
