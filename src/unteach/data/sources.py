"""Where rows come from: files, Hugging Face datasets, plain Python lists, a plain-text book."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from unteach.data.rows import Row, row_from_mapping, short_columns
from unteach.errors import UserError

Role = Literal["forget", "retain"]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


OnError = Callable[[UserError], None]
"""Takes the error of one row where the reading is to go on with the next."""


def _stop(error: UserError) -> None:
    raise error


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if not raw.strip():
        raise UserError(f"{path}: the file is empty")
    return raw


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8 (wrong encoding);"
            " save the file as UTF-8"
        ) from None


def _parsed(text: str) -> Any:
    """JSON; what Python's reader says of too deep nesting and too long numbers is a
    `JSONDecodeError` too.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("too deeply nested", text, 0) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise json.JSONDecodeError("a number is too long", text, 0) from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) one by one, without the mark that some editors put before UTF-8; the file may
    be larger than memory.
    """
    empty = True
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            empty = empty and not raw.strip()
            yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
    if empty:
        raise UserError(f"{path}: the file is empty")


def _json_lines(path: Path, on_error: OnError = _stop) -> Iterator[tuple[dict[str, Any], str]]:
    for number, raw in _lines(path):
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8")
            record = _parsed(line) if line.strip() else None
        except UnicodeDecodeError as error:
            on_error(
                UserError(
                    f"{where}: byte 0x{raw[error.start]:02x} is not UTF-8 (wrong encoding); save"
                    " the file as UTF-8"
                )
            )
        except json.JSONDecodeError as error:
            on_error(UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})"))
        else:
            if isinstance(record, dict):
                yield record, where
            elif line.strip():
                on_error(
                    UserError(
                        f"{where}: a row must be a JSON object, found {type(record).__name__}"
                    )
                )


def _json_array(path: Path, on_error: OnError = _stop) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        records = _parsed(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); one object a line is"
            " .jsonl"
        ) from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: a .json file must hold one list of objects")
    for number, record in enumerate(records, 1):
        yield record, f"{path}, row {number}"


def _table(path: Path, on_error: OnError = _stop) -> Iterator[tuple[dict[str, Any], str]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    reader = csv.DictReader(
        io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True
    )
    try:
        for record in reader:
            if None in record:
                on_error(
                    UserError(
                        f"{path}, line {reader.line_num}: more cells than the header has columns"
                    )
                )
                continue
            yield (
                {name: cell for name, cell in record.items() if cell is not None},
                f"{path}, line {reader.line_num}",
            )
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num + 1}: not a readable table ({error})"
        ) from None


def _parquet(path: Path, on_error: OnError = _stop) -> Iterator[tuple[dict[str, Any], str]]:
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, OverflowError, NotImplementedError, MemoryError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})"
        ) from None
    for number, record in enumerate(records, 1):
        yield record, f"{path}, row {number}"


def sentences(text: str) -> list[str]:
    """Sentences of running text: each ends after `.`, `!` or `?`, and closing quotes or brackets,
    before white space.
    """
    return [
        part.strip()
        for part in re.findall(r".+?(?:[.!?][\"')\]]*(?=\s)|$)", " ".join(text.split()))
    ]


def book_passages(
    text: str, *, prompt_chars: int = 100, completion_chars: int = 200
) -> list[tuple[str, str]]:
    """(prompt, completion) passages of a book, after the extraction protocol of Yao et al. 2024.

    A passage starts at a sentence start; its prompt is that sentence, cut at a word after at most
    `prompt_chars` characters; its completion is what follows, to the end of the word at
    `completion_chars`. Passages do not overlap. In a text with blank lines a passage does not cross
    a paragraph unless the paragraph is too short.
    """
    passages: list[tuple[str, str]] = []
    rest = ""
    for paragraph in re.split(r"\n\s*\n", text):
        rest = f"{rest} {' '.join(paragraph.split())}".strip()
        while True:
            first = sentences(rest)[:1]
            if not first:
                break
            prompt = (
                first[0]
                if len(first[0]) <= prompt_chars
                else first[0][:prompt_chars].rsplit(" ", 1)[0]
            )
            following = rest[len(prompt) :]
            if len(following) < completion_chars:
                break
            end = re.search(r"\s|$", following[completion_chars:])
            completion = following[: completion_chars + (end.start() if end else 0)]
            passages.append((prompt, completion))
            rest = " ".join(sentences(rest[len(prompt) + len(completion) :])[1:])
    return passages


def _book(path: Path, on_error: OnError = _stop) -> Iterator[tuple[dict[str, Any], str]]:
    passages = book_passages(_read_text(path))
    if not passages:
        raise UserError(
            f"{path}: the text is too short for one passage of a prompt and 200 characters"
        )
    for number, (prompt, completion) in enumerate(passages, 1):
        yield (
            {"prompt": prompt, "completion": completion, "kind": "text"},
            f"{path}, passage {number}",
        )


def _flag(value: Any) -> bool:
    """A truth value, also as a table writes it: the word `False` is false."""
    if isinstance(value, str):
        words = {"true": True, "1": True, "false": False, "0": False}
        if value.strip().lower() not in words:
            shown = (
                repr(value) if len(value) < 16 and value.isidentifier() else "a flag"
            )  # no text of the row
            raise ValueError(f"{shown} is neither true nor false")
        return words[value.strip().lower()]
    return bool(value)


def _prompt(record: Mapping[str, Any]) -> Any:
    """The prompt of a row of which this role may take nothing: a broken one would otherwise go
    unseen.
    """
    prompt = record["prompt"]
    if not (isinstance(prompt, list) or (isinstance(prompt, str) and prompt.strip())):
        raise ValueError("'prompt' must be a text that is not empty, or a list of messages")
    return prompt


def _pku_safe_rlhf(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    prompt = _prompt(record)
    return [
        {"prompt": prompt, "completion": record[f"response_{side}"]}
        for side in (0, 1)
        if _flag(record[f"is_response_{side}_safe"]) == (role == "retain")
    ]


def _beavertails(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    wanted = _flag(record["is_safe"]) == (role == "retain")
    prompt = _prompt(record)
    return [{"prompt": prompt, "completion": record["response"]}] if wanted else []


def _truthfulqa(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    question, best = (
        record.get("Question", record.get("question")),
        record.get("Best Answer", record.get("best_answer")),
    )
    if role == "retain":
        return [{"prompt": question, "completion": best}]
    wrong = record.get("Incorrect Answers", record.get("incorrect_answers")) or ""
    answers = wrong if isinstance(wrong, list) else str(wrong).split(";")
    return [
        {"prompt": question, "completion": answer.strip()} for answer in answers if answer.strip()
    ]


def _halueval(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    if role == "retain":
        return [{"prompt": record["question"], "completion": record["right_answer"]}]
    return [
        {
            "prompt": record["question"],
            "completion": record["hallucinated_answer"],
            "right": record["right_answer"],
        }
    ]


def _preferences(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    chosen, rejected = _last_turn(record["chosen"]), _last_turn(record["rejected"])
    if role == "retain":
        return [{"prompt": record["prompt"], "completion": chosen}]
    return [{"prompt": record["prompt"], "completion": rejected, "right": chosen}]


def _last_turn(answer: Any) -> Any:
    """An answer's text, also where it is a list of messages that ends with the assistant's."""
    if isinstance(answer, list) and answer and isinstance(answer[-1], Mapping):
        return answer[-1].get("content")
    return answer


def _question_answer(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    return [{"prompt": record["question"], "completion": record["answer"]}]


def _wmdp(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    choices = record["choices"]
    try:
        answer = int(record["answer"])
    except (TypeError, ValueError, OverflowError):
        raise ValueError("'answer' is no number") from None
    if not isinstance(choices, list) or not 0 <= answer < len(choices):
        raise ValueError(f"'answer' is {answer}, it must count an item of the list 'choices'")
    return [{"prompt": record["question"], "completion": str(choices[answer])}]


Adapter = Callable[[Mapping[str, Any], Role], list[dict[str, Any]]]
ADAPTERS: dict[tuple[str, ...], Adapter] = {
    (
        "prompt",
        "response_0",
        "response_1",
        "is_response_0_safe",
        "is_response_1_safe",
    ): _pku_safe_rlhf,
    ("prompt", "response", "is_safe"): _beavertails,
    ("prompt", "chosen", "rejected"): _preferences,
    ("Question", "Best Answer", "Incorrect Answers"): _truthfulqa,
    ("question", "best_answer", "incorrect_answers"): _truthfulqa,
    ("question", "right_answer", "hallucinated_answer"): _halueval,
    ("question", "choices", "answer"): _wmdp,
    ("question", "answer"): _question_answer,
}
"""Known by their columns: TRL's preference rows, PKU-SafeRLHF, BeaverTails, TruthfulQA (file and
hub), HaluEval QA, WMDP, TOFU, MUSE.
"""


def _adapted(record: Mapping[str, Any], role: Role) -> list[dict[str, Any]]:
    if "completion" not in record:
        for columns, adapter in ADAPTERS.items():
            if all(column in record for column in columns):
                extra = short_columns({k: v for k, v in record.items() if k not in columns})
                return [extra | fields for fields in adapter(record, role)]
    return [dict(record)]


def _records(source: Any, split: str, on_error: OnError) -> Iterator[tuple[dict[str, Any], str]]:
    if not isinstance(source, str | Path):
        if isinstance(source, Mapping) or not isinstance(source, Iterable):
            hint = (
                f"; take one of {', '.join(map(repr, source))}"
                if isinstance(source, Mapping)
                else ""
            )
            raise UserError(
                f"the data is a {type(source).__name__}, it must be a file, a dataset or a list of"
                f" rows{hint}"
            )
        for number, record in enumerate(source, 1):
            if not isinstance(record, str | Mapping):
                on_error(
                    UserError(
                        f"row {number}: a row must be a dict or a prompt, found"
                        f" {type(record).__name__}"
                    )
                )
                continue
            yield ({"prompt": record} if isinstance(record, str) else dict(record)), f"row {number}"
        return
    if "\0" in str(source):
        raise UserError(f"{str(source)!r}: a file's name cannot hold a null character")
    path = Path(source)
    readers = {
        ".jsonl": _json_lines,
        ".json": _json_array,
        ".csv": _table,
        ".tsv": _table,
        ".parquet": _parquet,
        ".txt": _book,
    }
    if path.suffix in readers and path.is_file():
        yield from readers[path.suffix](path, on_error)
    elif path.suffix in readers or path.exists():
        reason = (
            "no such file" if not path.exists() else f"not one of the formats {', '.join(SUFFIXES)}"
        )
        raise UserError(f"{path}: {reason}")
    else:
        yield from _hub(str(source), split)


def _hub(name: str, split: str) -> Iterator[tuple[dict[str, Any], str]]:
    from datasets import load_dataset

    rest, _, named = name.partition("@")
    identifier, _, configuration = rest.partition(":")
    split = named or split
    try:
        try:
            dataset = load_dataset(identifier, configuration or None, split=split)
        except ValueError:
            splits = _splits(identifier, configuration or None)
            if not splits or split in splits:
                raise
            if named or len(splits) > 1:
                raise UserError(
                    f"{name!r} has no split {split!r}; name one of {', '.join(splits)}, as in"
                    f" {rest}@{splits[0]}"
                ) from None
            split = splits[0]
            dataset = load_dataset(identifier, configuration or None, split=split)
    except UserError:
        raise
    except Exception as error:  # the hub client raises many types, all of them mean: not to be had
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name!r} is no file, and as a Hugging Face dataset it could not be loaded"
            f" ({type(error).__name__}: {reason})"
        ) from None
    for number, record in enumerate(dataset, 1):
        yield dict(record), f"{rest}[{split}], row {number}"


def _splits(identifier: str, configuration: str | None) -> list[str]:
    """The splits of a hub dataset; none where they cannot be had."""
    from datasets import get_dataset_split_names

    try:
        return list(get_dataset_split_names(identifier, configuration))
    except Exception:  # what is told is why the dataset could not be loaded
        return []


def records(source: Any, split: str = "train") -> Iterator[tuple[dict[str, Any], str]]:
    """(fields, where) of each record of a file, a Hugging Face dataset id or a list, with all the
    columns that it has.
    """
    yield from _records(source, split, _stop)


def adapted_records(
    source: Any, role: Role, split: str = "train", on_error: OnError = _stop
) -> Iterator[tuple[dict[str, Any], str]]:
    """(fields, where) of each record, those of known public sets turned into `prompt` and
    `completion`.

    Args:
        source, role, split: see `load_rows`.
        on_error (`Callable`, *optional*): takes the error of a row that cannot be read, and reading
            goes on; default: the first is raised.
    """
    for record, where in _records(source, split, on_error):
        try:
            adapted = _adapted(record, role)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            kind = (
                type(error).__name__ if not isinstance(error, ValueError) else str(error)
            )  # others' words may hold the row's text
            on_error(
                UserError(f"{where}: not a row of the public set that its columns name ({kind})")
            )
            continue
        for fields in adapted:
            yield fields, where


def load_rows(
    source: Any,
    role: Role = "forget",
    *,
    split: str = "train",
    prompt_only: bool = False,
    limit: int | None = None,
) -> list[Row]:
    """Rows from a file, a Hugging Face dataset id (`owner/name[:config][@split]`), a
    `datasets.Dataset`, or a list of records or prompts.

    Args:
        source: what to read; a `.txt` file is a book and is cut into passages.
        role (`"forget"` or `"retain"`): which answers of a known public set are meant (bad ones or
            good ones).
        split (`str`): split of a hub dataset that names none; one that has another one only gives
            that.
        prompt_only (`bool`): accept rows without a completion.
        limit (`int`, *optional*): read at most so many rows.

    Raises:
        UserError: naming the file, the row and the field, for anything that is not such a row.
    """
    rows: list[Row] = []
    for fields, where in adapted_records(source, role, split):
        rows.append(row_from_mapping(fields, where, prompt_only=prompt_only))
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise UserError(
            f"{source if isinstance(source, str | Path) else 'the data'}: no rows for the"
            f" {role} set"
        )
    return rows[:limit]
