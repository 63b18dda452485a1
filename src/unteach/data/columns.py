"""Names of columns: which have a meaning, which label a row, and what a user meant by others."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from unteach.errors import UserError

FIELDS = ("prompt", "completion", "text", "kind", "right", "alternate", "secret", "avoid")
"""The fields of a record that have a meaning here; all others are columns."""
PROMPTS = ("prompt", "instruction", "question", "query", "input")
ANSWERS = ("completion", "response", "output", "answer", "answers")
CONVERSATIONS = ("messages", "conversations", "conversation")
CONTEXTS = ("context", "passage", "document", "article", "background")
"""Columns of a text that belongs to the prompt, though nothing says how."""
TRACES = ("reasoning", "reasoning_content", "thinking", "rationale", "cot", "chain_of_thought")
"""Columns of a reasoning trace, which belongs into the completion."""
ATTACHMENTS = """
tools functions tool_calls function_call images image audio audios video videos
""".split()  # noqa: SIM905
"""Columns of what is not text."""
MEDIA = {"image", "images", "img", "picture", "pixel", "pixels", "audio", "video"}
"""Words in the names of columns whose texts, lists or bytes stand for what is not text."""
KNOWN = {
    *(name for name in FIELDS if name != "kind"),
    *PROMPTS,
    *ANSWERS,
    *CONVERSATIONS,
    *CONTEXTS,
    *TRACES,
    *ATTACHMENTS,
    *("system", "history", "chosen", "rejected", "is_safe", "choices"),
    *("best_answer", "incorrect_answers", "right_answer", "hallucinated_answer"),
    *(f"{start}response_{i}{end}" for i in (0, 1) for start, end in (("", ""), ("is_", "_safe"))),
}
"""Columns that some shape of a record reads."""
LABELS = """
id idx index key row uid uuid hash no number count order seed name person people entity author user
group category subcategory topic subtopic subject theme aspect field area domain kind type style
task tag tags set split fold part section chapter page book source file filename path url link title
dataset origin license language lang locale country gender level difficulty date year time timestamp
created updated version variant template score rating weight priority length tokens note notes
comment comments meta metadata info severity_level is_safe
""".split()  # noqa: SIM905
"""Columns that a row of a prompt alone may have: they say of the prompt which one it is."""
MEANT = {
    "completion": (
        *("reply", "continuation", "generation", "generated", "generated_text", "target", "label"),
        *("gold", "result", "assistant", "bot", "model_output", "model_answer", "bad_answer"),
        *("bad_completion", "answer_text", "final_answer", "text", "chosen", "rejected", "value"),
        *("summary", "body", "content"),
    ),
    "prompt": ("promt", "promts", "prompts", "human", "request", "inputs", "questions"),
    "text": ("content", "body", "passage", "document", "article", "story", "paragraph", "texts"),
    "messages": ("message", "dialog", "dialogue", "chat", "turns", "chats"),
    "secret": ("secrets", "secret_text", "facts", "fact", "pii"),
}
"""Other names of a field."""
SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]}]*\s*$")
SENTENCE_MARKS = "\n\u3002\uff01\uff1f"  # line breaks; the ends of sentences in Chinese
MOST_WORDS = 12
LONGEST_COLUMN = 200
"""Longest value, in characters, of a column that a row keeps."""


def plain_name(name: Any) -> Any:
    """A column's name as it is known: without differences of case and of space around and within
    it, where some shape of a record reads it so.
    """
    plain = "_".join(name.split()).casefold() if isinstance(name, str) else name
    return plain if plain in KNOWN else name


def with_plain_names(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record with `plain_name` of its columns.

    Raises:
        UserError: where two columns have one name.
    """
    found: dict[str, Any] = {}
    for name, value in record.items():
        plain = plain_name(name)
        if plain in found:
            raise UserError(f"{where}: two columns are named {plain!r}; leave one of them out")
        found[plain] = value
    return found


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, not a number, or white space alone."""
    if isinstance(value, str):
        return not value.strip()
    no_number = isinstance(value, float) and value != value
    return value is None or no_number or type(value).__name__ in ("NAType", "NaTType")


def named(names: Iterable[Any]) -> str:
    """The names of columns, for a message. Where the header line is missing they are a row's own
    text, which no message may carry.
    """
    names = list(names)
    if any(not isinstance(name, str) or len(name) > 40 or name.count(" ") > 3 for name in names):
        return f"{len(names)} columns whose names read like text; is the header line missing?"
    return ", ".join(map(repr, names[:20])) or "none"


def meant(name: Any, wanted: Iterable[str]) -> str:
    """Which of the fields `wanted` a user means by a column of another name; empty if none."""
    plain = "_".join(str(name).split()).casefold()
    for field in wanted:
        if plain in MEANT.get(field, ()) or plain.strip("s_") == field:
            return field
    near = difflib.get_close_matches(plain, list(wanted), n=1, cutoff=0.75)
    return near[0] if near else ""


def did_you_mean(names: Iterable[Any], wanted: Iterable[str]) -> str:
    """A clause that says which column may be meant as one of the fields; empty if none is near."""
    wanted = list(wanted)
    for name in names:
        if isinstance(name, str) and len(name) <= 40 and (field := meant(name, wanted)):
            return f"; did you mean {field!r} by {name!r}?"
    return ""


def check_prompt_alone(fields: Mapping[str, Any], where: str) -> None:
    """Refuses columns beside a prompt alone that may be the answer to it: a row of a prompt alone
    has only fields and `LABELS`, and a label holds neither a sentence nor an answer by its name.

    Raises:
        UserError: naming the column.
    """
    allowed = {*FIELDS, *LABELS} - {"completion", "text"}
    others = [
        name
        for name, value in fields.items()
        if not is_missing(value)
        and "_".join(str(name).split()).casefold() not in allowed
        and not str(name).casefold().endswith(("_id", "_index", "_idx"))
    ]
    if others:
        hint = did_you_mean(others, ("completion", "secret", "right"))
        raise UserError(
            f"{where}: a prompt without a 'completion' cannot have the column(s) {named(others)},"
            f" whose meaning is not known{hint or '; is it the completion? rename or remove it'}"
        )
    for name, value in fields.items():
        if name not in FIELDS and any(map(_is_sentence, _texts_of(value))):
            raise UserError(
                f"{where}: a prompt without a 'completion' has a text in the column {name!r}, which"
                " no run reads; name it 'completion' if it is the answer, or leave it out"
            )


def _texts_of(value: Any) -> list[str]:
    """The texts of a column's value; a line break ends one that is an answer by its name."""
    if isinstance(value, Mapping):
        named = [f"{value[name]}\n" for name in ANSWERS if not is_missing(value.get(name))]
        return named + [text for item in value.values() for text in _texts_of(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts_of(item)]
    return [value.strip()] if isinstance(value, str) else []


def _is_sentence(text: str) -> bool:
    """Whether a text is more than a label: by its end, a line break or many words. Martin Luther
    King Jr. is a name: each word has a capital.
    """
    words = text.split()
    lower = any(word[0].isalpha() and not word[0].isupper() for word in words)
    ends = lower and len(words) > 3 and SENTENCE_END.search(text)
    return bool(ends or len(words) > MOST_WORDS or any(mark in text for mark in SENTENCE_MARKS))


def labels_of(rows: Iterable[Any]) -> str:
    """A clause that names the columns of rows of a prompt alone; empty if they have none."""
    names = sorted({name for row in rows for name in row.columns})
    return f", column(s) {named(names)} only label the prompt" if names else ""


def check_near_misses(fields: Mapping[str, Any], where: str) -> None:
    """Refuses a column that is nearly `secret`, an optional field that a row would do without.

    Raises:
        UserError: naming the column and the field.
    """
    for name, value in fields.items():
        plain = str(name).casefold()
        near = plain != "secret" and difflib.SequenceMatcher(None, plain, "secret").ratio() > 0.8
        if near and "secret" not in fields and not is_missing(value):
            raise UserError(f"{where}: column {name!r} is unknown; did you mean 'secret'?")


def short_columns(record: Mapping[str, Any]) -> dict[str, str]:
    """The record's columns beside `FIELDS` whose values are short strings, numbers or flags; a
    `kind` other than `chat` and `text` is a column too.
    """
    found = {}
    for name, value in record.items():
        number = isinstance(value, int | float) and abs(value) < 1e300  # neither NaN nor endless
        own = name not in FIELDS or (name == "kind" and value not in ("chat", "text"))
        if isinstance(name, str) and own and (number or isinstance(value, str)):
            text = str(value).strip()
            if 0 < len(text) <= LONGEST_COLUMN and text.isprintable():
                found[name] = text
    return found
