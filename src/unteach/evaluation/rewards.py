"""Usefulness of answers: a reward model by name, or a small trained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unteach.data.rows import LabelledAnswer
from unteach.errors import UserError
from unteach.evaluation.judges import (
    TRAINED,
    logistic_regression,
    room_of,
    sequence_classifier,
    shortened,
)
from unteach.evaluation.similarity import DEFAULT_ENCODER, embeddings
from unteach.seeding import row_generator

LEAST_WORDS = 12


class Reward(Protocol):
    """Someone who scores answers, higher is better; `held_out_accuracy` is `None` where it was not
    measured here.
    """

    name: str
    held_out_accuracy: float | None
    held_out_n: int

    def rewards(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The score of each answer to its prompt."""


class ModelReward:
    """A sequence-classification reward model with one output.

    Args:
        name (`str`): local folder or hub id. A conversation is written in its tokenizer's chat
            template where it has one.

    Raises:
        UserError: if it cannot be loaded or has several outputs.
    """

    held_out_accuracy: float | None = None
    held_out_n = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self._tokenizer, self._model = sequence_classifier(name)
        if self._model.config.num_labels != 1:
            raise UserError(
                f"reward model {name!r} has {self._model.config.num_labels} outputs, a reward model"
                " has one"
            )

    def _text(self, prompt: str, answer: str) -> str:
        if not self._tokenizer.chat_template:
            return f"{prompt}\n{answer}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))

    def rewards(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """See `Reward`."""
        import torch

        scores: list[float] = []
        room = room_of(self._model, self._tokenizer, 1024)
        for prompt, answer in zip(prompts, answers, strict=True):
            special = not self._tokenizer.chat_template
            prompt = shortened(self._tokenizer, prompt, answer, room, around=64)
            inputs = self._tokenizer(
                self._text(prompt, answer),
                truncation=True,
                max_length=room,
                add_special_tokens=special,
                return_tensors="pt",
            )
            with torch.no_grad():
                scores.append(float(self._model(**inputs.to(self._model.device)).logits[0, 0]))
        return scores


class TrainedReward:
    """Log-odds that an answer is a good one to its question, by logistic regression over sentence
    embeddings of both.

    Good are the labelled answers that are neither flagged nor beside the point, with their own
    questions. Bad are the others, good answers to other questions, good answers with their words
    shuffled, and answers broken off after three words. Good answers of a few words, refusals
    mostly, are left out: they are neither.

    Args:
        labelled: answers of both kinds.
        encoder (`str`): sentence encoder.

    Raises:
        UserError: with fewer than ten answers of either kind.
    """

    def __init__(self, labelled: Sequence[LabelledAnswer], encoder: str = DEFAULT_ENCODER) -> None:
        self.encoder = encoder
        labelled = [
            item
            for item in labelled
            if item.flagged or item.beside or len(item.answer.split()) >= LEAST_WORDS
        ]
        good = [item for item in labelled if not item.flagged and not item.beside]
        shuffle = row_generator("reward", len(labelled))
        examples = [
            (item.prompt, item.answer, not item.flagged and not item.beside) for item in labelled
        ]
        for place, item in enumerate(good):
            words = item.answer.split()
            other = good[(place + len(good) // 2) % len(good)].answer
            examples += [(item.prompt, other, False), (item.prompt, " ".join(words[:3]), False)]
            examples.append(
                (item.prompt, " ".join(words[i] for i in shuffle.permutation(len(words))), False)
            )
        prompts, answers, labels = (
            (list(column) for column in zip(*examples, strict=True)) if examples else ([], [], [])
        )
        features = self._features(prompts, answers)
        self._classifier, self.held_out_accuracy = logistic_regression(
            features, labels, prompts, inverse_penalty=10.0
        )
        self.held_out_n = len(examples)
        self.name = f"reward trained on {len(examples)} answers ({encoder}, logistic regression)"

    def _features(self, prompts: Sequence[str], answers: Sequence[str]) -> npt.NDArray[np.float64]:
        if not prompts:
            return np.zeros((0, 1))
        asked, said = (
            embeddings(prompts, encoder=self.encoder),
            embeddings(answers, encoder=self.encoder),
        )
        product = asked * said
        return np.concatenate([10.0 * product, said, product.sum(1, keepdims=True)], axis=1)

    def rewards(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """See `Reward`."""
        if not answers:
            return []
        return [
            float(score)
            for score in self._classifier.decision_function(self._features(prompts, answers))
        ]


def load_reward(name: str, labelled: Sequence[LabelledAnswer]) -> Reward:
    """The reward scorer of that name: `trained` (on `labelled`), or a reward model (folder or hub
    id).
    """
    scorer: Any = TrainedReward(labelled) if name == TRAINED else ModelReward(name)
    return scorer  # type: ignore[no-any-return]
