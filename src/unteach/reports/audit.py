"""The record of one deletion request: a page to complete by hand and to print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unteach.files.atomic import write_text_atomically
from unteach.reports.attacks import attack_verdict, robustness_line
from unteach.reports.report import encodable, rendered
from unteach.reports.run_files import last_name, read_files

NOT_KNOWN = "not recorded"
KINDS = {
    "adapter": "an adapter, which can be removed again",
    "full": "all weights",
}


def write_audit(
    folder: Path,
    entry: Mapping[str, Any],
    *,
    newest: float,
    state: str,
    lines: int,
    last_hash: str,
    now: str,
) -> Path:
    """Writes `audit.html` for a request into its folder: what was forgotten, from which model, how
    it was verified, and the place in the ledger; who asked is left to be filled in. It holds no
    text of a row and no local path.

    Args:
        folder (`Path`): of the ledger.
        entry: the request's line.
        newest: the request's forget rate, 0 to 1, as measured last.
        state: whether its patch is in the model.
        lines, last_hash: of the ledger, whose chain has been verified.
        now: time of writing.
    """
    run = folder / str(entry["run"])
    files = read_files(run)
    record, results, data = files.run, files.results, entry["data"]
    versions = record.get("versions", {})
    measured = [
        (results.set_title(name), results.title(metric), str(after[name][metric]["n"]), change)
        for after in results.pair[1:]
        for name in results.sets
        if (metric := results.key_metric(name))
        and metric in after.get(name, {})
        and (change := results.before_after(name, metric, with_interval=True))
    ]
    earlier = [f"request {number}: {rate:.0%}" for number, rate in entry["earlier"].items()]
    attacks = files.attacks
    groups = {
        "What had to be forgotten": [
            ("rows", str(data["rows"])),
            ("hash of the rows as given", str(data["hash"])),
            ("hash with their completions", str(data["completed_hash"])),
        ],
        "From which model, and how": [
            ("model before the first request", last_name(str(entry["base"]))),
            ("SHA-256 of the weights before", str(entry["model_in"])),
            ("SHA-256 of the weights after", str(entry["model_out"])),
            ("changed", KINDS.get(str(entry["kind"]), str(entry["kind"]))),
            ("method", str(entry["method"])),
            ("rounds of training", f"{entry['rounds']}; steps of the last: {record.get('steps')}"),
            ("seed", str(record.get("seed", NOT_KNOWN))),
            ("versions", ", ".join(f"{name} {text}" for name, text in versions.items())),
        ],
        "In the ledger": [
            ("completed", str(entry["time"])),
            ("state", state),
            ("SHA-256 of the line before", str(entry["previous"]) or "none: it is the first"),
            ("SHA-256 of the last line", last_hash),
            ("lines, each verified", str(lines)),
        ],
    }
    page = rendered(
        "audit.html.j2",
        entry=entry,
        groups=groups,
        rates=[f"{rate:.0%}" for rate in (entry["before"], entry["after"], newest)],
        metric=results.title(str(entry["metric"])),
        results=results,
        measured=measured,
        earlier=earlier,
        attacks=[attack_verdict(attacks), robustness_line(attacks)] if attacks else [],
        now=now,
    )
    path = folder / f"request-{entry['id']:03d}" / "audit.html"
    write_text_atomically(path, encodable(page))
    return path
