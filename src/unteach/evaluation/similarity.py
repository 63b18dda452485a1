"""How alike two texts are, by sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from unteach.errors import UserError
from unteach.models import resolve

DEFAULT_ENCODER = "all-minilm-l6-v2"


@lru_cache(maxsize=1)
def _encoder(name: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(resolve(name), device="cpu")
    except (OSError, ValueError) as error:
        raise UserError(f"similarity_model {name!r} could not be loaded: {str(error).splitlines()[0][:200]}") from None


def why_not(encoder: str) -> str | None:
    """Why this encoder cannot be had here, in one sentence; `None` if it can."""
    try:
        _encoder(encoder)
    except UserError as error:
        return str(error)
    return None


def embedding_similarity(left: Sequence[str], right: Sequence[str], *, encoder: str = DEFAULT_ENCODER) -> list[float]:
    """Cosine similarity (-1 to 1) of the sentence embeddings of each pair of texts.

    Args:
        left, right: texts, paired by position.
        encoder (`str`): a sentence-transformers model: folder, hub id or packaged name.
    """
    if not left:
        return []
    vectors = _encoder(encoder).encode([*left, *right], normalize_embeddings=True, show_progress_bar=False)
    return [float(a @ b) for a, b in zip(vectors[: len(left)], vectors[len(left) :], strict=True)]
