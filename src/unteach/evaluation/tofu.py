"""TOFU's numbers (Maini et al. 2024, arXiv 2401.06121): truth ratio, probability, model utility,
forget quality; pure, on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unteach.evaluation.arrays import Floats, checked_array


@dataclass(frozen=True)
class ForgetQuality:
    """Result of the two-sample Kolmogorov-Smirnov test.

    Args:
        statistic (`float`): largest distance between the two empirical distributions.
        pvalue (`float`): exact; near 1 the models cannot be told apart by their truth ratios, near
            0 they can.
        n (`int`): number of questions.
    """

    statistic: float
    pvalue: float
    n: int


def log_truth_ratio(paraphrased_nll: Any, perturbed_nll: Any) -> Floats:
    """log R = l(paraphrased) - mean_j l(perturbed_j), exact however large the losses are; see
    `truth_ratio`.
    """
    paraphrased, perturbed = (
        checked_array(paraphrased_nll, "paraphrased_nll", 1),
        checked_array(perturbed_nll, "perturbed_nll", 2),
    )
    if len(paraphrased) != len(perturbed):
        raise ValueError(
            f"perturbed_nll has {len(perturbed)} rows, paraphrased_nll has {len(paraphrased)}: one"
            " row each a question"
        )
    with np.errstate(invalid="ignore"):
        ratio: Floats = paraphrased - perturbed.mean(1)
    if np.isnan(ratio).any():
        place = int(np.flatnonzero(np.isnan(ratio))[0])
        raise ValueError(
            f"paraphrased_nll and perturbed_nll are both infinite at row {place}: no ratio of two"
            " zeros"
        )
    return ratio


def truth_ratio(paraphrased_nll: Any, perturbed_nll: Any) -> Floats:
    """Truth ratio R of each question: geometric mean of the perturbed answers' probabilities over
    the paraphrased answer's.

    As the released code of TOFU has it; equation 1 of the paper (Maini et al. 2024) writes their
    arithmetic mean. Equal to `prod_j exp(-perturbed_j) ** (1 / P) / exp(-paraphrased)`, computed as
    exp of a difference of losses: where a model has collapsed and every probability is next to 0,
    nothing is added to either, and R is still their ratio. R is above 1 where the wrong answers are
    likelier than the right one.

    >>> truth_ratio([2.0], [[1.0, 3.0]])
    array([1.])

    Args:
        paraphrased_nll: shape (N,), mean NLL a token, in nats, of each question's paraphrased right
            answer.
        perturbed_nll: shape (N, P), the same of its P wrong answers.

    Returns:
        shape (N,).

    Raises:
        ValueError: naming the argument that is empty, holds NaN, or does not fit the other.
    """
    with np.errstate(over="ignore"):
        return np.exp(log_truth_ratio(paraphrased_nll, perturbed_nll))


def forget_truth_scores(r: Any) -> Floats:
    """min(R, 1/R) of each question: 1 where right and wrong answers are equally likely, near 0
    where the model knows either way.

    Args:
        r: shape (N,), truth ratios.

    Raises:
        ValueError: if they are empty, NaN or negative.
    """
    with np.errstate(divide="ignore"):
        return np.exp(-np.abs(np.log(_ratios(r, "r"))))


def kept_truth_scores(r: Any) -> Floats:
    """max(0, 1 - R) of each question: near 1 where the right answer is much likelier than the wrong
    ones.

    Args and raises: as `forget_truth_scores`.
    """
    return np.maximum(0.0, 1.0 - _ratios(r, "r"))


def forget_truth_score(r: Any) -> float:
    """TOFU's truth-ratio score on the forget set: mean of min(R, 1/R)."""
    return float(forget_truth_scores(r).mean())


def kept_truth_score(r: Any) -> float:
    """TOFU's truth-ratio score on every other set: mean of max(0, 1 - R)."""
    return float(kept_truth_scores(r).mean())


def _ratios(r: Any, name: str) -> Floats:
    array = checked_array(r, name, 1)
    if (array < 0).any():
        raise ValueError(
            f"{name} is negative at place {int(np.flatnonzero(array < 0)[0])}: a ratio of"
            " probabilities cannot be"
        )
    return array


def answer_probabilities(nll: Any) -> Floats:
    """exp(-l) of each question: TOFU's probability on the forget and the retain set; its score is
    the mean of these, not exp of a mean.

    Args:
        nll: shape (N,), mean NLL a token of the right answer.

    Raises:
        ValueError: if it is empty or holds NaN.
    """
    return np.exp(-checked_array(nll, "nll", 1))


def choice_probabilities(right_nll: Any, wrong_nll: Any) -> Floats:
    """p(right) / (p(right) + sum of p(wrong)) of each question, p = exp(-l): TOFU's probability on
    real authors and world facts.

    A softmax over -l, so that it is exact where every p is next to 0.

    Args:
        right_nll: shape (N,), mean NLL a token of the right answer.
        wrong_nll: shape (N, P), the same of P wrong ones.

    Raises:
        ValueError: naming the argument that is empty, holds NaN or infinity, or does not fit the
            other.
    """
    right, wrong = (
        checked_array(right_nll, "right_nll", 1),
        checked_array(wrong_nll, "wrong_nll", 2),
    )
    if len(right) != len(wrong):
        raise ValueError(
            f"wrong_nll has {len(wrong)} rows, right_nll has {len(right)}: one row each a question"
        )
    for array, name in ((right, "right_nll"), (wrong, "wrong_nll")):
        if np.isinf(array).any():
            raise ValueError(f"{name} holds infinity")
    ahead = right[:, None] - wrong  # log of p(wrong) / p(right)
    most = np.maximum(ahead.max(1), 0.0)
    share: Floats = np.exp(-most) / (np.exp(-most) + np.exp(ahead - most[:, None]).sum(1))
    return share


def model_utility(scores: Mapping[Any, float] | Iterable[float]) -> float:
    """Harmonic mean of the scores, 0 if any of them is 0: TOFU takes {probability, ROUGE-L recall,
    truth-ratio score} x {real authors, world facts, retain}.

    >>> model_utility({"a": 1.0, "b": 0.5})
    0.6666666666666666

    Args:
        scores: a mapping to, or a sequence of, numbers that are not negative.

    Raises:
        ValueError: if there are none, or one is NaN, infinite or negative.
    """
    array = checked_array(
        list(scores.values() if isinstance(scores, Mapping) else scores), "scores", 1
    )
    if np.isinf(array).any() or (array < 0).any():
        raise ValueError("scores holds a number that is negative or infinite")
    least = float(array.min())
    return 0.0 if least == 0 else len(array) * least / math.fsum(least / array)


def forget_quality(r_unlearned: Any, r_retrained: Any) -> ForgetQuality:
    """Forget quality (Maini et al. 2024, section 3.2): the exact two-sample KS test between the
    forget set's truth ratios under the unlearned model and under a model retrained without that
    set.

    Args:
        r_unlearned, r_retrained: truth ratios of the same questions: both mappings from question
            (or its key) to R, which is the safe way, or both arrays of shape (N,).

    Raises:
        ValueError: naming the argument that is empty or holds NaN, and where the two are not of the
            same questions.
    """
    if isinstance(r_unlearned, Mapping) != isinstance(r_retrained, Mapping):
        raise ValueError(
            "r_unlearned and r_retrained must both be mappings from question to R, or both arrays"
        )
    if isinstance(r_unlearned, Mapping):
        keys: list[Hashable] = list(r_unlearned)
        missing, foreign = set(keys) - set(r_retrained), set(r_retrained) - set(keys)
        if missing or foreign:
            raise ValueError(
                f"r_retrained is not of the same questions as r_unlearned: {len(missing)} of those"
                f" are missing, {len(foreign)} are others"
            )
        r_unlearned, r_retrained = (
            [r_unlearned[key] for key in keys],
            [r_retrained[key] for key in keys],
        )
    unlearned, retrained = (
        checked_array(r_unlearned, "r_unlearned", 1),
        checked_array(r_retrained, "r_retrained", 1),
    )
    if len(unlearned) != len(retrained):
        raise ValueError(
            f"r_retrained has {len(retrained)} values, r_unlearned has {len(unlearned)}: they must"
            " be of the same questions"
        )
    from scipy.stats import ks_2samp

    found = ks_2samp(unlearned, retrained, method="exact")
    return ForgetQuality(float(found.statistic), float(found.pvalue), len(unlearned))
