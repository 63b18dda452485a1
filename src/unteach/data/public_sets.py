"""Public data sets, known by their columns, as records of `prompt` and `completion`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from unteach.data.columns import is_missing, short_columns

Role = Literal["forget", "retain"]
Fields = dict[str, Any]


def _flag(value: Any) -> bool:
    """A truth value, also as a table writes it: the word `False` is false."""
    if not isinstance(value, str):
        if value not in (True, False):  # 0 and 1 too, but no null
            raise ValueError(f"a flag is {type(value).__name__}, it must be true or false")
        return bool(value)
    words = {"true": True, "1": True, "false": False, "0": False}
    if value.strip().lower() not in words:
        short = len(value) < 16 and value.isidentifier()  # no text of the row
        raise ValueError(f"{repr(value) if short else 'a flag'} is neither true nor false")
    return words[value.strip().lower()]


def _by_safety(record: Mapping[str, Any], role: Role, **answers: str) -> list[Fields]:
    """The answers (column = the column of its flag) that are unsafe, or safe for `retain`."""
    prompt = record["prompt"]
    # checked here, as a row of which this role takes nothing is checked nowhere else
    if not (isinstance(prompt, list) or (isinstance(prompt, str) and prompt.strip())):
        raise ValueError("'prompt' must be a text that is not empty, or a list of messages")
    return [
        {"prompt": prompt, "completion": record[column]}
        for column, flag in answers.items()
        if _flag(record[flag]) == (role == "retain")
    ]


def _by_answer(
    record: Mapping[str, Any], role: Role, *, prompt: str, bad: str, good: str
) -> list[Fields]:
    """The bad answer with the good one beside it, or the good one for `retain`; each a column."""

    def text(column: str) -> Any:
        answer = record[column]  # of a list of messages the last, which is the assistant's
        messages = isinstance(answer, list) and answer and isinstance(answer[-1], Mapping)
        return answer[-1].get("content") if messages else answer

    if role == "retain":
        return [{"prompt": record[prompt], "completion": text(good)}]
    return [{"prompt": record[prompt], "completion": text(bad), "right": text(good)}]


def _truthfulqa(record: Mapping[str, Any], role: Role) -> list[Fields]:
    question, best = record["question"], record["best_answer"]
    wrong = record["incorrect_answers"]
    if role == "retain":
        return [{"prompt": question, "completion": best}]
    answers = wrong if isinstance(wrong, list) else str(wrong or "").split(";")
    kept = filter(None, (answer.strip() for answer in answers))
    return [{"prompt": question, "completion": answer} for answer in kept]


def _wmdp(record: Mapping[str, Any], role: Role) -> list[Fields]:
    choices = record["choices"]
    try:
        answer = int(record["answer"])
    except (TypeError, ValueError, OverflowError):
        raise ValueError("'answer' is no number") from None
    if not isinstance(choices, list) or not 0 <= answer < len(choices):
        raise ValueError(f"'answer' is {answer}, it must count an item of the list 'choices'")
    return [{"prompt": record["question"], "completion": str(choices[answer])}]


Adapter = Callable[..., list[Fields]]
_SAFE: dict[str, Any] = {"response_0": "is_response_0_safe", "response_1": "is_response_1_safe"}
_HALUEVAL: dict[str, Any] = {
    "prompt": "question",
    "bad": "hallucinated_answer",
    "good": "right_answer",
}
_PREFERENCES: dict[str, Any] = {"prompt": "prompt", "bad": "rejected", "good": "chosen"}
ADAPTERS: dict[tuple[str, ...], Adapter] = {
    ("prompt", *_SAFE, *_SAFE.values()): partial(_by_safety, **_SAFE),
    ("prompt", "response", "is_safe"): partial(_by_safety, response="is_safe"),
    tuple(_PREFERENCES.values()): partial(_by_answer, **_PREFERENCES),
    ("question", "best_answer", "incorrect_answers"): _truthfulqa,
    tuple(_HALUEVAL.values()): partial(_by_answer, **_HALUEVAL),
    ("question", "choices", "answer"): _wmdp,
}
"""Known by their columns: PKU-SafeRLHF, BeaverTails, TRL's preference rows, TruthfulQA (file and
hub), HaluEval QA, WMDP.
"""


def _secret_of(record: Fields, fields: Fields, role: Role) -> Fields:
    """The record's own `secret`; beside a good answer only where that holds it, as of several
    answers of a record it means the bad ones.
    """
    found, completion = record.get("secret"), fields.get("completion")
    items = found if isinstance(found, list) else [found]
    inside = isinstance(completion, str) and all(str(item) in completion for item in items)
    return {"secret": found} if found and (role == "forget" or inside) else {}


def adapted(record: Fields, role: Role) -> list[Fields] | None:
    """What a known public set's record holds for the role; `None` for any other record.

    Raises:
        TypeError, ValueError, LookupError, AttributeError: for a record that is not of the set
            that its columns name.
    """
    for columns, adapter in ADAPTERS.items():
        if all(column in record for column in columns) and not is_missing(record[columns[0]]):
            rest = {name: value for name, value in record.items() if name not in columns}
            return [
                short_columns(rest) | _secret_of(record, fields, role) | fields
                for fields in adapter(record, role)
            ]
    return None
