"""`unteach check`: what is wrong with the data, before a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unteach.cli.exit_codes import quiet_libraries
from unteach.cli.options import Command
from unteach.config.run import option, required, run_option


@dataclass(frozen=True)
class CheckCommand:
    """Options of `unteach check`."""

    forget: str = required("forget")
    retain: str | None = run_option("retain", help="rows to keep")
    model: str | None = run_option(
        "model", default=None, help="also check token lengths and boundaries with its tokenizer"
    )
    max_length: int = option(1024, "most tokens of prompt and completion")
    hold_out: float = run_option("hold_out")
    split_by: str = run_option("split_by")
    trust_remote_code: bool = run_option("trust_remote_code")


def check(given: dict[str, Any]) -> int:
    """Reads the data as a run would and names every row that is wrong: missing columns, empty or
    too long completions, wrong encoding, rows in both sets, a forget and a retain set of different
    format. Exit code 0: nothing found; 2: something is wrong.
    """
    from rich.console import Console
    from rich.markup import escape

    from unteach.data.check import check_files

    options = CheckCommand(**given)
    tokenizer = None
    if options.model:
        quiet_libraries()
        from unteach.models import load_tokenizer

        tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    report = check_files(
        options.forget,
        options.retain,
        tokenizer,
        max_length=options.max_length,
        hold_out=options.hold_out,
        split_by=options.split_by,
    )
    console = Console(highlight=False, soft_wrap=True)
    for line in report.summary:
        console.print(escape(line))
    for problem in report.problems:
        console.print(f"[red]wrong[/red]  {escape(problem)}")
    for warning in report.warnings:
        console.print(f"[yellow]beware[/yellow] {escape(warning)}")
    found = f"{len(report.problems)} problem(s) found." if report.problems else ""
    console.print(found or "Nothing wrong found.")
    return 2 if report.problems else 0


COMMANDS = {"check": Command(check, CheckCommand, light=True)}
