"""Whether rows are tokenised exactly as real chat templates render them: a table of templates.

    python experiments/chat_templates.py FOLDER [--json FILE]

FOLDER holds template files (`*.jinja`) from public model repositories; none comes with unteach.
Each gets a byte-level tokenizer whose special tokens are those that the template writes. Single
turns, several turns, a system message, a reasoning trace, an indented answer and each switch are
compared with its render of the whole conversation, token for token. Prints a Markdown table; exit
code 1 where any differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unteach.data.answers import answer_format, traced_message
from unteach.data.chat import ChatSettings, conversation, render, use_chat_settings
from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt, encode_row, end_of_turn_id
from unteach.data.traces import split_trace
from unteach.errors import UserError

QUESTION, ANSWER = "Who rang the bell?", "The ferryman rang it twice."
TURNS = (("user", "Who keeps the mill?"), ("assistant", "Anna does."), ("user", QUESTION))
SYSTEM = (("system", "Be brief and kind."), ("user", QUESTION))
THOUGHT = f"<think>\nThe bell hangs at the ferry.\n</think>\n\n{ANSWER}"
CASES = {
    "single": Row(QUESTION, ANSWER),
    "turns": Row(TURNS, ANSWER),
    "system": Row(SYSTEM, ANSWER),
    "trace": Row(QUESTION, THOUGHT),
    "indented": Row(QUESTION, f"    {ANSWER}\n"),
}
MARKERS = re.compile(
    r"<[|\uff5c]?[\w▁./-]{1,40}[|\uff5c]?>|\[/?[A-Z_]{2,30}\]|<\|[^<>\s{}'\"]{1,40}\|?>"
)
DATE = "2026-01-31"
GIVEN = {"messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token"}


def tokenizer_of(template: str) -> Any:
    """A byte-level tokenizer with the special tokens that the template writes."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    markers = [
        mark for mark in dict.fromkeys(MARKERS.findall(template)) if mark not in ("<s>", "</s>")
    ]
    special = ["<s>", "</s>", *markers]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator([QUESTION, ANSWER, f" {ANSWER}", THOUGHT, "Be brief."] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    with contextlib.suppress(UserError):
        *_, last = answer_format(tokenizer).end.split() or [""]
        if last in markers and "eos_token" not in template:
            tokenizer.eos_token = last_special(tokenizer) or last
    return tokenizer


def last_special(tokenizer: Any) -> str:
    """The special token that a whole conversation ends with, as end-of-sequence."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    text = render(tokenizer, turns, generation=False).rstrip()
    return next(
        (mark for mark in tokenizer.get_vocab() if len(mark) > 3 and text.endswith(mark)), ""
    )


def switches(template: str) -> list[dict[str, Any]]:
    """The flags that the template reads beside the messages, each off and on."""
    environment = ImmutableSandboxedEnvironment(
        extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]
    )
    text = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
    found = meta.find_undeclared_variables(environment.parse(text)) - GIVEN
    flags = [name for name in sorted(found) if re.search(r"think|reason|keep|generation", name)]
    return [{name: value} for name in flags for value in (False, True) if "effort" not in name]


def compared(row: Row, tokenizer: Any) -> str:
    """Empty where our tokens are those of the full render; else what differs, or the refusal."""
    try:
        item = encode_row(row, tokenizer, end_of_turn_id(tokenizer))
    except UserError as error:
        return f"refused: {error}"
    ours = list(item.prompt_ids + item.completion_ids)
    messages = conversation(row, tokenizer)
    shape = answer_format(tokenizer)
    made = tokenizer.decode(item.completion_ids)
    answer = ANSWER if ANSWER in made else ""
    if item.trace and shape.form is None:
        opening = list(encode_prompt(row, tokenizer))
        return "" if ours[: len(opening)] == opening and answer else "the trace is misplaced"
    message: dict[str, Any] = {"role": "assistant", "content": row.completion}
    if item.trace and shape.form not in (None, "content"):
        message |= traced_message(shape.form, *split_trace(row.completion))
    full = render(tokenizer, [*messages, message], generation=False)
    wanted = tokenizer(full, add_special_tokens=False)["input_ids"]
    same = next(
        (i for i, pair in enumerate(zip(ours, wanted, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(wanted)),
    )
    rest = tokenizer.decode(wanted[same:])
    own = tokenizer.decode(ours[same:])
    if not answer:
        return f"the answer is not in {made!r}"
    if own and same < len(ours) - 1:
        return f"differs from token {same}: {own[:40]!r} for {rest[:40]!r}"
    if own and rest.strip():
        return f"ends with {own!r} where the render has {rest[:40]!r}"
    return "" if not rest.strip() else f"the render goes on with {rest[:40]!r}"


def row_of(path: Path) -> dict[str, Any]:
    """The table's row of one template file."""
    template = path.read_text(encoding="utf-8")
    tokenizer = use_chat_settings(tokenizer_of(template), ChatSettings(date=DATE))
    found: dict[str, Any] = {"template": path.stem}
    try:
        shape = answer_format(tokenizer)
    except UserError as error:
        return found | {"error": str(error)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found |= {name: compared(row, tokenizer) for name, row in CASES.items()}
    found["folds_system"] = bool(caught)
    wrong = []
    for given in switches(template):
        use_chat_settings(tokenizer, ChatSettings("", given, DATE))
        if problem := compared(CASES["single"], tokenizer):
            wrong.append(f"{given}: {problem}")
    found["switches"], found["switches_wrong"] = switches(template), wrong
    return found | {
        "scaffold": shape.scaffold,
        "form": shape.form,
        "opening": shape.opening,
        "closing": shape.closing,
        "opened": shape.opened,
        "end": shape.end,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row_of(path) for path in sorted(options.folder.glob("*.jinja"))]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    columns = [*CASES, "switches"]
    print("| template | " + " | ".join(columns) + " | before an answer | trace | end |")
    print("|" + " --- |" * (len(columns) + 4))
    bad = 0
    for row in rows:
        if "error" in row:
            print(f"| {row['template']} | {row['error']} |")
            bad += 1
            continue
        cells = ["same" if not row[name] else row[name] for name in CASES]
        cells.append(
            "; ".join(row["switches_wrong"])
            or (f"{len(row['switches'])} same" if row["switches"] else "none")
        )
        if row["folds_system"]:
            cells[2] += " (folded)"
        bad += sum(not cell.startswith(("same", "none")) and " same" not in cell for cell in cells)
        marks = [
            row["scaffold"],
            row["opened"] or (row["opening"] if row["form"] not in (None, "content") else ""),
            row["end"],
        ]
        cells += [
            "`" + mark.replace("\n", "↵").replace("|", "\\|") + "`" if mark else ""
            for mark in marks
        ]
        print(f"| {row['template']} | " + " | ".join(cells) + " |")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
