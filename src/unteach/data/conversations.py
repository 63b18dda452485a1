"""Conversations: lists of messages, as chats and data sets write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unteach.errors import UserError

ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "bard", "bing"),
    "system": ("system",),
    "developer": ("developer",),
}
"""The roles that a conversation may have, and what data sets call them."""
TOOL_ROLES = re.compile(r"tool|function|observation|ipython", re.IGNORECASE)
NOT_TEXT = re.compile(
    r"tool|function|image|audio|video|file|attachment|reason|think|refusal", re.IGNORECASE
)
"""Fields of a message beside its content that say more than the content does."""


@dataclass(frozen=True)
class Message:
    """One message; `trained` is false where the data says that it is only context."""

    role: str
    content: str
    trained: bool = True


def read_messages(value: Any, field: str, where: str) -> list[Message]:
    """The messages of a list: `role` and `content`, or ShareGPT's `from` and `value`.

    A content may be a list of parts of type `text`. A message of `weight` 0 (or `train` false) is
    context only.

    Args:
        value: the list.
        field (`str`): the column that holds it, for messages.
        where (`str`): what error messages call the record.

    Raises:
        UserError: for what is no list of messages, and for tool calls, images and whatever else a
            message holds beside text.
    """
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        raise UserError(f"{where}: field {field!r} is {kind}, it must be a list of messages")
    messages = [
        _message(item, f"{where}: message {n} of {field!r}") for n, item in enumerate(value, 1)
    ]
    if not any(message.content.strip() for message in messages):
        raise UserError(f"{where}: {field!r} is an empty list of messages, or they say nothing")
    return messages


def _message(item: Any, where: str) -> Message:
    names = next(
        (
            pair
            for pair in (("role", "content"), ("from", "value"))
            if isinstance(item, Mapping) and set(pair) <= set(item)
        ),
        None,
    )
    if not names:
        found = f"found {', '.join(map(repr, list(item)[:6]))}" if isinstance(item, Mapping) else ""
        found = found or f"found {type(item).__name__}"
        raise UserError(f"{where} must be a message with 'role' and 'content' ({found})")
    role = str(item[names[0]])
    if TOOL_ROLES.search(role):
        raise UserError(
            f"{where} has the role {role!r}: tool calls and their results are not supported; leave"
            " such conversations out"
        )
    for name, value in item.items():
        if name not in names and value not in (None, "", [], {}) and NOT_TEXT.search(str(name)):
            raise UserError(
                f"{where} has {name!r}: only the text of messages is trained on, and nothing of it"
                " is dropped; write what is said into 'content', or leave the row out"
            )
    known = next((known for known, others in ROLES.items() if role.casefold() in others), "")
    if not known:
        raise UserError(f"{where} has the role {role[:40]!r}, it must be system, user or assistant")
    trained = item.get("weight") != 0 and item.get("train") is not False
    return Message(known, _content(item[names[1]], names[1], where), trained)


def _content(value: Any, name: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: {name!r} is {type(value).__name__}, it must be a string")
    texts = []
    for part in value:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise UserError(
                f"{where} holds a part of type {str(kind)[:40]!r}: only text is trained on; leave"
                " such rows out"
            )
        texts.append(text)
    return "".join(texts)


def pairs_of(messages: Sequence[Message]) -> list[tuple[tuple[Message, ...], str | None]]:
    """(messages before, answer) of each answer of the assistant that is trained on; a conversation
    without an answer is one prompt with `None`.

    Raises:
        ValueError: for a conversation whose order of roles no prompt and answer follow from.
    """
    found: list[tuple[tuple[Message, ...], str | None]] = []
    for number, message in enumerate(messages):
        before = tuple(messages[:number])
        if message.role != "assistant":
            continue
        if not any(other.role == "user" for other in before):
            raise ValueError("begins with an answer; put a message of the user before it")
        if before[-1].role == "assistant":
            raise ValueError("has two answers one after the other; make them one message")
        if message.trained:
            found.append((before, message.content))
    answered = any(message.role == "assistant" for message in messages)
    if answered and messages[-1].role != "assistant":
        raise ValueError(f"ends with the role {messages[-1].role!r}; end it with an answer")
    if answered and not found:
        raise ValueError("has no answer to train on: the weight of each is 0")
    return found or [(tuple(messages), None)]
