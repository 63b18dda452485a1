"""`unteach check`: what is wrong with the data, before a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unteach.cli.exit_codes import quiet_libraries
from unteach.cli.options import Command
from unteach.config.run import Finder, option, required, run_option
from unteach.errors import UserError

CHAT = ("system", "chat_template_kwargs", "chat_date")


@dataclass(frozen=True)
class CheckCommand:
    """Options of `unteach check`."""

    forget: Any = required("forget")
    retain: Any = run_option("retain", help="rows to keep")
    unseen: Any = run_option("unseen")
    neighbours: Any = run_option("neighbours")
    secrets: Finder = run_option("secrets")
    model: str | None = run_option(
        "model", default=None, help="also check lengths and show tokens and facts, with this model"
    )
    max_length: int = option(1024, "most tokens of prompt and completion")
    hold_out: float = run_option("hold_out")
    split_by: str = run_option("split_by")
    system: str | None = run_option("system", help="system prompt of rows that have none")
    chat_template_kwargs: dict[str, Any] | None = run_option("chat_template_kwargs", default=None)
    chat_date: str | None = run_option(
        "chat_date", help="day, as YYYY-MM-DD, that a chat template is told; default: today"
    )
    trust_remote_code: bool = run_option("trust_remote_code")


def check(given: dict[str, Any]) -> int:
    """Reads the data as a run would and names every row that is wrong: missing columns, empty or
    too long completions, wrong encoding, rows in both sets, a forget and a retain set of different
    format. Exit code 0: nothing found; 2: something is wrong.

    Shows which method a run would take and why, and which words of each row it would forget as
    facts: those in its `secret`, those that --secrets finds, and with --model those that only its
    prompt tells the model. With --model also the exact tokens of two rows.
    """
    from rich.console import Console
    from rich.markup import escape

    from unteach.data.check import check_files

    options = CheckCommand(**given)
    tokenizer, chat = None, {name: given[name] for name in CHAT if name in given}
    if options.model:
        quiet_libraries()
        from unteach.data.chat import ChatSettings, chosen_settings, with_chat_settings
        from unteach.models import load_tokenizer

        tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
        with_chat_settings(tokenizer, chosen_settings(ChatSettings(), **chat))
    elif chat:
        raise UserError(f"option {next(iter(chat))!r} needs --model, whose chat template it is for")
    report = check_files(
        options.forget,
        options.retain,
        tokenizer,
        unseen=options.unseen,
        neighbours=options.neighbours,
        max_length=options.max_length,
        hold_out=options.hold_out,
        split_by=options.split_by,
    )
    if report.rows["forget"] and not report.problems:
        _preview(report, options, tokenizer)
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


def _preview(report: Any, options: CheckCommand, tokenizer: Any) -> None:
    """Adds what a run would do to the report."""
    from unteach.preview import preview

    model = None
    if options.model:
        from unteach import models

        model = models.placed(
            models.load_model(options.model, trust_remote_code=options.trust_remote_code)
        )
    try:
        found = preview(
            report.rows,
            secrets=options.secrets,
            tokenizer=tokenizer,
            model=model,
            hold_out=options.hold_out,
            split_by=options.split_by,
        )
    except UserError as error:
        report.problems.append(str(error))
    else:
        report.summary += found.lines
        report.warnings += found.warnings


COMMANDS = {"check": Command(check, CheckCommand, light=True)}
