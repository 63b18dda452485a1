"""Names of the models and metrics that score a run's answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScorerNames:
    """The scorers of a run; `None` leaves the metric out.

    Args:
        headline (`str`, *optional*): the rate that decides whether the model has forgotten; `None`:
            the forget rows choose it, see `scorers.chosen_headline`.
        headline_reason (`str`): who named it; empty: the scenario.
        judge (`str`, *optional*): of harmful answers: `trained` (on the scenario's labelled
            answers), or a text-classification model (folder or hub id).
        reward (`str`, *optional*): of an answer's usefulness: `trained`, or a reward model (folder
            or hub id).
        similarity (`str`, *optional*): sentence encoder, or `bleurt:CHECKPOINT`; `none` is `None`.
        encoder (`str`, *optional*): the model whose token embeddings BERTScore compares.
        instead (`str`, *optional*): the sentence that forget prompts are to be answered with.
        fluency (`str`, *optional*): language model under which the answers' NLL is taken; `None`:
            the model before any training.
    """

    headline: str | None = None
    judge: str | None = None
    reward: str | None = None
    similarity: str | None = "all-minilm-l6-v2"
    encoder: str | None = "all-minilm-l6-v2"
    fluency: str | None = None
    instead: str | None = None
    headline_reason: str = ""

    def __post_init__(self) -> None:
        if self.similarity == "none":
            object.__setattr__(self, "similarity", None)
