"""Rows as token ids: a completion begins at exactly the token with which generation would begin.

The encoded form of a row is cached for each tokenizer (`encode_row`, `encode_prompt`), so that
length checks, the trainer, probes and scoring tokenise a row once within a run.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

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
"""What a chat template raises that is broken, or that does not fit its messages."""
CACHED_ROWS = 2**15
"""Rows that the cache of a tokenizer holds; about 1 KiB each, with 100 tokens."""
LongRows = Literal["error", "truncate_prompt", "drop"]


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row: the prompt, the completion to train on and, for methods that prefer
    another one, the preferred completion.
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


_CACHES: WeakKeyDictionary[Any, dict[Any, tuple[str, array[int], array[int]]]] = WeakKeyDictionary()


def _cached(
    row: Row, tokenizer: Any, end_id: int | None, encode: Callable[[], EncodedRow]
) -> EncodedRow:
    """What `encode` returned for a row of this content before; the oldest rows leave a full cache.

    Tokens are kept at four bytes each. A tokenizer is taken for changed where its chat template is
    another one.
    """
    cache = _CACHES.setdefault(tokenizer, {})
    template = getattr(tokenizer, "chat_template", None)
    content = (str(template), row.prompt, row.completion, row.kind, end_id)
    if (found := cache.get(content)) is None:
        made = encode()
        if len(cache) >= CACHED_ROWS:
            cache.pop(next(iter(cache)), None)
        cache[content] = made.key, array("i", made.prompt_ids), array("i", made.completion_ids)
        return made
    key, prompt, completion = found
    return EncodedRow(key, tuple(prompt), tuple(completion), row.kind)


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, truncation=False)["input_ids"])


def _begin_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text at the start of a sequence: with the beginning-of-sequence token, without the
    end that some tokenizers add.
    """
    ids = _ids(tokenizer, text, special=True)
    plain = _ids(tokenizer, text, special=False)
    while len(ids) > len(plain) and ids[-1] == tokenizer.eos_token_id:
        if ids[len(ids) - len(plain) - 1 : -1] != plain:
            break
        ids.pop()
    return ids


def _templated(row: Row, tokenizer: Any) -> bool:
    return row.kind == "chat" and bool(getattr(tokenizer, "chat_template", None))


def render_prompt(row: Row, tokenizer: Any) -> str:
    """The prompt as the model is given it: through the chat template, else as the paper's
    `### Question: ... ### Answer:`, else as plain text.
    """
    if row.kind == "text":
        return row.prompt_text
    if _templated(row, tokenizer):
        turns = (("user", row.prompt),) if isinstance(row.prompt, str) else row.prompt
        messages = [{"role": role, "content": content} for role, content in turns]
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
        turns = [*question, {"role": "assistant", "content": "y"}]
        render = tokenizer.apply_chat_template
        try:
            before = render(question, add_generation_prompt=True, tokenize=False)
            whole = render(turns, tokenize=False)
        except TEMPLATE_ERRORS as error:
            raise UserError(
                "the chat template that comes with the tokenizer cannot be used"
                f" ({str(error)[:200]})"
            ) from None
        if whole.startswith(before):
            after = _ids(tokenizer, whole[len(before) :].partition("y")[2], special=False)
            special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
            if after and after[0] in special:
                return int(after[0])
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def encode_prompt(row: Row, tokenizer: Any) -> tuple[int, ...]:
    """Ids that generation starts from; a trailing space of a plain prompt belongs to the completion
    and is left out.
    """

    def encode() -> EncodedRow:
        ids = _prompt_ids(render_prompt(row, tokenizer), row, tokenizer)
        return EncodedRow("", tuple(ids), (), row.kind)

    return _cached(row.with_completion(""), tokenizer, -1, encode).prompt_ids


def _prompt_ids(text: str, row: Row, tokenizer: Any) -> list[int]:
    if _templated(row, tokenizer):
        ids = _ids(tokenizer, text, special=False)
    else:
        ids = _begin_ids(tokenizer, text.rstrip())
    if ids:
        return ids
    bos = tokenizer.bos_token_id
    first = bos if bos is not None else tokenizer.eos_token_id
    if first is None:
        raise UserError(
            f"{row.source}: a row without prompt needs a tokenizer with a beginning- or"
            " end-of-sequence token"
        )
    return [int(first)]


def encode_row(row: Row, tokenizer: Any, end_id: int | None) -> EncodedRow:
    """Tokenises prompt and completion so that the completion's first id is the one that generation
    would produce; a row of the same content is taken from the cache.

    Args:
        tokenizer: a Hugging Face tokenizer.
        end_id (`int`, *optional*): the token appended to `chat` completions (`end_of_turn_id`).

    Raises:
        UserError: where prompt and completion merge into one token, naming the row.
    """
    return _cached(row, tokenizer, end_id, lambda: _encoded(row, tokenizer, end_id))


def _encoded(row: Row, tokenizer: Any, end_id: int | None) -> EncodedRow:
    text = render_prompt(row, tokenizer)
    prompt_ids = _prompt_ids(text, row, tokenizer)
    completion = row.completion.strip() if row.kind == "chat" else row.completion
    if _templated(row, tokenizer):
        whole = _ids(tokenizer, text + completion, special=False)
    else:
        stripped = text.rstrip()
        gap = text[len(stripped) :] or (" " if row.kind == "chat" else "")
        completion = completion if gap and completion[:1].isspace() else gap + completion
        whole = _begin_ids(tokenizer, stripped + completion)
    if not text.strip():
        whole = [*prompt_ids, *_ids(tokenizer, completion, special=False)]
    if whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
        raise UserError(
            f"{row.source}: the end of the prompt and the start of the completion become one token,"
            " so the model would never generate this completion; end the prompt at a word and"
            " start the completion with its space"
        )
    completion_ids = whole[len(prompt_ids) :]
    if row.kind == "chat" and end_id is not None:
        completion_ids.append(end_id)
    return EncodedRow(row.key, tuple(prompt_ids), tuple(completion_ids), row.kind)


def encode_rows(rows: Sequence[Row], tokenizer: Any, **limits: Any) -> list[EncodedRow]:
    """Tokenises rows, or takes them from the cache; arguments are those of `iterate_encoded`."""
    return list(iterate_encoded(rows, tokenizer, encode=encode_row, **limits))


def iterate_encoded(
    rows: Iterable[Row],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    window: int | None = None,
    long_rows: LongRows = "error",
    name: str = "forget",
    encode: Callable[[Row, Any, int | None], EncodedRow] = _encoded,
) -> Iterator[EncodedRow]:
    """Tokenises rows one by one, however many there are; a completion is never cut.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length (`int`, *optional*): most tokens of prompt and completion together.
        window (`int`, *optional*): most positions of the model.
        long_rows (`"error"`, `"truncate_prompt"` or `"drop"`): what to do with a longer row: refuse
            it by name, cut its prompt from the left, or leave it out.
        name (`str`): what messages call the set.
        encode (`Callable`): `encode_row`, or by default the same without the cache.

    Raises:
        UserError: naming the row that is too long, or the set of which nothing is left.
    """
    end_id = end_of_turn_id(tokenizer)
    most, limit, advice = max_length or 2**30, f"max_length {max_length}", "raise max_length"
    if window is not None and window < most:
        most, limit, advice = window, f"the {window} positions of this model", "shorten the row"
    kept = 0
    for row in rows:
        item = encode(row, tokenizer, end_id)
        room = most - len(item.completion_ids)
        if len(item) > most:
            if long_rows == "drop":
                continue
            if long_rows == "error" or room < 1:
                choice = ", or set long_rows to truncate_prompt or drop" if room >= 1 else ""
                raise UserError(
                    f"{row.source}: prompt and completion are {len(item)} tokens"
                    f" ({len(item.completion_ids)} of them completion), more than {limit}:"
                    f" truncation would cut the completion; {advice}{choice}"
                )
            item = replace(item, prompt_ids=item.prompt_ids[-room:])
        kept += 1
        yield item
    if not kept:
        raise UserError(
            f"no row of the {name} set is left after dropping those longer than {limit}"
        )
