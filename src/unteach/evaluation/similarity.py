"""Similarity of two texts: cosine of sentence embeddings, BERTScore, regression models (BLEURT)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from unteach.errors import UserError
from unteach.models import load_classifier, resolve

DEFAULT_ENCODER = "all-minilm-l6-v2"
BLEURT = "bleurt:"


@lru_cache(maxsize=1)
def _encoder(name: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(resolve(name), device="cpu")
    except (OSError, ValueError) as error:
        raise UserError(
            f"similarity_model {name!r} could not be loaded: {str(error).splitlines()[0][:200]}"
        ) from None


def load_error(encoder: str) -> str | None:
    """Why this encoder cannot be loaded, in one sentence; `None` if it can."""
    try:
        name = encoder.removeprefix(BLEURT)
        _encoder(name) if name == encoder else _regression(name)
    except UserError as error:
        return str(error)
    return None


def embeddings(texts: Sequence[str], *, encoder: str = DEFAULT_ENCODER) -> npt.NDArray[np.float64]:
    """Sentence embeddings of length 1, shape (texts, dimensions).

    Args:
        texts: at least one.
        encoder: a sentence-transformers model: folder, hub id or packaged name.
    """
    once = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = _encoder(encoder).encode(
        list(once), normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(vectors, dtype=np.float64)[[once[text] for text in texts]]


def pair_similarity(
    left: Sequence[str], right: Sequence[str], *, scorer: str = DEFAULT_ENCODER
) -> list[float]:
    """Similarity of each pair of texts by the scorer named.

    Args:
        left, right: references and candidates, paired by position.
        scorer: a sentence encoder (cosine, -1 to 1), or `bleurt:CHECKPOINT`, a
            sequence-classification model with one output for (reference, candidate) as a pair.
    """
    if not left:
        return []
    if not scorer.startswith(BLEURT):
        vectors = embeddings([*left, *right], encoder=scorer)
        both = zip(vectors[: len(left)], vectors[len(left) :], strict=True)
        return [float(a @ b) for a, b in both]
    import torch

    tokenizer, model = _regression(scorer.removeprefix(BLEURT))
    scores: list[float] = []
    for start in range(0, len(left), 16):
        pairs = list(left[start : start + 16]), list(right[start : start + 16])
        inputs = tokenizer(
            *pairs, padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        with torch.no_grad():
            scores += model(**inputs.to(model.device)).logits[:, 0].tolist()
    return scores


@lru_cache(maxsize=1)
def _regression(name: str) -> tuple[Any, Any]:
    tokenizer, model = load_classifier(name)
    if (count := model.config.num_labels) != 1:
        raise UserError(f"similarity model {name!r} has {count} outputs, a regression has one")
    return tokenizer, model


def bert_scores(
    candidates: Sequence[str], references: Sequence[str], *, encoder: str = DEFAULT_ENCODER
) -> list[float]:
    """BERTScore F1 of each pair (Zhang et al. 2020), by the package bert-score, without baseline
    rescaling.

    Args:
        candidates, references: texts, paired by position; an empty one has score 0.
        encoder: the model whose last layer's token embeddings are compared: folder, hub id or
            packaged name.
    """
    pairs = enumerate(zip(candidates, references, strict=True))
    chosen = [i for i, (a, b) in pairs if a.strip() and b.strip()]
    scores = [0.0] * len(candidates)
    if chosen:
        _, _, f1 = _bert_scorer(encoder).score(
            [candidates[i] for i in chosen], [references[i] for i in chosen]
        )
        for i, value in zip(chosen, f1.tolist(), strict=True):
            scores[i] = float(value)
    return scores


def unrelated_bert_score(
    texts: Sequence[str],
    *,
    encoder: str = DEFAULT_ENCODER,
    percentile: float = 99.0,
    most: int = 64,
) -> float:
    """BERTScore F1 of unrelated texts: a percentile over pairs of different texts.

    Args:
        texts: answers to different questions; fewer than two: 0.
        encoder: see `bert_scores`.
        percentile: of the pairs' scores.
        most: at most so many texts, each paired with the seven that follow it.
    """
    chosen = list(dict.fromkeys(texts))[:most]
    count = len(chosen)
    pairs = sorted({(i, (i + step) % count) for i in range(count) for step in range(1, 8)})
    pairs = [(i, j) for i, j in pairs if i != j]
    if not pairs:
        return 0.0
    scores = bert_scores(
        [chosen[i] for i, _ in pairs], [chosen[j] for _, j in pairs], encoder=encoder
    )
    return float(np.percentile(scores, percentile))


@lru_cache(maxsize=1)
def _bert_scorer(encoder: str) -> Any:
    from bert_score import BERTScorer
    from transformers import AutoConfig

    try:
        folder = resolve(encoder)
        layers = int(AutoConfig.from_pretrained(folder).num_hidden_layers)
        return BERTScorer(
            model_type=folder,
            num_layers=layers,
            device="cpu",
            idf=False,
            rescale_with_baseline=False,
        )
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"encoder {encoder!r} could not be loaded for BERTScore:"
            f" {str(error).splitlines()[0][:200]}"
        ) from None
