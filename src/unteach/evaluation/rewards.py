"""Reward scorers: a reward model, or a classifier trained on good and bad answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unteach.data.chat import ChatSettings, use_chat_settings
from unteach.data.rows import LabelledAnswer, Row
from unteach.data.tokenization import encode_prompt, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.judges import TRAINED, input_limit, logistic_regression, shortened
from unteach.evaluation.similarity import DEFAULT_ENCODER, embeddings
from unteach.models import load_classifier
from unteach.seeding import row_generator

MIN_WORDS = 12


class Reward(Protocol):
    """Scores answers, higher is better; `held_out_accuracy` is `None` for a model by name."""

    name: str
    held_out_accuracy: float | None
    held_out_n: int

    def rewards(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The score of each answer to its prompt."""


class ModelReward:
    """A sequence-classification reward model with one output.

    Args:
        name: local folder or hub id. Its tokenizer's chat template, if any, is applied.
        chat (`ChatSettings`, *optional*): of a model that was trained on a run's rows: prompts and
            answers become tokens as those rows do (`encode_row`).

    Raises:
        UserError: if it cannot be loaded or has several outputs.
    """

    held_out_accuracy: float | None = None
    held_out_n = 0

    def __init__(self, name: str, chat: ChatSettings | None = None) -> None:
        self.name, self._chat = name, chat
        self._tokenizer, self._model = load_classifier(name)
        if chat:
            use_chat_settings(self._tokenizer, chat)
        if (count := self._model.config.num_labels) != 1:
            raise UserError(f"reward model {name!r} has {count} outputs, a reward model has one")

    def _text(self, prompt: str, answer: str) -> str:
        if not self._tokenizer.chat_template:
            return f"{prompt}\n{answer}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))

    def _ids(self, prompt: str, answer: str, limit: int) -> Sequence[int]:
        if self._chat is None:
            special = not self._tokenizer.chat_template
            inputs = self._tokenizer(self._text(prompt, answer), add_special_tokens=special)
            return list(inputs["input_ids"][:limit])
        row = Row(prompt, answer, source="an answer to score")
        if not answer.strip():
            return encode_prompt(row, self._tokenizer)[:limit]
        item = encode_row(row, self._tokenizer, end_of_turn_id(self._tokenizer))
        return (item.prompt_ids + item.completion_ids)[:limit]

    def rewards(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """See `Reward`."""
        import torch

        scores: list[float] = []
        limit = input_limit(self._model, self._tokenizer, 1024)
        for prompt, answer in zip(prompts, answers, strict=True):
            prompt = shortened(self._tokenizer, prompt, answer, limit, around=64)
            ids = torch.tensor([list(self._ids(prompt, answer, limit))])
            with torch.no_grad():
                scores.append(float(self._model(ids.to(self._model.device)).logits[0, 0]))
        return scores


class TrainedReward:
    """Log-odds that an answer is good, by logistic regression on sentence embeddings of prompt and
    answer.

    Positives: the labelled answers that are neither flagged nor off topic. Negatives: the others;
    and of each positive the answer to another prompt, its words shuffled, its first three words.
    Unflagged answers under `MIN_WORDS` words, mostly refusals, are left out.

    Args:
        labelled: answers with both labels.

    Raises:
        UserError: with too few answers of either label.
    """

    def __init__(self, labelled: Sequence[LabelledAnswer]) -> None:
        examples = [
            (item.prompt, item.answer, not bad)
            for item in labelled
            if (bad := item.flagged or item.beside) or len(item.answer.split()) >= MIN_WORDS
        ]
        good = [(prompt, answer) for prompt, answer, is_good in examples if is_good]
        shuffle = row_generator("reward", len(examples))
        for place, (prompt, answer) in enumerate(good):
            words = answer.split()
            _, other = good[(place + len(good) // 2) % len(good)]
            shuffled = " ".join(words[i] for i in shuffle.permutation(len(words)))
            bad_answers = other, " ".join(words[:3]), shuffled
            examples += [(prompt, text, False) for text in bad_answers]
        prompts, answers, labels = (
            (list(column) for column in zip(*examples, strict=True)) if examples else ([], [], [])
        )
        features = self._features(prompts, answers)
        self._classifier, self.held_out_accuracy = logistic_regression(
            features, labels, prompts, inverse_penalty=10.0
        )
        self.held_out_n = len(examples)
        trained = f"reward trained on {len(examples)} answers"
        self.name = f"{trained} ({DEFAULT_ENCODER}, logistic regression)"

    def _features(self, prompts: Sequence[str], answers: Sequence[str]) -> npt.NDArray[np.float64]:
        if not prompts:
            return np.zeros((0, 1))
        asked, said = embeddings(prompts), embeddings(answers)
        product = asked * said
        return np.concatenate([10.0 * product, said, product.sum(1, keepdims=True)], axis=1)

    def rewards(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """See `Reward`."""
        if not answers:
            return []
        scores = self._classifier.decision_function(self._features(prompts, answers))
        return [float(score) for score in scores]


def load_reward(name: str, labelled: Sequence[LabelledAnswer]) -> Reward:
    """The reward scorer `trained` (on `labelled`), or a reward model (folder or hub id)."""
    scorer: Any = TrainedReward(labelled) if name == TRAINED else ModelReward(name)
    return scorer  # type: ignore[no-any-return]
