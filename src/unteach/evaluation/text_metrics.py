"""Metrics of one output: overlap with a text, facts, diversity, memorisation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from unteach.data.rows import folded, letters_and_digits

HORIZON = 240
"""Fewest bytes of a completion to compare an output with: about 56 tokens (Yao et al. 2024: 200
characters).
"""
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
"""Letters of scripts without spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese):
each counts as a word.
"""
SHORT_FACT = 4
"""Most letters and digits of a fact that must be a whole word: it may occur in others by chance."""
Correct = Sequence[bool] | npt.NDArray[np.bool_]
WORDS = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+")


def within_reach(reference: str, output: str) -> str:
    """The beginning of a reference to compare an output with: `HORIZON` bytes, or the output's
    length.

    An output ends at a token limit: against a whole page, lines recited verbatim would have a low
    BLEU and recall and count as forgotten.
    """
    size = max(HORIZON, len(output.encode(errors="replace")))
    return reference.encode(errors="replace")[:size].decode(errors="ignore")


@lru_cache(maxsize=2)
def _bleu(tokenize: str) -> Any:
    """One object for each tokenizer: it caches the tokens of texts that are compared again."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True, tokenize=tokenize)


def bleu(output: str, reference: str) -> float:
    """Sentence BLEU of sacrebleu (0 to 100, exponential smoothing, effective order); over
    characters where the reference has no spaces.
    """
    if not output.strip() or not reference.strip():
        return 0.0
    unspaced = len(re.findall(f"[{UNSPACED}]", reference)) * 2 > len("".join(reference.split()))
    scorer = _bleu("char" if unspaced else "13a")
    return float(scorer.sentence_score(output, [reference]).score)


@lru_cache(maxsize=2)
def _rouge(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

    class AnyScript(Tokenizer):  # type: ignore[misc]
        """rouge-score's own tokenizer for ASCII texts; it drops all other letters."""

        own = DefaultTokenizer(stemmer)

        def tokenize(self, text: str) -> list[str]:
            if text.isascii():
                return list(self.own.tokenize(text))
            words = (word.strip("_") for word in WORDS.findall(text.lower()))
            return [
                stem
                for word in words
                if word
                for stem in (self.own.tokenize(word) if word.isascii() else [word])
            ]

    return RougeScorer(["rougeL"], tokenizer=AnyScript())


def has_words(text: str) -> bool:
    """Whether ROUGE finds a word in a text; without one its recall is 0 for every output."""
    return WORDS.search(text.replace("_", " ")) is not None


def rouge_l(output: str, reference: str, *, stemmer: bool = True) -> tuple[float, float]:
    """(recall, F1) of ROUGE-L, by Google's rouge-score."""
    score = _rouge(stemmer).score(reference, output)["rougeL"]
    return float(score.recall), float(score.fmeasure)


def longest_verbatim_run(output: str, reference: str) -> int:
    """Length in characters of the longest common substring, white space normalised."""
    left, right = " ".join(output.split()), " ".join(reference.split())
    match = SequenceMatcher(None, left, right, autojunk=False).find_longest_match()
    return match.size


def diversity(tokens: Sequence[int]) -> float | None:
    """Share of unique tokens of an output (Yao et al. 2024); `None` for an empty one."""
    return len(set(tokens)) / len(tokens) if tokens else None


def says(output: str, facts: Sequence[str]) -> bool:
    """Whether an output contains one of the facts, compared by letters and digits alone.

    A fact of at most `SHORT_FACT` of these must be whole words: "annual" does not contain "Ann".

    >>> says("Call +442097057537, any time.", ["+44 20 9705 7537"])
    True

    Args:
        output: an answer.
        facts: strings; one without a letter or digit matches no output.
    """
    squeezed = letters_and_digits(output)
    text = folded(output)
    for fact in map(letters_and_digits, facts):
        if len(fact) > SHORT_FACT or re.search(f"[{UNSPACED}]", fact):
            found = bool(fact) and fact in squeezed
        else:
            inner = r"[\W_]*".join(map(re.escape, fact))
            found = bool(fact) and re.search(rf"(?<![^\W_]){inner}(?![^\W_])", text) is not None
        if found:
            return True
    return False


def leak_threshold(
    passages: Sequence[str], percentile: float = 99.0, most_pairs: int = 4000
) -> float:
    """BLEU of unrelated passages: a percentile over pairs of different passages.

    Args:
        passages: true completions of the corpus; duplicates count once.
        percentile: of the pairs' BLEU.
        most_pairs: pairs are sampled (fixed seed) if there are more.
    """
    texts = dict.fromkeys(within_reach(" ".join(passage.split()), "") for passage in passages)
    return _percentile_of_pairs(tuple(texts), percentile, most_pairs)


@lru_cache(maxsize=16)
def _percentile_of_pairs(texts: tuple[str, ...], percentile: float, most_pairs: int) -> float:
    pairs = list(permutations(texts, 2))
    if len(pairs) > most_pairs:
        picks = np.random.default_rng(0).choice(len(pairs), most_pairs, replace=False)
        pairs = [pairs[int(pick)] for pick in picks]
    scores = [bleu(*pair) for pair in pairs]
    return float(np.percentile(scores, percentile)) if scores else 0.0


def _checked(correct: Correct) -> npt.NDArray[np.bool_]:
    array = np.asarray(correct)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"correct has shape {array.shape}, it must be one row of at least one token"
        )
    if array.dtype != np.bool_:
        raise ValueError(f"correct is {array.dtype}, it must be boolean")
    return array


def exact_memorization(correct: Correct) -> float:
    """Share of a completion's tokens that are predicted correctly, each given the true tokens
    before it (Tirumala et al. 2022).

    >>> exact_memorization([True, False, True, True])
    0.75

    Args:
        correct: shape (tokens,), boolean.

    Raises:
        ValueError: for anything that is not one non-empty row of booleans.
    """
    return float(_checked(correct).mean())


def extraction_strength(correct: Correct) -> float:
    """1 - k/n for the shortest prefix, of k of n tokens, after which all tokens are predicted
    correctly (Carlini et al. 2021); 0 if the last one is not.

    >>> extraction_strength([False, True, True, True])
    0.75
    >>> extraction_strength([False])
    0.0

    Args:
        correct: shape (tokens,), boolean.

    Raises:
        ValueError: for anything that is not one non-empty row of booleans.
    """
    wrong = np.flatnonzero(~_checked(correct))
    return 1.0 if not wrong.size else 1.0 - (int(wrong[-1]) + 1) / len(correct)
