"""The ledger of forget requests as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_requests(
    entries: Sequence[Mapping[str, Any]], removed: set[int], console: Console
) -> None:
    """A line for each request: what it was, its rate before and after it, and the newest rate known
    of it.

    Args:
        entries: the ledger's lines, in order.
        removed (`set[int]`): ids of requests whose patch is out.
        console (`Console`)
    """
    newest: dict[int, float] = {}
    for entry in entries:
        if entry["event"] == "request":
            newest[entry["id"]] = entry["after"]
        rates = entry.get("earlier" if entry["event"] == "request" else "rates", {})
        newest |= {int(number): rate for number, rate in rates.items()}
    table = Table(title="Forget requests", title_justify="left")
    for name in ("id", "time", "rows", "method", "rounds", "before", "after", "now", "state"):
        table.add_column(name, justify="left" if name in ("time", "method", "state") else "right")
    for entry in entries:
        if entry["event"] == "request":
            number = entry["id"]
            state = (
                "taken out"
                if number in removed
                else ("adapter" if entry["kind"] == "adapter" else "all weights")
            )
            rates = (f"{rate:.0%}" for rate in (entry["before"], entry["after"], newest[number]))
            table.add_row(
                str(number),
                entry["time"],
                str(entry["data"]["rows"]),
                entry["method"],
                str(entry["rounds"]),
                *rates,
                state,
            )
    console.print(table)
