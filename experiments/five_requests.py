"""Five forget requests one after another on a taught model, each an adapter; then one patch is
removed.

    python experiments/five_requests.py --demo runs/demo [--out DIR] [--short] [--json FILE]

The taught model is that of a copyright demo (its folder `original/`). The book's passages are
distributed over five requests. The retain rows are the demo's: half of the other book, and the
model's own answers. It prints

- after each request the forget rate of each request's rows;
- after the fifth the share of the kept book's tokens that are the model's greedy choice, and the
  similarity of its answers to everyday questions to the taught model's;
- the rates with the third patch removed. As all five requests are of one book, the other patches
  still suppress it;
- in a ledger of its own, one request on each book, and the rates with the first patch removed.

A killed run resumes. Without a taught model nothing is measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import record

from unteach import models
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.evaluation.generation import ANSWER_TOKENS, generate_outputs
from unteach.evaluation.likelihood import greedy_matches
from unteach.evaluation.similarity import pair_similarity
from unteach.progress import Display
from unteach.requests.forget_requests import change_patch, forget_request, merge_patches
from unteach.requests.ledger import read_ledger
from unteach.scenarios import build_scenario

REQUESTS = 5
SETTINGS: dict[str, Any] = {
    "method": "unlikelihood_mismatch",
    "mismatch_weight": 0.12,
    "mismatch_completions": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "per_device_train_batch_size": 3,
    "retain_per_forget": 1.0,
    "retain_weight": 5.0,
    "max_retain_kl": 0.15,
    "max_steps": 24,
    "probe_steps": 12,
    "save_steps": 12,
}


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = record.parser(__doc__, "five_requests")
    parser.add_argument(
        "--demo",
        type=Path,
        default=Path("runs/demo"),
        help="folder of a copyright demo (default: %(default)s)",
    )
    return parser.parse_args()


def as_record(row: Row) -> dict[str, Any]:
    """The row as a record of a data file."""
    return {"prompt": row.prompt, "completion": row.completion, "kind": row.kind}


def kept_share(model: Any, tokenizer: Any, rows: list[Row]) -> float:
    """Share of the rows' completion tokens that are the greedy choice, mean over rows."""
    encoded = [encode_row(row, tokenizer, None) for row in rows]
    found = greedy_matches(
        model, [row.prompt_ids for row in encoded], [row.completion_ids for row in encoded]
    )
    return fmean(fmean(right) if right else 0.0 for right in found)


def two_books(
    folder: Path,
    taught: Path,
    scenario: Any,
    retain: Path,
    settings: dict[str, Any],
    display: Display,
) -> dict[str, Any]:
    """Rates of two requests, a few passages of each book: after both, and with the first patch
    removed.
    """
    book = [*scenario.sets["unlearned"], *scenario.validation, *scenario.sets["unseen"]]
    books = [book[::REQUESTS], [*scenario.sets["kept"], *scenario.sets["kept_unseen"]][::REQUESTS]]
    rates: dict[str, float] = {}
    known = {row.completion for rows in books for row in rows}
    own = [
        line
        for line in retain.read_text(encoding="utf-8").splitlines()
        if json.loads(line)["completion"] not in known
    ]
    own_file = retain.with_name(f"{folder.name}-own.jsonl")
    own_file.write_text("\n".join(own) + "\n", encoding="utf-8")
    for rows, keep in zip(books, (retain, own_file), strict=True):
        given = [as_record(row) for row in rows]
        entry = forget_request(
            folder, given, str(keep), model=str(taught), rounds=2, display=display, **settings
        )
        rates = {**entry["earlier"], str(entry["id"]): entry["after"]}
    if 1 not in read_ledger(folder).removed:
        change_patch(folder, 1, remove=True, display=display)
    return {"after_both": rates, "first_taken_out": read_ledger(folder).entries[-1]["rates"]}


def main() -> None:
    """Runs the experiment."""
    options = parse_options()
    taught = options.demo / "original"
    if not (taught / "config.json").exists():
        print(
            f"{taught} has no taught model: run 'unteach demo --out {options.demo}' first; nothing"
            " to measure"
        )
        return
    scenario, display = build_scenario("copyright"), Display()
    book = [*scenario.sets["unlearned"], *scenario.validation, *scenario.sets["unseen"]]
    count = 2 if options.short else REQUESTS
    groups = [[as_record(row) for row in book[number::REQUESTS]] for number in range(count)]
    tokenizer = models.load_tokenizer(str(taught))
    before = models.load_model(str(taught))
    own = [row.with_completion("") for row in scenario.own_prompts]
    retain_file = options.out.with_name(f"{options.out.name}-retain.jsonl")
    if not retain_file.exists():
        outputs = generate_outputs(before, tokenizer, own, max_new_tokens=ANSWER_TOKENS)
        kept = [
            *scenario.retain,
            *(
                row.with_completion(text)
                for row, text in zip(own, outputs, strict=True)
                if text.strip()
            ),
        ]
        retain_file.parent.mkdir(parents=True, exist_ok=True)
        retain_file.write_text(
            "".join(json.dumps(as_record(row)) + "\n" for row in kept), encoding="utf-8"
        )
    settings = SETTINGS | (
        {"max_steps": 2, "probe_steps": 2, "save_steps": 2} if options.short else {}
    )
    lines: list[dict[str, Any]] = []
    for group in groups:
        entry = forget_request(
            options.out,
            group,
            str(retain_file),
            model=str(taught),
            rounds=2,
            display=display,
            **settings,
        )
        rates = {**entry["earlier"], str(entry["id"]): entry["after"]}
        lines.append(
            {
                "request": entry["id"],
                "rows": len(group),
                "before": entry["before"],
                "rounds": entry["rounds"],
                "rates": rates,
            }
        )
        print(
            f"after request {entry['id']}: "
            + ", ".join(f"{number}: {rate:.0%}" for number, rate in rates.items())
        )
    merge_patches(options.out, options.out / "work" / "merged")
    after = models.load_model(str(options.out / "work" / "merged"))
    utility: dict[str, float] = {}
    for name in ("kept", "kept_unseen"):
        rows = list(scenario.sets[name])
        utility[f"{name}_before"], utility[name] = (
            kept_share(before, tokenizer, rows),
            kept_share(after, tokenizer, rows),
        )
    questions = list(scenario.sets["normal"])
    before_outputs, after_outputs = (
        generate_outputs(model, tokenizer, questions, max_new_tokens=ANSWER_TOKENS)
        for model in (before, after)
    )
    similar = pair_similarity(before_outputs, after_outputs)
    utility["normal_similarity"] = sum(similar) / len(similar)
    print("utility: " + ", ".join(f"{name} {value:.2f}" for name, value in utility.items()))
    out = min(3, count)
    if out not in read_ledger(options.out).removed:
        change_patch(options.out, out, remove=True, display=display)
    rates = read_ledger(options.out).entries[-1]["rates"]
    print(
        f"patch {out} removed: "
        + ", ".join(f"{number}: {rate:.0%}" for number, rate in rates.items())
    )
    books = two_books(
        options.out.with_name(f"{options.out.name}-books"),
        taught,
        scenario,
        retain_file,
        settings,
        display,
    )
    print(f"one request on each book: {books}")
    record.write(
        [*lines, {"utility": utility}, {"taken_out": out, "rates": rates}, {"two_books": books}],
        options.json,
    )


if __name__ == "__main__":
    main()
