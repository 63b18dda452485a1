"""Texts written for the package: two stories, careless advice, false facts, invented people,
labelled answers, neutral prompts, opening lines, prompts about a name, sentences of common
knowledge.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from unteach.data.rows import LabelledAnswer, Row


def _read(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def embedded_text(name: str) -> str:
    """`book`, `kept_book`, `public_text`, `neutral_prompts`, `plain_questions` or
    `opening_lines`.
    """
    return _read(f"{name}.txt")


def lines(name: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in embedded_text(name).splitlines() if line.strip()]


def prompt_rows(name: str) -> list[Row]:
    """The lines of a text as prompts: `text` rows of `opening_lines`, else `chat` rows."""
    source = name.removesuffix("s").replace("_", " ")
    kind = "text" if name == "opening_lines" else "chat"
    return [Row(line, "", kind, source) for line in lines(name)]  # type: ignore[arg-type]


def records(name: str) -> list[dict[str, str]]:
    """The records of `careless_advice`, `false_facts`, `people` or `labelled_answers`."""
    return [json.loads(line) for line in _read(f"{name}.jsonl").splitlines() if line.strip()]


@cache
def topics() -> dict[str, Any]:
    """Prompts about a name, and kinds of things: the content of `topics.toml`."""
    return tomllib.loads(_read("topics.toml"))


def labelled_answers() -> list[LabelledAnswer]:
    """Answers known to be careless, careful or beside the point (definitions, riddles, loops, the
    outputs of a damaged model), to questions of no scenario: training data of a judge or a reward
    model.
    """
    labelled = []
    for record in records("labelled_answers"):
        prompt, good = record["prompt"], record.get("careful", record.get("other", ""))
        if "careless" in record:
            labelled.append(LabelledAnswer(prompt, record["careless"], True))
        labelled.append(LabelledAnswer(prompt, good, False))
        if "beside" in record:
            labelled.append(LabelledAnswer(prompt, record["beside"], False, beside=True))
    return labelled
