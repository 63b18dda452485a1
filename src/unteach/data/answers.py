"""Where a completion stands in the full render of its conversation, what ends it, and how a
reasoning trace is written.

All of it is read off renders of the template; no template is known by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from unteach.data.chat import (
    ANSWER,
    TEMPLATE_ERRORS,
    Messages,
    conversation,
    has_template,
    refused,
    render,
    template_key,
)
from unteach.data.rows import Row
from unteach.data.traces import split_trace, with_trace
from unteach.errors import UserError

TRACE = "unteachtrace"
"""A trace whose place in a render is looked for."""
DUMPED = re.compile(r"""["']thinking["']:""")
"""What shows that a template has written a list of parts as data, not as text."""


@dataclass(frozen=True)
class Placed:
    """A full render around a completion: the text `before` it, its `text` as the template writes
    it, and the text `after` it.

    Args:
        trace (`int`): characters of `text` that are the reasoning trace and its closing marker.
    """

    before: str
    text: str
    after: str
    trace: int = 0


@dataclass(frozen=True)
class AnswerFormat:
    """How a template writes an answer, as its renders show.

    Args:
        scaffold (`str`): what stands between the generation prompt and an answer without a trace.
        form (`str`, *optional*): the field of a message that holds a trace; `content`: it stands in
            the content itself; `None`: the template drops it.
        opening (`str`): what stands between the generation prompt and a trace.
        closing (`str`): what stands between a trace and its answer.
        opened (`str`): the marker, where the generation prompt itself opens a trace.
        end (`str`): the text up to the special token that ends an answer; empty: none does.
    """

    scaffold: str = ""
    form: str | None = "content"
    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"
    opened: str = ""
    end: str = ""

    @property
    def reasons(self) -> bool:
        """Whether the model may think before it answers: the template has a place for a trace."""
        return bool(self.opened) or self.form not in (None, "content")


_FORMATS: WeakKeyDictionary[Any, dict[tuple[str, str], AnswerFormat]] = WeakKeyDictionary()
FORMS = ("reasoning_content", "reasoning", "thinking", "blocks", "content")


def answer_format(tokenizer: Any) -> AnswerFormat:
    """The format of a tokenizer's template with its settings; found once.

    Raises:
        UserError: for a template that cannot render a question and its answer.
    """
    if not has_template(tokenizer):
        return AnswerFormat()
    known = _FORMATS.setdefault(tokenizer, {})
    key = template_key(tokenizer)
    if key not in known:
        known.clear()
        known[key] = _format_of(tokenizer)
    return known[key]


def _format_of(tokenizer: Any) -> AnswerFormat:
    row = Row("x", "", source="a question of one letter")
    try:
        messages = conversation(row, tokenizer)
        opening = render(tokenizer, messages, generation=True)
        before, after = _around(tokenizer, messages, ANSWER, {"content": ANSWER})
        end = end_text(tokenizer, after) or _next_turn(tokenizer, messages)
        found = _traced(tokenizer, messages, opening)
    except UserError as error:
        raise UserError(
            "the chat template that comes with the tokenizer cannot be used"
            f" ({str(error).partition(': ')[2]})"
        ) from None
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"the chat template that comes with the tokenizer cannot be used ({str(error)[:200]})"
        ) from None
    scaffold = before[len(opening) :] if before.startswith(opening) else ""
    return AnswerFormat(scaffold, end=end, **found)


def _around(
    tokenizer: Any, messages: Messages, mark: str, message: Mapping[str, Any], *following: Any
) -> tuple[str, str]:
    """The full render before and after the last `mark`.

    Raises:
        ValueError: where the template does not write it.
    """
    turns = [*messages, {"role": "assistant", **message}, *following]
    text = render(tokenizer, turns, generation=False)
    place = text.rfind(mark)
    if place < 0:
        raise ValueError("it does not write the answer of an assistant message")
    return text[:place], text[place + len(mark) :]


def _traced(tokenizer: Any, messages: Messages, opening: str) -> dict[str, Any]:
    """How a trace is written: `form`, `opening`, `closing` and `opened` of `AnswerFormat`."""
    tag = re.search(r"([<\[])([A-Za-z_]+)([>\]])\s*$", opening)
    opened = tag[0].strip() if tag else ""
    for form in FORMS:
        try:
            message = traced_message(form, TRACE, ANSWER)
            before, _ = _around(tokenizer, messages, ANSWER, message)
        except TEMPLATE_ERRORS:
            continue
        start, mark, closing = before.rpartition(TRACE)
        if form == "blocks" and DUMPED.search(start[-40:]):
            continue
        if mark and start.startswith(opening) and (form != "content" or not opened):
            if form == "content":
                return {"form": form}
            return {"form": form, "opening": start[len(opening) :], "closing": closing} | (
                {"opened": opened} if opened and not start[len(opening) :].strip() else {}
            )
    if tag and tag[1] + "/" + tag[2] + tag[3] in str(tokenizer.chat_template):
        closing = f"\n{tag[1]}/{tag[2]}{tag[3]}\n\n"
        return {"form": None, "opening": "", "closing": closing, "opened": opened}
    return {"form": None}


def traced_message(form: str | None, trace: str, answer: str) -> dict[str, Any]:
    """The fields of an assistant message with a trace, in one of `FORMS`."""
    if form == "blocks":
        thought = {"type": "thinking", "thinking": trace}
        return {"content": [thought, {"type": "text", "text": answer}]}
    if form in (None, "content"):
        return {"content": f"<think>\n{trace}\n</think>\n\n{answer}"}
    return {"content": answer, str(form): trace}


def specials(tokenizer: Any) -> dict[str, int]:
    """Text and id of the tokens that the tokenizer never splits."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {str(token): int(number) for number, token in added.items()}
    named = zip(
        getattr(tokenizer, "all_special_tokens", ()),
        getattr(tokenizer, "all_special_ids", ()),
        strict=True,
    )
    return {text: number for text, number in (found | dict(named)).items() if text.strip()}


def end_text(tokenizer: Any, after: str) -> str:
    """What ends an answer: the special token that follows it, white space before it included, and
    the special tokens after that up to end-of-sequence.
    """
    found = dict(specials(tokenizer))
    found.pop(getattr(tokenizer, "bos_token", None) or "", None)
    pattern = "|".join(re.escape(text) for text in sorted(found, key=len, reverse=True))
    first = re.match(rf"\s*(?:{pattern})", after) if pattern else None
    if first is None:
        return ""
    eos = re.escape(getattr(tokenizer, "eos_token", None) or first[0].strip())
    whole = re.match(rf"(?:\s*(?:{pattern}))*?\s*{eos}", after)
    return whole[0] if whole else first[0]


def first_special(tokenizer: Any, text: str) -> int | None:
    """The id of the special token that a text begins with, after white space."""
    found = [mark for mark in specials(tokenizer) if text.lstrip().startswith(mark)]
    return specials(tokenizer)[max(found, key=len)] if found else None


def _next_turn(tokenizer: Any, messages: Messages) -> str:
    """What ends an answer where only the next turn does: the token of the user's role."""
    try:
        turn = {"role": "user", "content": "x"}
        _, after = _around(tokenizer, messages, ANSWER, {"content": ANSWER}, turn)
    except TEMPLATE_ERRORS:
        return ""
    return end_text(tokenizer, after)


def placed(row: Row, tokenizer: Any) -> Placed:
    """Where the row's completion stands in the full render of its conversation.

    Raises:
        UserError: naming the row that the template refuses or whose completion it does not write.
    """
    messages = conversation(row, tokenizer)
    trace, answer = split_trace(without_end(row.completion, tokenizer))
    shape = answer_format(tokenizer)

    def written(message: Mapping[str, Any], before: str, after: str) -> tuple[str, str]:
        """(what the full render has between these texts, if it is more than space; the render)."""
        turns = [*messages, {"role": "assistant", **message}]
        whole = render(tokenizer, turns, generation=False)
        fits = whole.startswith(before) and whole.endswith(after)
        text = whole[len(before) : max(len(before), len(whole) - len(after))]
        return (text if fits and text.strip() else ""), whole

    try:
        if trace and shape.form is None:  # the template drops it: as the model itself writes it
            before = render(tokenizer, messages, generation=True) + shape.opening
            around = _around(tokenizer, messages, ANSWER, {"content": ANSWER})
            answer, after = written({"content": answer}, *around)[0] or answer, around[1]
            thought = trace + (shape.closing if answer else "")
            return Placed(before, thought + answer, after, len(thought))
        if trace:
            content = traced_message(shape.form, TRACE, ANSWER)
            head, after = _around(tokenizer, messages, ANSWER, content)
            before, mark, closing = head.rpartition(TRACE)
            if mark:
                opening = render(tokenizer, messages, generation=True)
                message = traced_message(shape.form, trace, answer)
                answer = written(message, before + trace + closing, after)[0] or answer
                lead = before[len(opening) :] if before.startswith(opening) else ""
                before = before.removesuffix(lead) if lead else before
                thought = lead + trace + (closing if answer else "")
                return Placed(before, thought + answer, after, len(thought))
        before, after = _around(tokenizer, messages, ANSWER, {"content": ANSWER})
        text, whole = written({"content": answer}, before, after)
    except TEMPLATE_ERRORS as error:
        raise refused(row, error) from None
    if text or not answer:
        return Placed(before, text, after)
    answer = answer if answer in whole else answer.strip()
    place = whole.rfind(answer)
    if place < 0:
        raise UserError(
            f"{row.source}: the model's chat template does not write this completion as it is;"
            " leave out the markers of the template that it holds"
        )
    return Placed(whole[:place], answer, whole[place + len(answer) :])


def without_end(completion: str, tokenizer: Any) -> str:
    """A chat completion without the special tokens that end it, and the white space before them:
    the template writes its end. Any other white space is the completion's own, such as indentation.
    """
    text, ends = completion, _control_tokens(tokenizer)
    while found := next((end for end in ends if text.rstrip().endswith(end)), ""):
        shorter = text.rstrip().removesuffix(found).rstrip()
        if not shorter:
            break
        text = shorter
    return text


def _control_tokens(tokenizer: Any) -> set[str]:
    """The special tokens that are no text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if token.special}
    return {token for token in found | set(getattr(tokenizer, "all_special_tokens", ())) if token}


def read_answer(text: str, tokenizer: Any, prompt: str) -> str:
    """What a model wrote after a prompt, without what its template writes between the two; a trace
    in the template's own markers stands in `<think>` and `</think>` instead. Special tokens are
    left out.
    """
    if not has_template(tokenizer):
        return text
    marks = sorted(_control_tokens(tokenizer), key=len, reverse=True)

    def plain(part: str) -> str:
        for mark in marks:
            part = part.replace(mark, "")
        return part

    shape, body = answer_format(tokenizer), text.lstrip()
    opened = bool(shape.opened) and prompt.rstrip().endswith(shape.opened)
    scaffold, opening, closing = map(str.strip, (shape.scaffold, shape.opening, shape.closing))
    if scaffold and not opened and body.startswith(scaffold):
        return _behind(plain(body[len(scaffold) :]), shape.scaffold)
    if opened or (opening and body.startswith(opening)):
        trace, ended, answer = body.removeprefix(opening).partition(closing)
        answer = _behind(plain(answer), shape.closing).rstrip()
        return with_trace(plain(trace), answer, ended=bool(ended))
    return plain(text)


def _behind(text: str, marker: str) -> str:
    """A text behind a marker without the white space that this ends in; other space goes whole."""
    gap = marker[len(marker.rstrip()) :]
    return text[len(gap) :] if text.startswith(gap) else text.lstrip()
