"""The table of a plan: bytes on each device by what they hold, the peak, and the time at some
rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def time_text(seconds: float) -> str:
    """Seconds as a reader says them."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Prints what `unteach plan --json` gives."""
    table = Table(
        title=f"{plan['model']}, on each of {plan['processes']} device(s)",
        box=None,
        title_justify="left",
    )
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in plan["bytes"].items():
        table.add_row(name, f"{size / 2**30:.2f}")
    table.add_row("reference states on disk", f"{plan['disk_bytes'] / 2**30:.2f}", style="dim")
    table.add_row("peak", f"{plan['peak_bytes'] / 2**30:.2f}", style="bold")
    console.print(table)
    console.print(
        f"{plan['trained_parameters'] / 1e6:.1f} of {plan['parameters'] / 1e6:.1f} million"
        f" parameters are trained; {plan['tokens']} tokens and {plan['step_flops'] / 1e12:.3g} x"
        f" 10^12 operations a step; {plan['steps']} steps.",
        highlight=False,
        soft_wrap=True,
    )
    for rate, seconds in plan["seconds"].items():
        console.print(
            f"At {rate} x 10^12 operations a second: {time_text(seconds)} of training.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        "Computed, not measured. The parts are not all there at once, so the peak is less than"
        " their sum.",
        soft_wrap=True,
    )
