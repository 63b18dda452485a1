"""`unteach request` and `unteach requests`: forget requests over time, on one model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.cli.exit_codes import quiet_libraries
from unteach.cli.options import Command, with_words
from unteach.config.run import option, required, run_option
from unteach.errors import UserError


@dataclass(frozen=True)
class RequestCommand:
    """Options of `unteach request`; others of a run are given as `key=value`."""

    folder: str = required("folder", help="folder of the ledger and its files", positional=True)
    forget: Any = required("forget", help="rows to forget: all are trained on, none is held out")
    retain: Any = run_option("retain")
    unseen: Any = run_option("unseen")
    neighbours: Any = run_option("neighbours")
    model: str | None = run_option(
        "model",
        default=None,
        help="hub id, local folder or packaged name; needed for the first request",
    )
    full: bool = option(
        False, "train all weights instead of an adapter (for all requests of a folder)"
    )
    lora_rank: int = run_option("lora_rank")
    target: float = option(0.03, "forget rate above which an earlier request has come back")
    rounds: int = option(3, "most trainings of a request")
    seed: int = run_option("seed", help="seed")
    method: str = run_option("method")
    system: str | None = run_option("system")
    chat_template_kwargs: dict[str, Any] | None = run_option("chat_template_kwargs", default=None)
    chat_date: str | None = run_option("chat_date")
    max_new_tokens: int | None = run_option("max_new_tokens")
    trust_remote_code: bool = run_option("trust_remote_code")


def request(given: dict[str, Any]) -> int:
    """One forget request after another on the same model. A request starts from the model that the
    last one left and is measured; the requests before it are evaluated again, and what came back is
    forgotten once more, together with the new rows. A line of DIR/requests.jsonl records it.

    Each request trains an adapter, a patch that can be taken out later (--full: all weights, which
    cannot). The first request names the model. The same command again resumes an interrupted one.

      unteach request runs/ledger --model HuggingFaceTB/SmolLM2-135M-Instruct --forget monday.jsonl
      unteach request runs/ledger --forget tuesday.jsonl learning_rate=2e-4 max_steps=40
      unteach requests runs/ledger
    """
    from unteach.config.resolve import flat
    from unteach.progress import Display
    from unteach.requests.forget_requests import forget_request

    display = Display()
    options = flat(with_words(given))
    entry = forget_request(options.pop("folder"), options.pop("forget"), display=display, **options)
    earlier = [f"{rate:.0%} of request {number}" for number, rate in entry["earlier"].items()]
    after = f"; of the earlier ones: {', '.join(earlier)}" if earlier else ""
    display.print(
        f"Request {entry['id']}: {entry['metric']} {entry['before']:.0%} ->"
        f" {entry['after']:.0%}{after}{met_limit(entry)}."
    )
    if entry.get("verdict"):
        display.print(f"Verdict: {entry['verdict']}")
    for reason in entry.get("reasons") or ():
        display.print(f"- {reason}")
    return 0


def met_limit(entry: Mapping[str, Any]) -> str:
    """How many answers met the token limit, where any did."""
    cut = max(entry.get("cut_off", {}).values(), default=0.0)
    return f" (up to {cut:.0%} of the answers met the token limit)" if cut else ""


@dataclass(frozen=True)
class RequestsCommand:
    """Options of `unteach requests`."""

    folder: str = required("folder", help="folder of the ledger", positional=True)
    remove: int | None = option(None, "take this request's patch out", metavar="ID")
    restore: int | None = option(None, "put this request's patch back", metavar="ID")
    audit: int | None = option(
        None, "write the record of this request, a page to complete and print", metavar="ID"
    )
    merge: str | None = option(
        None, "write the whole model with all active patches to this folder", metavar="OUT"
    )
    trust_remote_code: bool = run_option("trust_remote_code")


def requests(given: dict[str, Any]) -> int:
    """Lists the forget requests of a folder; takes a patch out or puts it back; writes the model
    with all active patches, or the record of one request.

      unteach requests runs/ledger                    the ledger as a table
      unteach requests runs/ledger --remove 2         the model as if request 2 had not been trained
      unteach requests runs/ledger --restore 2
      unteach requests runs/ledger --audit 2          a page to complete and print, for the files
      unteach requests runs/ledger --merge out        a whole model; DIR/adapter is the patches' sum
    """
    from rich.console import Console

    from unteach.reports.tables import request_table
    from unteach.requests.ledger import read_ledger

    options = RequestsCommand(**given)
    folder, trust = Path(options.folder), options.trust_remote_code
    changes = [name for name in ("remove", "restore", "merge", "audit") if name in given]
    if len(changes) > 1:
        raise UserError(f"give only one of --{' and --'.join(changes)}")
    if options.audit is not None:
        print(f"Record: {_audit(folder, options.audit)}")
        return 0
    if changes:
        quiet_libraries()
        from unteach.progress import Display
        from unteach.requests.forget_requests import change_patch, merge_patches

        if options.merge is not None:
            merge_patches(folder, options.merge, trust_remote_code=trust)
            print(f"Model: {options.merge}")
        else:
            number, out = given[changes[0]], options.remove is not None
            change_patch(folder, number, remove=out, trust_remote_code=trust, display=Display())
    ledger = read_ledger(folder)
    if not ledger.entries:
        raise UserError(f"{folder} has no requests (requests.jsonl is missing or empty)")
    table = request_table(ledger.entries, ledger.removed)
    table.print(Console(), "Forget requests, with their forget rates")
    return 0


def _audit(folder: Path, number: int) -> Path:
    """Writes the record of a request, from a ledger whose chain is intact."""
    from unteach.reports.page import write_audit
    from unteach.reports.tables import newest_rates
    from unteach.requests.ledger import read_ledger

    ledger = read_ledger(folder)
    return write_audit(
        folder,
        ledger.request(number),
        newest=newest_rates(ledger.entries)[number],
        state="its patch has been removed" if number in ledger.removed else "in force",
        lines=len(ledger.entries),
        last_hash=ledger.last_hash,
        now=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


COMMANDS = {
    "request": Command(request, RequestCommand, settings=True),
    "requests": Command(requests, RequestsCommand, light=True),
}
