"""TOFU (Maini et al. 2024, arXiv 2401.06121): truth ratio, probability, ROUGE-L and memorisation of
four sets of questions, model utility and forget quality.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    Column,
    EvaluatedModel,
    Measured,
    Record,
    Results,
    SetFile,
    SetValues,
    load_sets,
    overlap,
)
from unteach.evaluation.likelihood import greedy_matches, mean_nll
from unteach.evaluation.metrics import MetricFacts, PromptSet
from unteach.evaluation.results import Floats, MetricResult, checked_array
from unteach.evaluation.text_metrics import exact_memorization, extraction_strength

ANSWER_TOKENS = 128
"""1.5 times the longest right answer (82 tokens with SmolLM2's tokenizer)."""
CHOICES = ("real_authors", "world_facts")
"""Sets whose right answer is compared with wrong ones, and that have no paraphrase: the answer
itself takes its place.
"""
UTILITY_SETS = ("retain", *CHOICES)
UTILITY_METRICS = ("probability", "rouge_l_recall", "truth_ratio_score")
SETS = tuple(
    SetFile(
        name,
        (f"{name}*_perturbed",),
        config,
        "train",
        ("question", "answer", *(() if name in CHOICES else ("paraphrased_answer",))),
        lists=("perturbed_answer",),
        optional=False,
    )
    for name, config in (
        ("forget", "forget10_perturbed"),
        ("retain", "retain_perturbed"),
        ("real_authors", "real_authors_perturbed"),
        ("world_facts", "world_facts_perturbed"),
    )
)


# --- numbers, on arrays


@dataclass(frozen=True)
class ForgetQuality:
    """Result of the two-sample Kolmogorov-Smirnov test.

    Args:
        statistic: largest distance between the two empirical distributions.
        pvalue: exact; high where the models' truth ratios may be of the same distribution.
        n: number of questions.
    """

    statistic: float
    pvalue: float
    n: int


def _checked_pair(one: Any, other: Any, names: tuple[str, str]) -> tuple[Floats, Floats]:
    """Arrays of shapes (N,) and (N, P)."""
    row, matrix = checked_array(one, names[0], 1), checked_array(other, names[1], 2)
    if len(row) != len(matrix):
        raise ValueError(
            f"{names[1]} has {len(matrix)} rows, {names[0]} has {len(row)}: one row each a question"
        )
    return row, matrix


def truth_ratio(paraphrased_nll: Any, perturbed_nll: Any) -> Floats:
    """Truth ratio R of each question: geometric mean of the perturbed answers' probabilities over
    the paraphrased answer's.

    As the released code of TOFU computes it; equation 1 of the paper (Maini et al. 2024) has their
    arithmetic mean. Equal to `prod_j exp(-perturbed_j) ** (1 / P) / exp(-paraphrased)`, computed as
    exp of a difference of losses: nothing is added to either probability, so that R is exact where
    a model has collapsed and both are next to 0. R is above 1 where the wrong answers are likelier.

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
    names = ("paraphrased_nll", "perturbed_nll")
    paraphrased, perturbed = _checked_pair(paraphrased_nll, perturbed_nll, names)
    with np.errstate(invalid="ignore", over="ignore"):
        ratio: Floats = np.exp(paraphrased - perturbed.mean(1))
    if np.isnan(ratio).any():
        row = int(np.flatnonzero(np.isnan(ratio))[0])
        raise ValueError(
            f"paraphrased_nll and perturbed_nll are both infinite at row {row}: 0 / 0 is no ratio"
        )
    return ratio


def forget_truth_scores(r: Any) -> Floats:
    """min(R, 1/R) of each question, TOFU's score on the forget set: 1 where right and wrong answers
    are equally likely, near 0 where the model prefers either.

    Args:
        r: shape (N,), truth ratios.

    Raises:
        ValueError: if they are empty, NaN or negative.
    """
    with np.errstate(divide="ignore"):
        return np.exp(-np.abs(np.log(_ratios(r))))


def kept_truth_scores(r: Any) -> Floats:
    """max(0, 1 - R) of each question, TOFU's score on every other set: near 1 where the right
    answer is much likelier than the wrong ones. Args and raises: as `forget_truth_scores`.
    """
    return np.maximum(0.0, 1.0 - _ratios(r))


def _ratios(r: Any) -> Floats:
    array = checked_array(r, "r", 1)
    if (array < 0).any():
        place = int(np.flatnonzero(array < 0)[0])
        raise ValueError(f"r is negative at place {place}: a ratio of probabilities cannot be")
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
    real authors and world facts. A softmax over -l, exact where every p is next to 0.

    Args:
        right_nll: shape (N,), mean NLL a token of the right answer.
        wrong_nll: shape (N, P), the same of P wrong ones.

    Raises:
        ValueError: naming the argument that is empty, holds NaN or infinity, or does not fit the
            other.
    """
    from scipy.special import softmax

    right, wrong = _checked_pair(right_nll, wrong_nll, ("right_nll", "wrong_nll"))
    for array, name in ((right, "right_nll"), (wrong, "wrong_nll")):
        if np.isinf(array).any():
            raise ValueError(f"{name} holds infinity")
    probabilities: Floats = softmax(-np.column_stack([right, wrong]), axis=1)
    return probabilities[:, 0]


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
    values = list(scores.values() if isinstance(scores, Mapping) else scores)
    array = checked_array(values, "scores", 1)
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
        r_retrained = [r_retrained[key] for key in keys]
        r_unlearned = list(r_unlearned.values())
    unlearned = checked_array(r_unlearned, "r_unlearned", 1)
    retrained = checked_array(r_retrained, "r_retrained", 1)
    if len(unlearned) != len(retrained):
        raise ValueError(
            f"r_retrained has {len(retrained)} values, r_unlearned has {len(unlearned)}: they must"
            " be of the same questions"
        )
    from scipy.stats import ks_2samp

    found = ks_2samp(unlearned, retrained, method="exact")
    return ForgetQuality(float(found.statistic), float(found.pvalue), len(unlearned))


# --- the protocol


@dataclass(frozen=True)
class Question:
    """A question with its right answer, a paraphrase of that answer, and wrong answers."""

    row: Row
    paraphrased: str
    perturbed: tuple[str, ...]

    @property
    def variants(self) -> list[Row]:
        """The question with each of these answers."""
        texts = (self.row.completion, self.paraphrased, *self.perturbed)
        return [self.row.with_completion(text) for text in texts]


def load(source: str | None, limit: int | None = None) -> dict[str, list[Question]]:
    """The four sets.

    Raises:
        UserError: naming the row, for columns that are missing, wrong answers of another number, or
            a repeated question.
    """
    found = load_sets(source, "locuslab/TOFU", SETS, limit)
    return {name: _questions(name, records) for name, records in found.items()}


def _questions(name: str, records: Sequence[Record]) -> list[Question]:
    questions: list[Question] = []
    for fields, where in records:
        row = Row(fields["question"], fields["answer"], "chat", where)
        wrong = fields["perturbed_answer"]
        wrong = [wrong] if isinstance(wrong, str) else list(wrong)
        if not all(isinstance(text, str) and text.strip() for text in wrong):
            raise UserError(
                f"{where}: column 'perturbed_answer' must be a list of answers that are not empty"
            )
        wanted = len(questions[0].perturbed) if questions else len(wrong)
        if len(wrong) != wanted:
            raise UserError(
                f"{where}: column 'perturbed_answer' has {len(wrong)} answers, the rows before"
                f" have {wanted}"
            )
        paraphrased = row.completion if name in CHOICES else fields["paraphrased_answer"]
        questions.append(Question(row, paraphrased, tuple(wrong)))
    if len({question.row.key for question in questions}) < len(questions):
        raise UserError(
            f"option --data: a question of the set {name!r} is there twice, so models cannot be"
            " compared question by question"
        )
    return questions


def measure(evaluated: EvaluatedModel, sets: Mapping[str, Sequence[Question]]) -> Measured:
    """Probability, ROUGE-L, truth ratio and memorisation of each set, and model utility over all
    but the forget set.
    """
    questions = [question for part in sets.values() for question in part]
    rows = [question.row for question in questions]
    outputs = iter(evaluated.outputs(rows, ANSWER_TOKENS))
    variants = [row for question in questions for row in question.variants]
    nlls = iter(mean_nll(evaluated.model, *evaluated.encoded(variants)))
    matches = iter(greedy_matches(evaluated.model, *evaluated.encoded(rows)))
    found = {}
    for name, part in sets.items():
        answers = [next(outputs) for _ in part]
        losses = [[next(nlls) for _ in question.variants] for question in part]
        correct = [match for match in [next(matches) for _ in part] if match is not None]
        columns: dict[str, Column] = {
            **_likelihood_columns(name, np.array(losses, dtype=np.float64)),
            **overlap(answers, [question.row.completion for question in part]),
            "exact_memorization": [exact_memorization(row) for row in correct],
            "extraction_strength": [extraction_strength(row) for row in correct],
        }
        found[name] = SetValues.of_rows([question.row for question in part], columns, answers)
    means = [
        float(np.mean(np.array(found[name].columns[metric], dtype=np.float64)))
        for name in UTILITY_SETS
        for metric in UTILITY_METRICS
    ]
    utility = MetricResult(model_utility(means), len(means), None, None, True)
    return Measured(found, {"all": {"model_utility": utility}})


def _likelihood_columns(name: str, losses: Floats) -> dict[str, Column]:
    """Columns of a set from its questions' losses: right answer, paraphrase, wrong answers."""
    right, paraphrased, wrong = losses[:, 0], losses[:, 1], losses[:, 2:]
    ratio = truth_ratio(paraphrased, wrong)
    choice = name in CHOICES
    scores = forget_truth_scores(ratio) if name == "forget" else kept_truth_scores(ratio)
    probability = choice_probabilities(right, wrong) if choice else answer_probabilities(right)
    return {
        "probability": probability.tolist(),
        "truth_ratio_score": scores.tolist(),
        "truth_ratio": ratio.tolist(),
    }


def against_retrained(measured: Measured, retrained: Measured) -> Results:
    """Forget quality: p-value and distance of the two distributions of truth ratios."""
    ratios = []
    for values in (measured.sets["forget"], retrained.sets["forget"]):
        ratios.append(dict(zip(values.keys, values.columns["truth_ratio"], strict=True)))
    found = forget_quality(*ratios)
    return {
        "all": {
            "forget_quality": MetricResult(found.pvalue, found.n, None, None, True),
            "truth_ratio_distance": MetricResult(found.statistic, found.n, None, None, False),
        }
    }


BENCHMARK = Benchmark(
    load,
    measure,
    against_retrained,
    from_retrained=("forget_quality", "truth_ratio_distance"),
    metrics={
        "probability": MetricFacts(
            title="probability", higher_is_better=False, opposite_elsewhere=True
        ),
        "truth_ratio_score": MetricFacts(title="truth ratio score", higher_is_better=True),
        "model_utility": MetricFacts(title="model utility", higher_is_better=True, interval=None),
        "forget_quality": MetricFacts(
            title="forget quality (p)", higher_is_better=True, format=".3g", interval=None
        ),
        "truth_ratio_distance": MetricFacts(
            title="truth ratio distance", higher_is_better=False, interval=None
        ),
    },
    prompt_sets={
        "forget": PromptSet("forget", "forget"),
        "retain": PromptSet("retain", "kept"),
        "real_authors": PromptSet("real authors", "kept"),
        "world_facts": PromptSet("world facts", "kept"),
        "all": PromptSet("all sets", "kept"),
    },
)
