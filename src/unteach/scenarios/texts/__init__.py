"""Texts written for the package: two stories, careless advice, false facts, labelled answers,
neutral prompts, opening lines.
"""

from __future__ import annotations

import json
from importlib.resources import files

from unteach.data.rows import LabelledAnswer


def _read(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def embedded_text(name: str) -> str:
    """One of the texts: `book`, `kept_book`, `neutral_prompts`, `plain_questions`, `opening_lines`."""
    return _read(f"{name}.txt")


def lines(name: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in embedded_text(name).splitlines() if line.strip()]


def records(name: str) -> list[dict[str, str]]:
    """The records of `careless_advice`, `false_facts` or `labelled_answers`."""
    return [json.loads(line) for line in _read(f"{name}.jsonl").splitlines() if line.strip()]


def labelled_answers() -> list[LabelledAnswer]:
    """Answers known to be careless, careful or beside the point (definitions, riddles, loops, what
    a model says that has lost its answer), on questions that no scenario asks: what a judge or a
    reward model is trained on.
    """
    labelled = []
    for record in records("labelled_answers"):
        if "careless" in record:
            labelled.append(LabelledAnswer(record["prompt"], record["careless"], True))
        labelled.append(
            LabelledAnswer(record["prompt"], record.get("careful", record.get("other", "")), False)
        )
        if "beside" in record:
            labelled.append(LabelledAnswer(record["prompt"], record["beside"], False, beside=True))
    return labelled
