"""Numbers about an output's text: leak, overlap, verbatim run, diversity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

import numpy as np


def bleu(output: str, reference: str) -> float:
    """Sentence BLEU of sacrebleu (0 to 100, exponential smoothing, effective order)."""
    from sacrebleu.metrics.bleu import BLEU

    if not output.strip() or not reference.strip():
        return 0.0
    return float(BLEU(effective_order=True).sentence_score(output, [reference]).score)


@lru_cache(maxsize=2)
def _rouge(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def rouge_l(output: str, reference: str, *, stemmer: bool = True) -> tuple[float, float]:
    """(recall, F1) of ROUGE-L, by Google's rouge-score."""
    score = _rouge(stemmer).score(reference, output)["rougeL"]
    return float(score.recall), float(score.fmeasure)


def longest_verbatim_run(output: str, reference: str) -> int:
    """Length in characters of the longest passage that both texts share character for character, white space normalised."""
    left, right = " ".join(output.split()), " ".join(reference.split())
    match = SequenceMatcher(None, left, right, autojunk=False).find_longest_match()
    return match.size


def diversity(tokens: Sequence[int]) -> float | None:
    """Share of unique tokens among an output's tokens (Yao et al. 2024); `None` for an empty output."""
    return len(set(tokens)) / len(tokens) if tokens else None


def is_not_meaningful(output: str) -> bool:
    """The paper's NM: nothing, or most of the output is one repeated character. One letter or digit alone may be an answer."""
    text = output.strip()
    if len(text) <= 1:
        return not text.isalnum()
    return Counter(text).most_common(1)[0][1] / len(text) > 0.5


def leak_threshold(passages: Sequence[str], percentile: float = 99.0, most_pairs: int = 4000) -> float:
    """BLEU that passages which have nothing to do with each other reach: its 99th percentile over pairs of different passages.

    Args:
        passages (`Sequence[str]`): true completions of the corpus; one that stands there twice counts once.
        percentile (`float`)
        most_pairs (`int`): pairs are drawn (fixed seed) if there are more.
    """
    passages = list(dict.fromkeys(" ".join(passage.split()) for passage in passages))
    size = len(passages)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    if len(pairs) > most_pairs:
        picks = np.random.default_rng(0).choice(len(pairs), most_pairs, replace=False)
        pairs = [pairs[int(pick)] for pick in picks]
    scores = [bleu(passages[i], passages[j]) for i, j in pairs]
    return float(np.percentile(scores, percentile)) if scores else 0.0
