"""What `method=auto` tried, as a table: a row for each trial, best first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTE = (
    "Short trials from the same weights. Score: utility kept, less the share still said, less the"
    " share of answers that mean nothing (NM)."
)
HEADER = [
    "method",
    "learning rate",
    "step",
    "still said",
    "held-out rows",
    "utility kept",
    "NM",
    "retain KL",
    "score",
    "seconds",
]


def picked(found: Mapping[str, Any]) -> str:
    """What was picked and why, and what there was no time for."""
    left = found.get("untried") or []
    return f"Picked {found['why']}." + (
        f" There was no time for {', '.join(left)}." if left else ""
    )


def search_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The rows below `HEADER` for `search` of `run.json`. A trial without a result says why in the
    place of its numbers.
    """
    rows = []
    for trial in sorted(found["trials"], key=lambda trial: (bool(trial["note"]), -trial["score"])):
        name = [trial["settings"]["method"], f"{trial['settings']['learning_rate']:g}"]
        if trial["note"]:
            rows.append([*name, *[""] * 6, trial["note"], f"{trial['seconds']:.0f}"])
            continue
        shares = [
            f"{trial[part]:.0%}"
            for part in ("forget_rate", "validation_rate", "utility", "not_meaningful")
        ]
        kl = "" if trial["retain_kl"] is None else f"{trial['retain_kl']:.3f}"
        rows.append(
            [
                *name,
                str(trial["step"]),
                *shares,
                kl,
                f"{trial['score']:.2f}",
                f"{trial['seconds']:.0f}",
            ]
        )
    return rows
