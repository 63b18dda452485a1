"""From rows to token ids, with the boundary between prompt and completion exactly where generation
begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import TemplateError

from unteach.data.rows import Row
from unteach.errors import UserError

PAPER_PROMPT = "### Question: {prompt}\n### Answer:"
TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a chat template that is broken, or that does not fit its messages, raises."""
LongRows = Literal["error", "truncate_prompt", "drop"]


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row: the model is given `prompt_ids` and is to say (or not to say)
    `completion_ids`.

    `preferred_ids` is what it is rather to say, for methods that prefer something.
    """

    key: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    kind: str
    preferred_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def without_end(self, end_id: int | None) -> EncodedRow:
        """The same row with its completion cut before the token that ends an answer; a completion
        of that token alone stays.
        """
        if len(self.completion_ids) < 2 or self.completion_ids[-1] != end_id:
            return self
        return replace(self, completion_ids=self.completion_ids[:-1])


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, truncation=False)["input_ids"])


def _begin_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text at the start of a sequence: with the beginning-of-sequence token, without an
    end that some tokenizers add.
    """
    ids = _ids(tokenizer, text, special=True)
    plain = _ids(tokenizer, text, special=False)
    while (
        len(ids) > len(plain)
        and ids
        and ids[-1] == tokenizer.eos_token_id
        and ids[len(ids) - len(plain) - 1 : -1] == plain
    ):
        ids.pop()
    return ids


def render_prompt(row: Row, tokenizer: Any) -> str:
    """The prompt as the model is given it: chat template, else the paper's `### Question: ... ###
    Answer:`, else plain text.
    """
    if row.kind == "text":
        return row.prompt_text
    if getattr(tokenizer, "chat_template", None):
        messages = (
            [{"role": "user", "content": row.prompt}]
            if isinstance(row.prompt, str)
            else [{"role": role, "content": content} for role, content in row.prompt]
        )
        try:
            return str(
                tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            )
        except TEMPLATE_ERRORS as error:
            reason = str(error)[:200] if isinstance(error, TemplateError) else type(error).__name__
            raise UserError(
                f"{row.source}: the model's chat template refuses this prompt ({reason})"
            ) from None
    if not isinstance(row.prompt, str):
        raise UserError(
            f"{row.source}: the prompt is a list of messages, but this model's tokenizer has no"
            " chat template"
        )
    return PAPER_PROMPT.format(prompt=row.prompt.strip())


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The token that ends an answer: the special token that the chat template puts behind it, else
    end-of-sequence.
    """
    if getattr(tokenizer, "chat_template", None):
        question = [{"role": "user", "content": "x"}]
        try:
            before = tokenizer.apply_chat_template(
                question, add_generation_prompt=True, tokenize=False
            )
            whole = tokenizer.apply_chat_template(
                [*question, {"role": "assistant", "content": "y"}], tokenize=False
            )
        except TEMPLATE_ERRORS as error:
            raise UserError(
                "the chat template that comes with the tokenizer cannot be used"
                f" ({str(error)[:200]})"
            ) from None
        if whole.startswith(before):
            after = _ids(tokenizer, whole[len(before) :].partition("y")[2], special=False)
            if after and after[0] in set(tokenizer.all_special_ids) | set(
                tokenizer.added_tokens_decoder
            ):
                return int(after[0])
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def encode_prompt(row: Row, tokenizer: Any) -> tuple[int, ...]:
    """Ids that generation starts from; a trailing space of a plain prompt belongs to the completion
    and is left out.
    """
    text = render_prompt(row, tokenizer)
    templated = row.kind == "chat" and getattr(tokenizer, "chat_template", None)
    ids = (
        _ids(tokenizer, text, special=False) if templated else _begin_ids(tokenizer, text.rstrip())
    )
    if not ids:
        first = (
            tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        )
        if first is None:
            raise UserError(
                f"{row.source}: a row without prompt needs a tokenizer with a beginning- or"
                " end-of-sequence token"
            )
        ids = [int(first)]
    return tuple(ids)


def encode_row(row: Row, tokenizer: Any, end_id: int | None) -> EncodedRow:
    """Tokenises prompt and completion so that the completion's first id is the one generation would
    produce.

    Raises:
        UserError: where prompt and completion merge into one token, naming the row.
    """
    text = render_prompt(row, tokenizer)
    templated = row.kind == "chat" and bool(getattr(tokenizer, "chat_template", None))
    prompt_ids = encode_prompt(row, tokenizer)
    completion = row.completion.strip() if row.kind == "chat" else row.completion
    if templated:
        whole = _ids(tokenizer, text + completion, special=False)
    else:
        stripped = text.rstrip()
        gap = text[len(stripped) :] or (" " if row.kind == "chat" else "")
        if (
            stripped
            and row.kind == "text"
            and not gap
            and not completion[:1].isspace()
            and row.prompt
        ):
            gap = ""
        completion = completion if gap and completion[:1].isspace() else gap + completion
        whole = _begin_ids(tokenizer, stripped + completion)
    if not text.strip():
        whole = [*prompt_ids, *_ids(tokenizer, completion, special=False)]
    if tuple(whole[: len(prompt_ids)]) != prompt_ids or len(whole) == len(prompt_ids):
        raise UserError(
            f"{row.source}: the end of the prompt and the start of the completion become one token,"
            " so the model would never be asked for this completion; end the prompt at a word and"
            " start the completion with its space"
        )
    completion_ids = whole[len(prompt_ids) :]
    if row.kind == "chat" and end_id is not None:
        completion_ids = [*completion_ids, end_id]
    return EncodedRow(row.key, prompt_ids, tuple(completion_ids), row.kind)


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    window: int | None = None,
    long_rows: LongRows = "error",
    name: str = "forget",
) -> list[EncodedRow]:
    """Tokenises rows once. A completion is never cut.

    Args:
        rows (`Sequence[Row]`)
        tokenizer: a Hugging Face tokenizer.
        max_length (`int`, *optional*): most tokens of prompt and completion together.
        window (`int`, *optional*): most tokens that the model takes.
        long_rows (`"error"`, `"truncate_prompt"` or `"drop"`): what to do with a longer row: refuse
            it by name, cut its prompt from the left, or leave it out.
        name (`str`): what messages call the set.

    Raises:
        UserError: naming the row that is too long, or the set of which nothing is left.
    """
    encoded = list(
        iterate_encoded(rows, tokenizer, max_length=max_length, window=window, long_rows=long_rows)
    )
    if not encoded:
        most, what = _limit(max_length, window)
        raise UserError(
            f"no row of the {name} set is left after dropping those longer than {what.format(most)}"
        )
    return encoded


def _limit(max_length: int | None, window: int | None) -> tuple[int, str]:
    """(most tokens of a row, what messages call that)."""
    most, positions = max_length or 2**30, window or 2**30
    return (
        (most, "max_length {}")
        if most <= positions
        else (positions, "the {} positions of this model")
    )


def iterate_encoded(
    rows: Iterable[Row],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    window: int | None = None,
    long_rows: LongRows = "error",
) -> Iterator[EncodedRow]:
    """The same row by row, of any number of rows; see `encode_rows`."""
    end_id = end_of_turn_id(tokenizer)
    most, what = _limit(max_length, window)
    advice = "raise max_length" if what.startswith("max_length") else "shorten the row"
    for row in rows:
        item = encode_row(row, tokenizer, end_id)
        if len(item) > most:
            if long_rows == "drop":
                continue
            room = most - len(item.completion_ids)
            if long_rows == "error" or room < 1:
                raise UserError(
                    f"{row.source}: prompt and completion are {len(item)} tokens"
                    f" ({len(item.completion_ids)} of them completion), more than"
                    f" {what.format(most)}: truncation would cut the completion; {advice}"
                    + ("" if room < 1 else ", or set long_rows to truncate_prompt or drop")
                )
            item = EncodedRow(item.key, item.prompt_ids[-room:], item.completion_ids, item.kind)
        yield item
