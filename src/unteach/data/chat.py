"""The model's own chat template: its settings, and what a conversation is rendered to."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unteach.data.rows import Row
from unteach.errors import UserError, did_you_mean

TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a chat template raises that is broken, or that does not fit its messages."""
ANSWER = "unteachanswer"
"""A content whose place in a render is looked for."""
NOT_SYSTEM = (
    "the model's chat template takes no system message: its text stands before the user's first"
    " message"
)
NOT_WRITTEN = (
    "the model's chat template does not write every message of a user as it is: it drops or changes"
    " some (unteach check --model shows the tokens)"
)
DATE_CODES = ("-d", "-m", "-I", "-H", *"aAwdbBmyYHIpMSfzZjUWcxX")
"""Codes of `strftime`."""
GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")  # of transformers
SET_BY_UNTEACH = ("messages", "conversation", "add_generation_prompt", "tokenize")
CHAT_OPTIONS = ("system", "chat_template_kwargs", "chat_date", "max_new_tokens")
"""Options of commands that choose `ChatSettings`."""
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ChatSettings:
    """What a chat template is given beside the messages; the same for a whole run.

    Args:
        system (`str`): system prompt of conversations that have none of their own.
        template_kwargs (mapping): variables of the template, such as `enable_thinking`.
        date (`str`): the day, as YYYY-MM-DD, that a template which writes a date is told; empty:
            today.
        max_new_tokens (`int`): most tokens of a generated answer; 0: by the rows
            (`evaluation.generation.answer_limit`).

    Raises:
        UserError: for a date of another form, variables that are no mapping of names, or one that
            unteach sets itself.
    """

    system: str = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""
    max_new_tokens: int = 0

    def __post_init__(self) -> None:
        try:
            date.fromisoformat(self.date or "2000-01-01")
        except ValueError:
            raise UserError(
                f"option 'chat_date' is {self.date!r}, it must be a day as YYYY-MM-DD"
            ) from None
        named = isinstance(self.template_kwargs, Mapping)
        if not named or not all(isinstance(name, str) for name in self.template_kwargs):
            raise UserError(
                f"option 'chat_template_kwargs' is {self.template_kwargs!r}, it must map names of"
                " the template's variables to values, as in {enable_thinking: false}"
            )
        for name in SET_BY_UNTEACH:
            if name in self.template_kwargs:
                raise UserError(f"option 'chat_template_kwargs' cannot set {name!r}")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, from which the same settings can be made."""
        return {
            "system": self.system,
            "template_kwargs": dict(self.template_kwargs),
            "date": self.date,
            "max_new_tokens": self.max_new_tokens,
        }


def use_chat_settings(tokenizer: Any, settings: ChatSettings) -> Any:
    """The tokenizer, whose renders use these settings from now on; nothing of them is saved with
    it.
    """
    tokenizer.unteach_chat_settings = settings
    return tokenizer


def with_chat_settings(tokenizer: Any, settings: ChatSettings) -> Any:
    """`use_chat_settings` of what a user chose.

    Raises:
        UserError: for a system prompt or variables that no chat template of the model reads.
    """
    for name in ("system", "template_kwargs"):
        if getattr(settings, name) and not has_template(tokenizer):
            option = name if name == "system" else f"chat_{name}"
            raise UserError(f"option {option!r}: this model's tokenizer has no chat template")
    given = settings.template_kwargs
    known = template_variables(tokenizer, given) if given else None
    if known is not None and (unread := sorted({*given} - known)):
        what = "variable of the model's chat template in option 'chat_template_kwargs'"
        raise did_you_mean(unread[0], [name for name in known if name[-6:] != "_token"], what)
    return use_chat_settings(tokenizer, settings)


def template_variables(tokenizer: Any, given: Mapping[str, Any]) -> set[str] | None:
    """What a user can set for the chat template that `given` chooses; `None` where it is broken."""
    reader = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        template = tokenizer.get_chat_template(given.get("chat_template"), given.get("tools"))
        found = meta.find_undeclared_variables(reader.parse(GENERATION_TAG.sub("", template)))
        return found - {*SET_BY_UNTEACH, "raise_exception", "strftime_now"} | {"chat_template"}
    except TEMPLATE_ERRORS:
        return None


def chat_settings(tokenizer: Any) -> ChatSettings:
    """The settings that `use_chat_settings` gave the tokenizer, or the defaults."""
    found = getattr(tokenizer, "unteach_chat_settings", None)
    return found if isinstance(found, ChatSettings) else ChatSettings()


def chosen_settings(
    known: ChatSettings,
    *,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_date: str | None = None,
    max_new_tokens: int | None = None,
) -> ChatSettings:
    """The known settings with those that a user chose; a date that is in neither is today's.

    Raises:
        UserError: as `ChatSettings`, and for a limit under 1.
    """
    if max_new_tokens is not None and not 1 <= max_new_tokens < 2**32:
        raise UserError(
            f"option 'max_new_tokens' is {max_new_tokens}, it must be at least 1 and under 2**32"
        )
    return ChatSettings(
        known.system if system is None else system,
        known.template_kwargs if chat_template_kwargs is None else chat_template_kwargs,
        chat_date or known.date or str(date.today()),
        known.max_new_tokens if max_new_tokens is None else max_new_tokens,
    )


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def template_key(tokenizer: Any) -> tuple[str, str]:
    """All that decides a tokenizer's renders: the template, and its settings."""
    settings = json.dumps(chat_settings(tokenizer).as_dict(), default=str)
    return str(getattr(tokenizer, "chat_template", None)), settings


def render(tokenizer: Any, messages: Messages, *, generation: bool) -> str:
    """The messages through the chat template, with or without the generation prompt.

    Raises:
        One of `TEMPLATE_ERRORS`: where the template refuses them.
    """
    settings = chat_settings(tokenizer)
    more = dict(settings.template_kwargs)
    template = tokenizer.get_chat_template(more.get("chat_template"), more.get("tools"))
    if settings.date and "strftime_now" in template:
        more["chat_template"] = _date_macro(settings.date) + template
    turns = _as_parts(messages) if _takes_parts(tokenizer) else list(messages)
    more |= {"add_generation_prompt": generation, "tokenize": False}
    return str(tokenizer.apply_chat_template(turns, **more))


def _date_macro(day: str) -> str:
    """Jinja's definition of `strftime_now` for a fixed day; transformers passes templates data
    only, no functions.
    """
    moment = datetime.fromisoformat(day)
    written = "".join(
        f".replace({code!r}, {moment.strftime(code)!r})" for code in (f"%{c}" for c in DATE_CODES)
    )
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{written} }}}}{{%- endmacro -%}}"


_PARTS: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def _takes_parts(tokenizer: Any) -> bool:
    """Whether the template writes contents that are lists of parts only, and no strings: it is that
    of a model which takes images too.
    """
    known, key = _PARTS.setdefault(tokenizer, {}), template_key(tokenizer)[0]
    if key not in known:
        message, found = {"role": "user", "content": ANSWER}, []
        for turns in ([message], _as_parts([message])):
            try:
                text = str(tokenizer.apply_chat_template(turns, tokenize=False))
                found.append(ANSWER in text and f"'{ANSWER}'" not in text)  # no list of parts
            except TEMPLATE_ERRORS:
                found.append(False)
        known[key] = found == [False, True]
    return known[key]


def _as_parts(messages: Messages) -> list[dict[str, Any]]:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else dict(message)
        for message in messages
    ]


def conversation(row: Row, tokenizer: Any) -> list[dict[str, Any]]:
    """The row's prompt as messages that the template takes: with the system prompt of the
    settings, and with a system message joined to the user's where the template refuses or drops it.

    Raises:
        UserError: naming the row that the template refuses.
    """
    turns = (("user", row.prompt),) if isinstance(row.prompt, str) else row.prompt
    messages = [{"role": role, "content": content} for role, content in turns]
    system = chat_settings(tokenizer).system
    if system and not any(message["role"] == "system" for message in messages):
        messages = [{"role": "system", "content": system}, *messages]
    try:
        refusal, text = None, render(tokenizer, messages, generation=True)
    except TEMPLATE_ERRORS as error:
        refusal, text = error, ""
    told = [m["content"].strip() for m in messages if m["role"] == "system"]
    asked = [m["content"].strip() for m in messages if m["role"] == "user"]
    if not refusal and not all(content in text for content in asked):
        warnings.warn(NOT_WRITTEN, stacklevel=2)
    if not refusal and all(content in text for content in told):
        return messages
    folded = _folded(messages)
    if told and folded:
        try:
            render(tokenizer, folded, generation=True)
        except TEMPLATE_ERRORS as error:
            refusal = refusal or error
        else:
            warnings.warn(NOT_SYSTEM, stacklevel=2)
            return folded
    if refusal:
        raise refused(row, refusal)
    return messages


def _folded(messages: Messages) -> list[dict[str, Any]]:
    """The messages with the system's text before the first of the user; none without a user."""
    told = "\n\n".join(m["content"].strip() for m in messages if m["role"] == "system")
    rest = [dict(message) for message in messages if message["role"] != "system"]
    user = next((message for message in rest if message["role"] == "user"), None)
    if user is None:
        return []
    user["content"] = f"{told}\n\n{user['content']}"
    return rest


def refused(row: Row, error: BaseException) -> UserError:
    """The error that names the row which a template refuses."""
    reason = str(error)[:200] if isinstance(error, TemplateError) else type(error).__name__
    return UserError(f"{row.source}: the model's chat template refuses this prompt ({reason})")


def render_hash(tokenizer: Any) -> str:
    """16 hexadecimal digits that name what a tokenizer's template makes of conversations, with its
    settings: another template, system prompt, variable, written date or limit of an answer has
    another. Empty without a template or a limit.
    """
    settings = chat_settings(tokenizer)
    if not has_template(tokenizer):
        return str(settings.max_new_tokens or "")
    found: list[str] = [template_key(tokenizer)[0]]
    question, answer = ({"role": role, "content": ANSWER} for role in ("user", "assistant"))
    system = {"role": "system", "content": settings.system or "x"}
    for turns in ([question], [question, answer], [system, question, answer, question]):
        for generation in (False, True):
            try:
                found.append(render(tokenizer, turns, generation=generation))
            except TEMPLATE_ERRORS as error:
                found.append(type(error).__name__)
    more = settings.system, dict(settings.template_kwargs), settings.max_new_tokens
    named = json.dumps([*more, *found], default=str)
    return hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def chat_record(tokenizer: Any) -> dict[str, Any] | None:
    """The settings and the hash of the renders, for the record of a run; `None` where there is
    neither a template nor a limit.
    """
    found, settings = render_hash(tokenizer), chat_settings(tokenizer)
    return {**settings.as_dict(), "rendered": found} if found else None


def settings_from(record: Mapping[str, Any] | None) -> ChatSettings:
    """The settings that `chat_record` recorded."""
    known = record or {}
    return ChatSettings(**{name: known[name] for name in ChatSettings().as_dict() if name in known})
