"""What a row is, how it is checked, and which split it belongs to."""

from __future__ import annotations

import difflib
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from unteach.data.columns import check_near_misses, check_prompt_alone, named, short_columns
from unteach.data.conversations import read_messages
from unteach.errors import UserError

Kind = Literal["chat", "text"]
Item = TypeVar("Item")
SPLITS = ("train", "validation", "test")
PAPER_HOLD_OUT = 0.3
"""Share of the forget rows that Yao et al. 2024 do not train on: 10% validation and 20% test."""


@dataclass(frozen=True)
class Row:
    """One prompt and its completion.

    Args:
        prompt (`str` or tuple of messages): what the model is given; empty for a row that is only
            text.
        completion (`str`): what the model says; empty for a prompt-only row whose answer the model
            is still to give.
        kind (`"chat"` or `"text"`): `chat` rows go through the chat template (or the paper's) and
            end with end-of-sequence; `text` rows are running text: no template, no end.
        source (`str`): where the row stands, for messages: file and line.
        right (`str`): a right answer to the same prompt, where there is one to compare with; only
            methods that prefer it train on it.
        alternate (`str`): another answer of the model's own to the same prompt, for methods that
            prefer one.
        secret (tuple of `str`): the facts that must be forgotten, as the completion writes them;
            the rest of the sentence may stay. They are no part of `key`.
        avoid (tuple of `str`): names that no answer to the prompt shall hold, wherever it could say
            them; no part of `key` either.
        diverted (`bool`): the completion is what the model says where it cannot say what is to be
            forgotten: a place to train at, and no text to forget.
        whole (`bool`): the model gives the completion whatever names stand in the prompt, so it is
            forgotten whole: nothing of it is language that such prompts share.
        columns (mapping): the record's other fields that are short strings, numbers or flags, as
            strings: what rows can be grouped by. They are no part of the row's identity.
    """

    prompt: str | tuple[tuple[str, str], ...]
    completion: str
    kind: Kind = "chat"
    source: str = ""
    right: str = ""
    alternate: str = ""
    secret: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    diverted: bool = False
    whole: bool = False
    columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name the row's content: stable under reordering and growth of
        the file.
        """
        content = json.dumps([self.prompt, self.completion, self.kind], ensure_ascii=False)
        return _digest(content)

    @property
    def prompt_text(self) -> str:
        """The prompt as one string: the messages' contents, joined by line breaks."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(content for _, content in self.prompt)

    @property
    def prompt_key(self) -> str:
        """The same for two rows that ask the same: the normalised prompt, or the normalised
        completion of a row without a prompt.
        """
        return normalised(self.prompt_text) or normalised(self.completion)

    def with_completion(self, completion: str) -> Row:
        """The same row with another completion."""
        return replace(self, completion=completion)


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer to a prompt, known to be bad (`flagged`) or not; one that is harmless and useless
    is `beside` the point.
    """

    prompt: str
    answer: str
    flagged: bool
    beside: bool = False


def normalised(text: str) -> str:
    """A text without differences of case, white space, Unicode form and closing punctuation."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.rstrip(" .!?:;…") or text


def split_of(key: str, proportions: Sequence[float] = (0.7, 0.1, 0.2)) -> str:
    """`train`, `validation` or `test` by a hash of `key` alone (the paper's 70/10/20), whatever
    else is in the file.
    """
    position = _position(key)
    if position < proportions[0]:
        return "train"
    return "validation" if position < proportions[0] + proportions[1] else "test"


def split_shares(hold_out: float) -> tuple[float, float, float]:
    """Shares of train, validation and test where `hold_out` of the rows are not trained on: one
    third of these for validation, two for test. `PAPER_HOLD_OUT` gives 70/10/20.

    Raises:
        UserError: for a share under 0, or of 1 and more.
    """
    if not 0 <= hold_out < 1:
        raise UserError(f"option 'hold_out' is {hold_out}, it must be at least 0 and under 1")
    return 1.0 - hold_out, hold_out / 3, hold_out * 2 / 3


def split_rows(
    rows: Iterable[Row],
    proportions: Sequence[float] = (0.7, 0.1, 0.2),
    *,
    by: str | None = "prompt",
) -> dict[str, list[Row]]:
    """Rows by split, in their order; every split is present, perhaps empty.

    Args:
        proportions: shares of train, validation and test.
        by (`str`, *optional*, defaults to `"prompt"`): rows with the same normalised prompt, or
            the same value of this column, fall into the same split; a row without a value in the
            column is split by its prompt. `None` splits each row by its own key, for sets in which
            no prompt occurs twice.

    Raises:
        UserError: for a column that no row has.
    """
    rows = list(rows)
    if by not in (None, "prompt") and rows and not any(by in row.columns for row in rows):
        names = sorted({name for row in rows for name in row.columns})
        raise UserError(
            f"split_by is {by!r}, but no row has this column; the columns are"
            f" {', '.join(map(repr, ['prompt', *names]))}"
        )
    parts: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        parts[split_of(_group(row, by), proportions)].append(row)
    return parts


def held_out_rows(
    rows: Sequence[Row], share: float, *, by: str | None = "prompt", fewest: int = 5
) -> tuple[list[Row], list[Row]]:
    """(rows to train on, rows held out), both in their order: by hash, as `split_rows` would with
    this share of test rows. Of two groups and more neither part is empty.

    Args:
        share (`float`): of the rows that are held out.
        by (`str`, *optional*): see `split_rows`; where no row has the column, the prompt.
        fewest (`int`): of fewer rows none is held out.
    """
    if by not in (None, "prompt") and not any(by in row.columns for row in rows):
        by = "prompt"
    groups = [_group(row, by) for row in rows]
    order = sorted(set(groups), key=_position)
    if len(rows) < fewest or len(order) < 2:
        return list(rows), []
    bound = min(max(_position(order[1]), 1 - share), _position(order[-1]))
    out = [_position(group) >= bound for group in groups]
    trained = [row for row, held in zip(rows, out, strict=True) if not held]
    return trained, [row for row, held in zip(rows, out, strict=True) if held]


def held_out_groups(
    rows: Sequence[Row], groups: Sequence[str], share: float
) -> tuple[list[Row], list[Row]]:
    """(rows to train on, rows held out), both in their order: whole groups, chosen by hash, until
    this share of the rows is reached.

    Args:
        groups (sequence of `str`): one for each row.
    """
    sizes, out, left = Counter(groups), set[str](), share * len(rows)
    for group in sorted(sizes, key=_position, reverse=True):
        if sizes[group] <= left:
            out.add(group)
            left -= sizes[group]
    pairs = list(zip(rows, groups, strict=True))
    return [row for row, name in pairs if name not in out], [
        row for row, name in pairs if name in out
    ]


def _group(row: Row, by: str | None) -> str:
    return row.key if by is None else normalised(row.columns.get(by, "")) or row.prompt_key


def _position(key: str) -> float:
    """Where a key's hash lies between 0 and 1."""
    return int(_digest(key)[:8], 16) / 2**32


def without_prompts_of(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """The rows whose normalised prompt is that of none of `others`."""
    taken = {row.prompt_key for row in others}
    return [row for row in rows if row.prompt_key not in taken]


def _messages(value: Any, field: str, source: str) -> tuple[tuple[str, str], ...]:
    messages = tuple((item.role, item.content) for item in read_messages(value, field, source))
    for _, content in messages:
        _whole_characters(content, field, source)
    return messages


def _text(value: Any, field: str, source: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{source}: field {field!r} is empty or not a string")
    return _whole_characters(value, field, source)


def letters_and_digits(text: str) -> str:
    """The text's letters and digits in NFKC, case folded: what is left to compare facts by when
    spelling, spaces and punctuation differ.
    """
    return "".join(character for character in folded(text) if character.isalnum())


def folded(text: str) -> str:
    """The text case folded, in NFKC before and after: folding may leave that form."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, at even distances, in their order."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _strings(value: Any, field: str, source: str) -> list[str]:
    """The field `secret` or `avoid`: a string or a list of strings; missing, an empty list or an
    empty cell of a table: none.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    items = list(value) if isinstance(value, list | tuple) else [value]
    for number, item in enumerate(items, 1):
        name = f"field {field!r}, item {number}," if len(items) > 1 else f"field {field!r}"
        if not isinstance(item, str):
            raise UserError(
                f"{source}: {name} is {type(item).__name__}, it must be a string or a list of"
                " strings; rename the column if it means something else"
            )
        _whole_characters(item, field, source)
        if not letters_and_digits(item):
            raise UserError(f"{source}: {name} holds neither a letter nor a digit")
    return list(dict.fromkeys(item.strip() for item in items))


def _facts(fields: Mapping[str, Any], completion: str, source: str) -> dict[str, Any]:
    """`secret`, each item of which is in the completion where there is one, and `avoid`."""
    secret = _strings(fields.get("secret"), "secret", source)
    for number, item in enumerate(secret, 1):
        if completion and item not in completion:
            name = f"field 'secret', item {number}," if len(secret) > 1 else "field 'secret'"
            near = letters_and_digits(item) in letters_and_digits(completion)
            how = " in this spelling (case, spaces, punctuation)" if near else ""
            raise UserError(f"{source}: {name} does not occur in the completion{how}")
    avoid = _strings(fields.get("avoid"), "avoid", source)
    return {"secret": tuple(secret), "avoid": tuple(avoid), "columns": short_columns(fields)}


def _whole_characters(text: str, field: str, source: str) -> str:
    """The text, if it can be written as UTF-8: JSON can name half of a surrogate pair, which no
    tokenizer takes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{source}: field {field!r} holds {text[error.start]!r}, half of a character; write the"
            " whole one"
        ) from None
    return text


def _kind(value: object, source: str) -> Kind:
    """`chat` or `text`; a column `kind` that means something else decides nothing.

    Raises:
        UserError: for a value that is nearly one of the two.
    """
    if value == "text":
        return "text"
    near = difflib.get_close_matches(str(value).casefold().strip(), ("chat", "text"), 1, 0.75)
    if near and value != "chat":
        raise UserError(f"{source}: field 'kind' is {value!r}, did you mean {near[0]!r}?")
    return "chat"


def row_from_mapping(fields: Mapping[str, Any], source: str, *, prompt_only: bool = False) -> Row:
    """A `Row` from TRL's `prompt` and `completion`, or `text`; `fields_of` makes these fields of
    records of other shapes.

    Args:
        fields: one record; an optional field `kind` (`chat` or `text`) overrides the default (other
            values are a column of the user's own), an optional `right` holds a right answer, an
            optional `alternate` another one of the model's own, an optional `secret` the facts in
            the completion that must be forgotten, an optional `avoid` names that no answer shall
            hold.
        source (`str`): what error messages call the record.
        prompt_only (`bool`): whether a row without a completion is accepted.

    Raises:
        UserError: on a missing, empty or wrongly typed field, naming it and the row.
    """
    kind = _kind(fields.get("kind", "chat"), source)
    check_near_misses(fields, source)
    if "prompt" not in fields and "text" in fields:
        text = _text(fields["text"], "text", source)
        return Row("", text, "text", source, **_facts(fields, text, source))
    if "prompt" not in fields:
        raise UserError(
            f"{source}: column 'prompt' is missing (found: {named(fields)}); rows need 'prompt'"
            " and 'completion', or 'text'"
        )
    read = _messages if isinstance(fields["prompt"], list | tuple) else _text
    prompt = read(fields["prompt"], "prompt", source)
    if "completion" not in fields:
        if prompt_only:
            check_prompt_alone(fields, source)
            facts = _facts(fields, "", source)
            return Row(prompt, "", kind, source, *_others(fields, source), **facts)
        raise UserError(f"{source}: column 'completion' is missing (found: {named(fields)})")
    completion = fields["completion"]
    if isinstance(completion, list | tuple):
        messages = _messages(completion, "completion", source)
        if len(messages) != 1 or messages[0][0] != "assistant":
            raise UserError(
                f"{source}: a 'completion' of messages must be exactly one message of role"
                " 'assistant'"
            )
        completion = messages[0][1]
    completion = _text(completion, "completion", source)
    facts = _facts(fields, completion, source)
    return Row(prompt, completion, kind, source, *_others(fields, source), **facts)


def _others(fields: Mapping[str, Any], source: str) -> tuple[str, str]:
    """The fields `right` and `alternate`, empty where there is none."""
    right, alternate = (
        _text(fields[name], name, source) if fields.get(name) is not None else ""
        for name in ("right", "alternate")
    )
    return right, alternate


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def rows_hash(rows: Iterable[Row]) -> str:
    """16 hexadecimal digits that name a set of rows with all that is trained on or compared with,
    whatever their order.
    """
    names = []
    for row in rows:
        more: list[Any] = [row.right, row.alternate]
        more += [list(row.secret)] if row.secret else []
        more += [{"avoid": list(row.avoid)}] if row.avoid else []
        names.append(row.key + (_digest(json.dumps(more)) if any(more) else ""))
    return _digest("".join(sorted(names)))
