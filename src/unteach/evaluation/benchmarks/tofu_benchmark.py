"""The TOFU protocol: what is asked of the forget, retain, real-authors and world-facts sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation import tofu
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    EvaluatedModel,
    Measured,
    Results,
    answers,
    encoded,
    overlap,
    row_lines,
    summary,
)
from unteach.evaluation.benchmarks.sources import SetFile, load_sets, text_of
from unteach.evaluation.likelihood import greedy_matches, mean_nll
from unteach.evaluation.memorization import exact_memorization, extraction_strength
from unteach.evaluation.metrics import MetricFacts, PromptSet
from unteach.evaluation.results import MetricResult

ANSWER_TOKENS = 128
"""Half as long again as the longest right answer (82 tokens of SmolLM2's)."""
CHOICES = ("real_authors", "world_facts")
"""Sets whose right answer stands against wrong ones, and that have no paraphrase: the answer itself
takes its place.
"""
UTILITY_SETS = ("retain", *CHOICES)
UTILITY_METRICS = ("probability", "rouge_l_recall", "truth_ratio_score")
PERTURBED = ("question", "answer", "perturbed_answer")
SETS = (
    SetFile(
        "forget",
        ("forget*_perturbed",),
        "forget10_perturbed",
        "train",
        (*PERTURBED, "paraphrased_answer"),
        optional=False,
    ),
    SetFile(
        "retain",
        ("retain*_perturbed",),
        "retain_perturbed",
        "train",
        (*PERTURBED, "paraphrased_answer"),
        optional=False,
    ),
    SetFile(
        "real_authors",
        ("real_authors*_perturbed",),
        "real_authors_perturbed",
        "train",
        PERTURBED,
        optional=False,
    ),
    SetFile(
        "world_facts",
        ("world_facts*_perturbed",),
        "world_facts_perturbed",
        "train",
        PERTURBED,
        optional=False,
    ),
)


@dataclass(frozen=True)
class Question:
    """A question with its right answer, that answer in other words, and wrong ones."""

    row: Row
    paraphrased: str
    perturbed: tuple[str, ...]


def load(source: str | None, limit: int | None = None) -> dict[str, list[Question]]:
    """The four sets.

    Raises:
        UserError: naming the row, for columns that are missing, wrong answers of another number, or
            a question that stands there twice.
    """
    sets: dict[str, list[Question]] = {}
    for name, records in load_sets(source, "locuslab/TOFU", SETS, limit).items():
        questions = sets.setdefault(name, [])
        for fields, where in records:
            row = Row(
                text_of(fields, "question", where), text_of(fields, "answer", where), "chat", where
            )
            perturbed = fields["perturbed_answer"]
            perturbed = [perturbed] if isinstance(perturbed, str) else list(perturbed)
            if not all(isinstance(wrong, str) and wrong.strip() for wrong in perturbed):
                raise UserError(
                    f"{where}: column 'perturbed_answer' must be a list of answers that are not"
                    " empty"
                )
            if questions and len(perturbed) != len(questions[0].perturbed):
                wanted = len(questions[0].perturbed)
                raise UserError(
                    f"{where}: column 'perturbed_answer' has {len(perturbed)} answers, the rows"
                    f" before have {wanted}"
                )
            paraphrased = (
                row.completion if name in CHOICES else text_of(fields, "paraphrased_answer", where)
            )
            questions.append(Question(row, paraphrased, tuple(perturbed)))
        if len({question.row.key for question in questions}) < len(questions):
            raise UserError(
                f"option --data: a question of the set {name!r} stands there twice, so models could"
                " not be compared by question"
            )
    return sets


def measure(subject: EvaluatedModel, sets: Mapping[str, Sequence[Question]]) -> Measured:
    """Probability, ROUGE-L, truth ratio and memorisation of each set, and model utility over all
    but the forget set.
    """
    everything = [question for questions in sets.values() for question in questions]
    outputs = iter(answers(subject, [question.row for question in everything], ANSWER_TOKENS))
    variants = [
        question.row.with_completion(text)
        for question in everything
        for text in (question.row.completion, question.paraphrased, *question.perturbed)
    ]
    nlls = iter(mean_nll(subject.model, *encoded(variants, subject.tokenizer)))
    matches = iter(
        greedy_matches(
            subject.model, *encoded([question.row for question in everything], subject.tokenizer)
        )
    )
    results: Results = {}
    lines = {}
    for name, questions in sets.items():
        said = [next(outputs) for _ in questions]
        losses = np.array(
            [[next(nlls) for _ in range(2 + len(question.perturbed))] for question in questions],
            dtype=np.float64,
        )
        right, paraphrased, perturbed = losses[:, 0], losses[:, 1], losses[:, 2:]
        ratio = tofu.truth_ratio(paraphrased, perturbed)
        forget = name == "forget"
        correct = [found for found in [next(matches) for _ in questions] if found is not None]
        columns: dict[str, list[float | None]] = {
            "probability": list(
                tofu.choice_probabilities(right, perturbed)
                if name in CHOICES
                else tofu.answer_probabilities(right)
            ),
            **overlap(said, [question.row.completion for question in questions]),
            "truth_ratio_score": list(
                tofu.forget_truth_scores(ratio) if forget else tofu.kept_truth_scores(ratio)
            ),
            "exact_memorization": [exact_memorization(row) for row in correct],
            "extraction_strength": [extraction_strength(row) for row in correct],
        }
        columns = {
            metric: [None if value is None else float(value) for value in values]
            for metric, values in columns.items()
        }
        better = dict.fromkeys(columns, not forget) | {"truth_ratio_score": True}
        results[name] = summary(columns, better)
        texts = {
            "prompt": [question.row.prompt_text for question in questions],
            "expected": [question.row.completion for question in questions],
            "output": said,
        }
        lines[name] = row_lines(
            [question.row.key for question in questions],
            columns | {"truth_ratio": [float(r) for r in ratio]},
            texts,
        )
    scores = [results[name][metric].value for name in UTILITY_SETS for metric in UTILITY_METRICS]
    utility = tofu.model_utility([score for score in scores if score is not None])
    results["all"] = {"model_utility": MetricResult(utility, len(scores), None, None, True)}
    return Measured(results, lines)


def against_retrained(measured: Measured, retrained: Measured) -> Results:
    """Forget quality: the p-value, and the distance between the two distributions of truth ratios."""
    ratios = [
        {line.key: line.metrics["truth_ratio"] for line in found.lines["forget"]}
        for found in (measured, retrained)
    ]
    found = tofu.forget_quality(*ratios)
    return {
        "all": {
            "forget_quality": MetricResult(found.pvalue, found.n, None, None, True),
            "truth_ratio_distance": MetricResult(found.statistic, found.n, None, None, False),
        }
    }


METRICS = {
    "probability": MetricFacts(title="probability", higher_is_better=False),
    "truth_ratio_score": MetricFacts(title="truth ratio score", higher_is_better=True),
    "model_utility": MetricFacts(title="model utility", higher_is_better=True, interval=None),
    "forget_quality": MetricFacts(
        title="forget quality (p)", higher_is_better=True, format=".3g", interval=None
    ),
    "truth_ratio_distance": MetricFacts(
        title="truth ratio distance", higher_is_better=False, interval=None
    ),
}
PROMPT_SETS = {
    "forget": PromptSet("forget", "forget"),
    "retain": PromptSet("retain", "kept"),
    "real_authors": PromptSet("real authors", "kept"),
    "world_facts": PromptSet("world facts", "kept"),
    "all": PromptSet("all sets", "kept"),
}
BENCHMARK = Benchmark(load, measure, against_retrained, METRICS, PROMPT_SETS)
