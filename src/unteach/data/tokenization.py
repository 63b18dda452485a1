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

from unteach.data.answers import answer_format, end_text, first_special, placed, without_end
from unteach.data.chat import conversation, has_template, render, template_key
from unteach.data.rows import Row
from unteach.errors import UserError

PAPER_PROMPT = "### Question: {prompt}\n### Answer:"
CACHED_ROWS = 2**15
"""Rows that the cache of a tokenizer holds; about 1 KiB each, with 100 tokens."""
LongRows = Literal["error", "truncate_prompt", "drop"]


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row: the prompt, the completion to train on and, for methods that prefer
    another one, the preferred completion.

    Args:
        ending (`int`): tokens at the end of the completion that end an answer, the white space that
            the template writes before its end among them.
        trace (`int`): tokens at the start of the completion that are a reasoning trace.
    """

    key: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    kind: str
    preferred_ids: tuple[int, ...] = ()
    ending: int = 0
    trace: int = 0

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def without_end(self, end_id: int | None) -> EncodedRow:
        """The same row with its completion cut before the token that ends an answer; a completion
        of that token alone stays.
        """
        ends = (self.ending and end_id is not None) or self.completion_ids[-1:] == (end_id,)
        if len(self.completion_ids) < 2 or not ends:
            return self
        cut = min(max(1, self.ending), len(self.completion_ids) - 1)
        return replace(self, completion_ids=self.completion_ids[:-cut], ending=0)


_CACHES: WeakKeyDictionary[Any, dict[Any, tuple[Any, ...]]] = WeakKeyDictionary()


def _cached(
    row: Row, tokenizer: Any, end_id: int | None, encode: Callable[[], EncodedRow]
) -> EncodedRow:
    """What `encode` returned for a row of this content before; the oldest rows leave a full cache.

    Tokens are kept at four bytes each. A tokenizer is taken for changed where its chat template or
    its chat settings are others.
    """
    cache = _CACHES.setdefault(tokenizer, {})
    content = (template_key(tokenizer), row.prompt, row.completion, row.kind, end_id)
    if (found := cache.get(content)) is None:
        made = encode()
        if len(cache) >= CACHED_ROWS:
            cache.pop(next(iter(cache)), None)
        ids = array("i", made.prompt_ids), array("i", made.completion_ids)
        cache[content] = made.key, *ids, made.ending, made.trace
        return made
    key, prompt, completion, ending, trace = found
    return EncodedRow(key, tuple(prompt), tuple(completion), row.kind, (), ending, trace)


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, truncation=False)["input_ids"])


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    most = min(len(first), len(second))
    return next((place for place, (one, other) in pairs if one != other), most)


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
    return row.kind == "chat" and has_template(tokenizer)


def render_prompt(row: Row, tokenizer: Any) -> str:
    """The prompt as the model is given it: through the chat template, else as the paper's
    `### Question: ... ### Answer:`, else as plain text.
    """
    if row.kind == "text":
        return row.prompt_text
    if _templated(row, tokenizer):
        return render(tokenizer, conversation(row, tokenizer), generation=True)
    if not isinstance(row.prompt, str):
        raise UserError(
            f"{row.source}: the prompt is a list of messages, but this model's tokenizer has no"
            " chat template"
        )
    return PAPER_PROMPT.format(prompt=row.prompt.strip())


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The token that ends an answer: the special token that the chat template puts behind it, or
    the one that begins the next turn where nothing else ends an answer, else end-of-sequence.
    """
    found = first_special(tokenizer, answer_format(tokenizer).end)
    if found is not None:
        return found
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
    if _templated(row, tokenizer):
        return _placed_ids(row, tokenizer, end_id)
    text = render_prompt(row, tokenizer)
    prompt_ids = _prompt_ids(text, row, tokenizer)
    chat = row.kind == "chat"
    completion = without_end(row.completion, tokenizer) if chat else row.completion
    stripped = text.rstrip()
    gap = text[len(stripped) :] or (" " if chat else "")
    doubled = completion[:1].isspace() and (chat or not gap.strip(" "))  # lines stay as they are
    completion = completion if gap and doubled else gap + completion
    whole = _begin_ids(tokenizer, stripped + completion)
    if not text.strip():
        whole = [*prompt_ids, *_ids(tokenizer, completion, special=False)]
    if whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
        raise _merged(row)
    completion_ids = whole[len(prompt_ids) :]
    ending = 0
    if chat and end_id is not None:
        completion_ids.append(end_id)
        ending = 1
    return EncodedRow(row.key, tuple(prompt_ids), tuple(completion_ids), row.kind, ending=ending)


def _merged(row: Row) -> UserError:
    return UserError(
        f"{row.source}: the end of the prompt and the start of the completion become one token, so"
        " the model would never generate this completion; end the prompt at a word and start the"
        " completion with its space"
    )


def _placed_ids(row: Row, tokenizer: Any, end_id: int | None) -> EncodedRow:
    """The row's tokens in the full render: those from the first that holds a character of the
    completion, to the special token that ends it. White space of the template that is one token
    with the completion's first word belongs to the completion.
    """
    place = placed(row, tokenizer)
    before = _ids(tokenizer, place.before, special=False)
    body = _ids(tokenizer, place.before + place.text, special=False)
    start = shared(before, body)
    if str(tokenizer.decode(before[start:])).strip() or start == len(body):
        raise _merged(row)
    if not start:
        raise UserError(f"{row.source}: the model's chat template writes nothing before an answer")
    trace = _ids(tokenizer, place.before + place.text[: place.trace], special=False)
    thought = shared(trace, body) - start if place.trace else 0
    whole, ending = body, 0
    if end_id is not None:
        end = end_text(tokenizer, place.after) or answer_format(tokenizer).end
        if end:
            whole = _ids(tokenizer, place.before + place.text + end, special=False)
        elif tokenizer.eos_token_id is not None:
            whole = [*body, int(tokenizer.eos_token_id)]
        ending = len(whole) - shared(body, whole)
    return EncodedRow(
        row.key, tuple(whole[:start]), tuple(whole[start:]), row.kind, ending=ending, trace=thought
    )


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
            it by name, cut its prompt from the left (oldest turns first; never what the template
            writes, nor the token that begins the sequence), or leave it out.
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
            item = _cut(row, tokenizer, most, lambda part: encode(part, tokenizer, end_id))
        kept += 1
        yield item
    if not kept:
        raise UserError(
            f"no row of the {name} set is left after dropping those longer than {limit}"
        )


def fitting_prompt(row: Row, tokenizer: Any, room: int) -> tuple[int, ...]:
    """`encode_prompt`, its text cut from the left to at most `room` tokens: the oldest turns first,
    never what the template writes, nor the token that begins the sequence.

    Raises:
        UserError: where not even the template fits.
    """

    def encode(part: Row) -> EncodedRow:
        return EncodedRow("", encode_prompt(part, tokenizer), (), part.kind)

    return _cut(row, tokenizer, room, encode).prompt_ids


def _cut(row: Row, tokenizer: Any, most: int, encode: Callable[[Row], EncodedRow]) -> EncodedRow:
    """The encoded row, of its prompt as much as lets it have at most `most` tokens."""
    item = encode(row)
    if row.kind == "text" and len(item) > most:
        room = most - len(item.completion_ids)
        bos = item.prompt_ids[: int(item.prompt_ids[0] == tokenizer.bos_token_id and room > 1)]
        return replace(item, prompt_ids=bos + item.prompt_ids[len(bos) - room :])
    key, part = item.key, row
    while (excess := len(item) - most) > 0:
        shorter = _without_start(part, tokenizer, excess)
        if shorter is None:
            raise UserError(
                f"{row.source}: what the chat template writes around the prompt alone is more than"
                f" the {most - len(item.completion_ids)} tokens that are left for it"
            )
        part = shorter
        item = encode(part)
    return replace(item, key=key)


def _without_start(row: Row, tokenizer: Any, count: int) -> Row | None:
    """The row without its oldest turn, or of a single turn without its first `count` tokens; the
    system message goes last.
    """
    if isinstance(row.prompt, str):
        text = _without_tokens(row.prompt, tokenizer, count)
        return None if text is None else replace(row, prompt=text)
    turns = list(row.prompt)
    spoken = [place for place, (role, _) in enumerate(turns) if role != "system"]
    later = [place for place in spoken[1:] if turns[place][0] == "user"]
    if later:
        del turns[spoken[0] : later[0]]
        return replace(row, prompt=tuple(turns))
    for place in [*spoken, *(i for i in range(len(turns)) if i not in spoken)]:
        text = _without_tokens(turns[place][1], tokenizer, count)
        if text is not None:
            turns[place] = turns[place][0], text
            return replace(row, prompt=tuple(turns))
    return None


def _without_tokens(text: str, tokenizer: Any, count: int) -> str | None:
    """The text without its first tokens; `None` where there is none left to take."""
    ids = _ids(tokenizer, text, special=False)
    if not text.strip() or not ids:
        return None
    rest = str(tokenizer.decode(ids[count:])).lstrip("\ufffd").lstrip()
    return rest if len(rest) < len(text) else text[len(text) // 2 + 1 :]
