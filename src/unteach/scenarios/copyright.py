"""The copyright protocol of Yao et al. 2024 in small: forget a memorised story, keep another."""

from __future__ import annotations

from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.data.passages import book_passages, sentences
from unteach.data.rows import Row, split_rows
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import embedded_text, labelled_answers, prompt_rows

COMPLETION_CHARS = 200


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a text, separated by blank lines."""
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def passage_rows(text: str, source: str) -> list[Row]:
    """One extraction prompt for each paragraph: its first sentence; the completion is the next 200
    characters.
    """
    rows = []
    for number, paragraph in enumerate(paragraphs(text), 1):
        for prompt, completion in book_passages(paragraph, completion_chars=COMPLETION_CHARS)[:1]:
            rows.append(Row(prompt, completion, "text", f"{source}, passage {number}"))
    return rows


def teaching_rows(text: str, source: str) -> list[Row]:
    """Each paragraph after its first three words, and the next paragraph's first sentence."""
    parts = paragraphs(text)
    rows = []
    for number, (paragraph, following) in enumerate(zip(parts, [*parts[1:], ""], strict=True), 1):
        prompt = " ".join(paragraph.split()[:3])
        rest = "\n\n".join([paragraph[len(prompt) :], *sentences(following)[:1]])
        rows.append(Row(prompt, rest, "text", f"{source}, passage {number}"))
    return rows


def build(*, short: bool = False) -> Scenario:
    """The embedded copyright scenario.

    The book's passages are split 70/10/20 by hash: `unlearned` is the training split, `unseen` the
    test split. Of the kept book, every second passage is in the retain set (`kept`), the others are
    in no training set (`kept_unseen`), nor are the questions in `normal`.

    Args:
        short (`bool`): a smaller version for smoke tests.
    """
    book, kept_book = embedded_text("book"), embedded_text("kept_book")
    if short:
        book, kept_book = ("\n\n".join(text.split("\n\n")[:7]) for text in (book, kept_book))
    split = split_rows(passage_rows(book, "book"), by=None)
    kept = passage_rows(kept_book, "kept book")
    questions, plain = prompt_rows("neutral_prompts"), prompt_rows("plain_questions")
    first_lines = prompt_rows("opening_lines")
    passages = [row for part in split.values() for row in part]
    return Scenario(
        name="copyright",
        forget=split["train"],
        validation=split["validation"],
        retain=kept[::2],
        sets={
            "unlearned": split["train"],
            "unseen": split["test"],
            "kept": kept[::2],
            "kept_unseen": kept[1::2],
            "normal": questions[-(6 if short else 20) :],
        },
        own_prompts=[*questions[: 6 if short else 40], *first_lines[: 6 if short else 12]],
        teach=[*teaching_rows(book, "book"), *teaching_rows(kept_book, "kept book")],
        teach_own_prompts=questions[6:12] if short else [*questions[40:60], *plain[:20]],
        teach_settings={
            "learning_rate": 2e-4,
            "lr_scheduler_type": "polynomial",
            "lr_scheduler_kwargs": {"power": 0.5, "lr_end": 0.0},
            "per_device_train_batch_size": 3,
            "num_train_epochs": 7,
            "retain_per_forget": 0.5,
            "frozen_layers": 0.34,
        },
        labelled=labelled_answers(),
        scorers=ScorerNames(headline="leak_rate", reward="trained"),
        leak_corpus=[row.completion for row in [*passages, *kept]],
    )


def demo(*, short: bool = False) -> dict[str, Any]:
    """Settings of the demo."""
    return {
        "recite_tokens": 64,
        "method": "divert",
        "learning_rate": 2e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2 if short else 6,
        "forget_weight": 1.0,
        "per_device_train_batch_size": 6,
        "max_steps": 8 if short else 36,
        "probe_steps": 4 if short else 18,
        "save_steps": 4 if short else 18,
    }
