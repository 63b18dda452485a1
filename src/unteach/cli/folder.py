"""`unteach attack`, `report` and `purge`: what is done with a finished run's folder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unteach.attacks.options import AttackOptions
from unteach.cli.exit_codes import quiet_libraries
from unteach.cli.options import Command
from unteach.config.run import option, required, run_option
from unteach.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AttackCommand(AttackOptions):
    """Options of `unteach attack`."""

    folder: str = required("folder", help="a finished run's folder", positional=True)
    forget: Any = run_option(
        "forget", help="file of the forget rows, if it has moved since the run"
    )
    retain: Any = run_option(
        "retain", help="file of the retain rows, if it has moved since the run"
    )
    unseen: Any = run_option(
        "unseen", help="file of the unseen rows, if it has moved since the run"
    )
    neighbours: Any = run_option(
        "neighbours", help="file of the neighbour rows, if it has moved since the run"
    )
    trust_remote_code: bool = run_option("trust_remote_code")


def attack(given: dict[str, Any]) -> int:
    """Tries to bring back what a run made its model forget, on copies of the models;
    docs/reference/attacks.md says what each number means.

      prompts        other words, a role, examples, system prompts, spelling, translation
      conversation   multi_turn and step_by_step
      prompt_search  prompts that the model itself rewords, by mutation and selection
      sampling       leak@k: many sampled answers instead of one greedy one
      decoding       contrast with the original model
      inner_layers   the logit lens
      embeddings     soft prompts
      quantization   weights rounded to 8 and 4 bits (extra: pip install 'unteach[quantization]')
      pruning        the smallest weights set to 0
      merging        weights moved back towards the original's
      relearning     fine-tuning on a few forget, related, unrelated and public rows
      likelihood     traces, exposure, distance (to --retrain or --retrained): bring nothing back

    Writes attacks.json with the robustness figure, figures/leak_at_k.png, figures/relearning.png
    and the report. The same command again resumes an interrupted attack. The robustness figure
    needs a model that never knew the forget set: that of a demo, --retrain or --retrained.

      unteach attack runs/demo
      unteach attack runs/mine --level full --retrained other/model
      unteach attack runs/mine --only relearning,sampling --steps 100
      unteach attack runs/demo --retrain
    """
    from unteach.attacks.suite import attack as run_attacks
    from unteach.progress import Display
    from unteach.reports.attacks import print_attacks

    names = {item.name for item in fields(AttackOptions)}
    options = AttackOptions(**{name: value for name, value in given.items() if name in names})
    display = Display()
    others = {name: value for name, value in given.items() if name not in names}
    found = run_attacks(others.pop("folder"), options, display=display, **others)
    print_attacks(found, display.console)
    page = Path(given["folder"]) / "report.html"
    display.print(f"Report: {page} (also attacks.json and figures/)")
    return 0


@dataclass(frozen=True)
class ReportCommand:
    """Options of `unteach report`."""

    folder: str = required("folder", help="a run's folder", positional=True)
    tasks: str | None = option(
        None,
        "also write the prompt sets, with their texts, to this folder, as tasks of"
        " lm-evaluation-harness and as JSON lines for Inspect",
        metavar="OUT",
    )
    push_to_hub: str | None = option(
        None,
        "also upload the model or the adapter, with the card, to this repository of the Hugging"
        " Face Hub, which is created as a private one",
        metavar="NAME",
    )


def report(given: dict[str, Any]) -> int:
    """Writes report.md, report.html, figures/ and README.md (the model card) from the files that a
    run left in its folder.

      unteach report runs/mine
      unteach report runs/mine --tasks runs/mine/tasks
      unteach report runs/mine --push-to-hub me/model-without-mira
    """
    from unteach.reports.report import write_report

    options = ReportCommand(**given)
    for name in ("tasks", "push_to_hub"):
        if getattr(options, name) == "":
            raise UserError(
                f"option --{name.replace('_', '-')} is empty: name a place, or leave it out"
            )
    page = write_report(Path(options.folder)).with_suffix(".html")
    print(f"Report: {page}")
    if options.tasks:
        _write_tasks(options.folder, Path(options.tasks))
    if options.push_to_hub:
        from unteach.reports.report import push_model

        print(f"Pushed: {push_model(Path(options.folder), options.push_to_hub)}")
    return 0


def _write_tasks(run: str, out: Path) -> None:
    """The rows of a run's prompt sets that have an expected answer, as tasks."""
    quiet_libraries()
    from unteach.evaluation.benchmarks.harness import write_tasks
    from unteach.evaluation.metrics import is_forget_set
    from unteach.run.folder import RunFolder

    found = RunFolder(run).scenario().sets
    sets = {
        name: [
            {"id": row.key, "input": row.prompt_text, "target": row.completion}
            for row in rows
            if row.prompt and row.completion
        ]
        for name, rows in found.items()
    }
    if left := sum(map(len, found.values())) - sum(map(len, sets.values())):
        print(f"{left} rows without a prompt or an expected answer are left out.")
    for task in write_tasks(out, sets, [name for name in sets if is_forget_set(name)]):
        print(f"Task: {task}")


@dataclass(frozen=True)
class PurgeCommand:
    """Options of `unteach purge`."""

    folder: str = required(
        "folder",
        help="folder of a run, an evaluation, a comparison or a ledger of requests",
        positional=True,
    )


def purge(given: dict[str, Any]) -> int:
    """Removes answers, checkpoints, states of the reference model, a taught model and the texts in
    generations.jsonl; writes the report and the card again without them. model/ or adapter/,
    eval.json, run.json and metrics.jsonl stay. Files that were uploaded to unteach ui are removed
    when no other run uses them. Your own files are not touched.
    """
    from unteach.requests.purge import kept_uploads, set_aside_copies
    from unteach.requests.purge import purge as remove

    removed = remove(Path(given["folder"]))
    for line in removed:
        print(f"removed  {line}")
    print("The model and the numbers stay." if removed else "Nothing to remove.")
    for path, users in kept_uploads(Path(given["folder"])).items():
        print(f"{path} stays, as these runs use it too: {', '.join(users)}. Purge them too.")
    for other in set_aside_copies(Path(given["folder"])):
        print(f"There is an earlier run set aside as {other}: purge it too.")
    return 0


COMMANDS = {
    "attack": Command(attack, AttackCommand),
    "report": Command(report, ReportCommand, light=True),
    "purge": Command(purge, PurgeCommand, light=True),
}
