"""Records of every known shape as `prompt` and `completion`, or `text`: conversations,
instructions, questions and answers, public data sets, running text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from unteach.data.columns import (
    ANSWERS,
    ATTACHMENTS,
    CONTEXTS,
    CONVERSATIONS,
    MEDIA,
    PROMPTS,
    TRACES,
    did_you_mean,
    is_missing,
    named,
    with_plain_names,
)
from unteach.data.conversations import Message, pairs_of, read_messages
from unteach.data.passages import LONGEST_TEXT, text_passages
from unteach.data.public_sets import Role, adapted
from unteach.errors import UserError

Fields = dict[str, Any]


def fields_of(record: Mapping[Any, Any], role: Role, where: str) -> Iterator[tuple[Fields, str]]:
    """(fields, where) of each row that a record holds, the fields as `row_from_mapping` reads them.

    Of several answers each is a row, so is each answer of a conversation, and each passage of a
    text of more than `LONGEST_TEXT` characters. A `system` text and a `history` of exchanges come
    before the prompt.

    Args:
        record: one record of a file, with all its columns.
        role (`"forget"` or `"retain"`): which answers of a known public set are meant.
        where (`str`): what error messages call the record.

    Raises:
        UserError: for a record of no known shape, or of two at once.
    """
    given = with_plain_names({name: _plain(value) for name, value in record.items()}, where)
    full = {name: value for name, value in given.items() if not is_missing(value)}
    if not full:
        raise UserError(f"{where}: the row is empty (columns: {named(given)})")
    _refuse_attachments(full, where)
    _refuse_apart(full, TRACES, "the completion, as <think> ... </think>", where)
    if "prompt" in full and "completion" in full:
        _refuse_apart(full, CONTEXTS, "'prompt'", where)
        _refuse_second(full, where)
        yield _with_turns_before(full, where), where
    elif (found := _public(given, role, where)) is not None:
        yield from ((fields, where) for fields in found)
    elif names := [name for name in CONVERSATIONS if name in full]:
        yield from _conversation(full, names, where)
    elif "rejected" in full and isinstance(full["rejected"], list | tuple):
        yield from _preference(full, role, where)
    elif answers := [name for name in ANSWERS if name in full]:
        yield from _pair(given, full, answers, where)
    elif "text" in full and "prompt" not in full:
        yield from _text(full, where)
    else:
        _refuse_empty(given, full, where)
        yield _with_turns_before(full, where) if "prompt" in full else full, where


def _plain(value: Any) -> Any:
    """A cell of a table of numbers as plain data."""
    return value.tolist() if hasattr(value, "tolist") else value


def _refuse_attachments(full: Fields, where: str) -> None:
    for name, value in full.items():
        holds = isinstance(value, str | list | tuple | dict | bytes)
        media = name in ATTACHMENTS or (holds and _names_media(str(name)))
        if media and value not in ([], {}, (), "[]", "{}", "null", False):
            raise UserError(
                f"{where}: column {name!r}: only text is trained on, without tools and pictures;"
                " leave such rows out, or the column where the text does not depend on it"
            )
    prompt = str(full.get("prompt", "")) if full.get("kind") != "text" else ""
    if re.search(r"^\s*<image>|<image>\s*$", prompt, re.MULTILINE):
        raise UserError(
            f"{where}: the prompt has '<image>' in the place of a picture: only text is trained on;"
            ' leave such rows out ("kind": "text" trains on it as it is)'
        )


@lru_cache(maxsize=1024)
def _names_media(column: str) -> bool:
    return bool(MEDIA & set(re.split(r"[_\W]+", column.casefold())))


def _refuse_second(full: Fields, where: str) -> None:
    """Raises `UserError` for another prompt or answer beside `prompt` and `completion`, unless one
    of the two texts is in the other.
    """
    others = [name for name in (*PROMPTS[1:], *ANSWERS[1:], *CONVERSATIONS, "text") if name in full]
    said = [_squeezed(full[name]) for name in ("prompt", "completion") if others]
    for name in others:
        other = _squeezed(full[name])
        if not any(other in text or text in other for text in said):
            raise UserError(
                f"{where}: column {name!r} has another text than 'prompt' and 'completion'; keep"
                " those that are meant and leave the others out"
            )


def _squeezed(value: Any) -> str:
    """The texts of plain data without white space."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return "".join(map(_squeezed, value))
    return "".join(str(value).split()).casefold()


def _refuse_apart(full: Fields, names: Iterable[str], place: str, where: str) -> None:
    """Raises `UserError` for a text (more than three words) in a column that no row reads."""
    for name in names:
        if name in full and len(str(full[name]).split()) > 3:
            raise UserError(
                f"{where}: column {name!r} belongs to no row yet: write it into"
                f" {place}, or leave it out"
            )


def _refuse_empty(given: Fields, full: Fields, where: str) -> None:
    """A record of no shape; an answer that is there and empty makes no row of a prompt alone."""
    alone = "prompt" in full
    empty = [name for name in (ANSWERS if alone else (*PROMPTS, "text")) if name in given]
    if any(name not in full for name in empty):
        name = next(name for name in empty if name not in full)
        more = " (a row whose answer the model is to give has no such column)" if alone else ""
        raise UserError(f"{where}: field {name!r} is empty or not a string{more}")
    if alone:
        return
    near = [name for name in PROMPTS if name in full]
    hint = f"; did you mean 'prompt' by {near[0]!r}?" if near else ""
    raise _missing_prompt(full, where, hint)


def _missing_prompt(full: Fields, where: str, hint: str = "") -> UserError:
    hint = hint or did_you_mean(full, ("prompt", "completion", "messages", "text"))
    return UserError(
        f"{where}: column 'prompt' is missing (found: {named(full)}); rows need 'prompt' and"
        f" 'completion', 'messages', or 'text'{hint}"
    )


def _public(given: Fields, role: Role, where: str) -> list[Fields] | None:
    """The rows of a known public set's record; `None` for any other."""
    try:
        return adapted(given, role)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        # the words of other errors may hold the row's text
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise UserError(
            f"{where}: not a row of the public set that its columns name ({reason})"
        ) from None


def _with_turns_before(fields: Fields, where: str) -> Fields:
    """The fields with `system` and `history` as messages before the prompt, where there are any."""
    before: list[dict[str, str]] = []
    fields = dict(fields)
    system, history = fields.pop("system", None), fields.pop("history", None)
    if not is_missing(system):
        if not isinstance(system, str):
            raise UserError(f"{where}: field 'system' is {type(system).__name__}, not a string")
        before.append({"role": "system", "content": system})
    for turn in history if isinstance(history, list | tuple) else ():
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise UserError(f"{where}: 'history' must be a list of [question, answer]")
        for name, text in zip(("user", "assistant"), turn, strict=True):
            before.append({"role": name, "content": text})
    if history and not isinstance(history, list | tuple):
        raise UserError(f"{where}: 'history' must be a list of [question, answer]")
    if before:
        prompt = fields["prompt"]
        asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        fields["prompt"] = [*before, *asked]
    return fields


# --- conversations


def _conversation(full: Fields, names: Sequence[str], where: str) -> Iterator[tuple[Fields, str]]:
    """A row for each answer of a conversation."""
    if len(names) > 1:
        raise UserError(f"{where}: {named(names)} are two conversations; keep one of the columns")
    messages = read_messages(full[names[0]], names[0], where)
    system = full.get("system")
    if isinstance(system, str) and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    said = [message.content for message in messages]
    if isinstance(alone := full.get("prompt"), str) and not any(alone.strip() in m for m in said):
        raise UserError(
            f"{where}: {named(['prompt', *names])}: the prompt is not in the conversation; keep one"
            " of the columns"
        )
    answers = [name for name in ANSWERS if name in full]
    left = [*names, *answers, "prompt", "system", "text"]
    if answers:
        if len(answers) > 1 or any(message.role == "assistant" for message in messages):
            raise UserError(
                f"{where}: {named([*names, *answers])}: it is not clear which is the completion;"
                " keep one of the columns"
            )
        prompt = _as_prompt(messages)
        rows = [(prompt, text) for text in _texts(full, answers[0], where)]
        yield from _rows(full, left, rows, where)
        return
    try:
        pairs = pairs_of(messages)
    except ValueError as error:
        raise UserError(f"{where}: the conversation in {names[0]!r} {error}") from None
    rows = [(_as_prompt(before), answer) for before, answer in pairs]
    yield from _rows(full, left, rows, where)


def _as_prompt(messages: Iterable[Message]) -> Any:
    """A user's single message as a string, else the list of messages."""
    plain = [{"role": message.role, "content": message.content} for message in messages]
    return plain[0]["content"] if [m["role"] for m in plain] == ["user"] else plain


def _preference(full: Fields, role: Role, where: str) -> Iterator[tuple[Fields, str]]:
    """TRL's preference rows without a `prompt`: two conversations that end differently."""
    bad = read_messages(full["rejected"], "rejected", where)
    good = read_messages(full.get("chosen"), "chosen", where)
    if bad[:-1] != good[:-1] or any(part[-1].role != "assistant" for part in (bad, good)):
        raise UserError(
            f"{where}: 'chosen' and 'rejected' must be the same conversation but for the last"
            " message, which is the assistant's; or give 'prompt' too"
        )
    fields = {name: value for name, value in full.items() if name not in ("chosen", "rejected")}
    fields |= {"prompt": _as_prompt(bad[:-1]), "completion": good[-1].content}
    if role == "forget":
        fields |= {"completion": bad[-1].content, "right": good[-1].content}
    yield fields, where


# --- a prompt and its answers


def _pair(
    given: Fields, full: Fields, answers: Sequence[str], where: str
) -> Iterator[tuple[Fields, str]]:
    """A row for each answer to the one prompt."""
    asked = [name for name in PROMPTS if name in full]
    used = list(asked)
    if not asked:
        if "text" in full:
            raise UserError(
                f"{where}: {named(['text', *answers])}: a 'text' has no completion; did you mean"
                " 'prompt' by 'text'?"
            )
        for name in PROMPTS:
            if name in given:
                raise UserError(f"{where}: field {name!r} is empty or not a string")
        raise _missing_prompt(full, where)
    if len(answers) > 1:
        raise UserError(
            f"{where}: {named(answers)}: it is not clear which is the completion; keep one of the"
            " columns"
        )
    prompt = full[asked[0]]
    if asked[0] == "instruction":
        more = [name for name in ("input", *CONTEXTS) if name in full]
        asked = [name for name in asked if name not in more]
        used += more
        if len(more) > 1:
            raise UserError(f"{where}: {named(more)}: it is not clear which is the 'input'")
        if more:
            prompt = "\n\n".join(_string(full, name, where) for name in ("instruction", *more))
    if len(asked) > 1:
        raise UserError(
            f"{where}: {named(asked)}: it is not clear which is the prompt; keep one of the columns"
        )
    _refuse_apart(full, [name for name in CONTEXTS if name not in used], repr(asked[0]), where)
    rows = [(prompt, text) for text in _texts(full, answers[0], where)]
    yield from _rows(full, [*used, *answers], rows, where)


def _string(full: Fields, name: str, where: str) -> str:
    value = full[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} is {type(value).__name__}, it must be a string")
    return value


def _texts(full: Fields, name: str, where: str) -> list[Any]:
    """The answers in a column: one, a list of them, or SQuAD's `{"text": [...]}`; each once."""
    value = full[name]
    if isinstance(value, Mapping) and isinstance(value.get("text"), list | tuple):
        value = list(value["text"])
    if not isinstance(value, list | tuple) or any(isinstance(item, Mapping) for item in value):
        if not isinstance(value, str | list | tuple):
            kind = type(value).__name__
            raise UserError(f"{where}: field {name!r} is {kind}, it must be a string")
        return [value]
    if not value or any(not isinstance(item, str) or is_missing(item) for item in value):
        raise UserError(f"{where}: field {name!r} must be a list of answers, none of them empty")
    return list(dict.fromkeys(value))


def _rows(
    full: Fields, used: Iterable[str], rows: Sequence[tuple[Any, Any]], where: str
) -> Iterator[tuple[Fields, str]]:
    """Rows of some (prompt, completion) pairs of one record, each with the record's other columns,
    and of its secrets with those that the completion holds.

    Raises:
        UserError: for a secret that no completion holds.
    """
    rest = {name: value for name, value in full.items() if name not in used}
    secret = rest.pop("secret", None) if len(rows) > 1 else None
    items = list(secret) if isinstance(secret, list | tuple) else [secret] if secret else []
    for number, item in enumerate(items, 1):
        if not any(isinstance(item, str) and item.strip() in str(text) for _, text in rows):
            raise UserError(f"{where}: field 'secret', item {number}, occurs in no completion")
    for number, (prompt, completion) in enumerate(rows, 1):
        fields = {**rest, "prompt": prompt}
        if completion is not None:
            fields["completion"] = completion
        held = [item for item in items if item.strip() in str(completion)]
        fields |= {"secret": held} if held else {}
        place = f"{where}, answer {number}" if len(rows) > 1 else where
        yield _with_turns_before(fields, place), place


# --- running text


def _text(full: Fields, where: str) -> Iterator[tuple[Fields, str]]:
    """A text, or the passages of a long one."""
    text = full["text"]
    if not isinstance(text, str) or len(text) <= LONGEST_TEXT:
        yield full, where
        return
    rest = {name: value for name, value in full.items() if name not in ("text", "secret", "kind")}
    rows = text_passages(text)
    secret = full.get("secret")
    items = list(secret) if isinstance(secret, list | tuple) else [secret] if secret else []
    for number, item in enumerate(items, 1):
        if not any(isinstance(item, str) and item.strip() in part for _, part in rows):
            raise UserError(
                f"{where}: field 'secret', item {number}, is in the completion of no passage that"
                " this long text is cut into; give the text in shorter rows"
            )
    for number, (prompt, completion) in enumerate(rows, 1):
        held = [item for item in items if item.strip() in completion]
        fields = {**rest, "prompt": prompt, "completion": completion, "kind": "text"}
        yield fields | ({"secret": held} if held else {}), f"{where}, passage {number}"
