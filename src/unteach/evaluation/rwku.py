"""RWKU's numbers (Jin et al. 2024, arXiv 2406.10890): its probes, their recall, and n-gram entropy."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from unteach.evaluation.text_metrics import has_words, rouge_l

PROBE_TOKENS = 30


def fill_in_blank(query: str) -> str:
    """A sentence with a blank, as the model is asked for it."""
    return f"Fill in the blank in this sentence. Answer with the missing words only.\n{query}"


def question_answer(query: str) -> str:
    """A question, as the model is asked it."""
    return f"Answer this question briefly.\n{query}"


def adversarial(query: str) -> str:
    """An adversarial probe brings its own wording (prefix, suffix, role, examples, another
    language, ...), to which nothing is added.
    """
    return query


PROBES: dict[str, Callable[[str], str]] = {
    "fill_in_blank": fill_in_blank,
    "question_answer": question_answer,
    "adversarial": adversarial,
}
"""Kind of probe to what makes a prompt of its query. The wordings are ours: numbers of different
wordings do not compare.
"""


def probe_recall(answers: Sequence[str], right_answers: Sequence[str]) -> list[float]:
    """ROUGE-L recall of each answer against the right one.

    Letters' case does not count, words count as often as they stand there and in their order. An
    answer that could not be had raises where it is made; it is never a 0, which would call it
    forgotten.

    Args:
        answers: what the model says to each probe.
        right_answers: what it knew.

    Raises:
        ValueError: naming the argument, if the two are not equally many, a right answer has no
            words, or an answer is no text.
    """
    if len(answers) != len(right_answers):
        raise ValueError(
            f"right_answers has {len(right_answers)} texts, answers has {len(answers)}"
        )
    for place, (answer, right) in enumerate(zip(answers, right_answers, strict=True)):
        if not isinstance(answer, str):
            raise ValueError(
                f"answers holds {type(answer).__name__} at row {place}: no answer is not a"
                " forgotten one"
            )
        if not has_words(right):
            raise ValueError(
                f"right_answers has no words at row {place}: nothing can be said to be forgotten"
            )
    return [rouge_l(answer, right)[0] for answer, right in zip(answers, right_answers, strict=True)]


def ngram_entropy(text: str) -> float | None:
    """RWKU's fluency: mean of 2/3 of the entropy of the text's bigrams and 4/3 of that of its
    trigrams, in bits.

    **Never to be used alone.** It detects repetition and nothing else: a string of random words has
    the highest entropy of all, above any sentence. Show it beside the text's NLL under a language
    model (`fluency`), which is high for random words.

    >>> ngram_entropy("a b a b a b")
    0.9903168648182228

    Args:
        text (`str`): split into words and single signs, case kept.

    Returns:
        bits; `None` for a text of fewer than three words, which has no trigram.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    if len(words) < 3:
        return None
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = counts.total()
    return math.fsum(-count / total * math.log2(count / total) for count in counts.values())
