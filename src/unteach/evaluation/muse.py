"""MUSE's numbers (Shi et al. 2024, arXiv 2407.06460): verbatim and knowledge memorisation, privacy
leakage.
"""

from __future__ import annotations

from collections.abc import Sequence

from unteach.evaluation.text_metrics import has_words, rouge_l

VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32


def privleak(auc: float, auc_retrain: float) -> float:
    """PrivLeak = 100 (AUC - AUC_retrain) / AUC_retrain, of the Min-40% attack on forget against
    holdout rows.

    MUSE takes the AUC with forget = 0, holdout = 1 and the score itself (not its negative):
    `auc(holdout_scores, forget_scores)`. A model that still knows the forget set then has an AUC
    near 0 and a PrivLeak near -100; one that was pushed too far, a positive one; 0 is best.

    >>> privleak(0.25, 0.5)
    -50.0

    Args:
        auc (`float`): the unlearned model's, from 0 to 1.
        auc_retrain (`float`): that of a model retrained without the forget set, above 0.

    Raises:
        ValueError: naming the argument that is out of its range.
    """
    if not 0 <= auc <= 1:
        raise ValueError(f"auc is {auc}, it must be from 0 to 1")
    if not 0 < auc_retrain <= 1:
        raise ValueError(f"auc_retrain is {auc_retrain}, it must be above 0 and at most 1")
    return 100 * (auc - auc_retrain) / auc_retrain


def _overlaps(outputs: Sequence[str], references: Sequence[str]) -> list[float]:
    if len(outputs) != len(references):
        raise ValueError(f"references has {len(references)} texts, outputs has {len(outputs)}")
    for place, reference in enumerate(references):
        if not has_words(reference):
            raise ValueError(
                f"references has no words at row {place}: nothing can be said to be remembered or"
                " forgotten"
            )
    return [
        rouge_l(output, reference, stemmer=False)[1]
        for output, reference in zip(outputs, references, strict=True)
    ]


def verbmem(continuations: Sequence[str], true_continuations: Sequence[str]) -> list[float]:
    """VerbMem of each row: ROUGE-L F1, without stemmer, of the model's greedy continuation of 128
    tokens against the true one.

    Args:
        continuations: what the model says after each prompt.
        true_continuations: the text that stands there.

    Raises:
        ValueError: naming the argument, if the two are not equally many or a true continuation is
            empty.
    """
    return _overlaps(continuations, true_continuations)


def knowmem(answers: Sequence[str], right_answers: Sequence[str]) -> list[float]:
    """KnowMem of each row: ROUGE-L F1, without stemmer, of the model's short answer against the
    right one. Args: see `verbmem`.
    """
    return _overlaps(answers, right_answers)


def first_line(text: str) -> str:
    """An answer up to its first line break: after few-shot examples a base model goes on with a
    question of its own.
    """
    return text.strip().partition("\n")[0].strip()
