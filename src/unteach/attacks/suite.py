"""`unteach attack`: makes the attacks of a level on a finished run, one model after the other."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unteach.attacks.attack import Attack, LeftOut, NothingShown, Trial
from unteach.attacks.battery import PLAIN, chosen_attacks
from unteach.attacks.options import AttackOptions
from unteach.attacks.robustness import robustness
from unteach.attacks.target import RETRAINED, Target
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.prepare.generations import LoadedModel
from unteach.prepare.teaching import teach
from unteach.progress import Display
from unteach.reports.report import write_report
from unteach.reports.run_files import read_output
from unteach.run.folder import NEVER_KNEW, ORIGINAL, RunFolder


def make_trial(target: Target, name: str, entry: Attack, role: str) -> None:
    """Makes one attack on one model, or takes up its outcome of an earlier start.

    Raises:
        LeftOut: if the run does not allow it.
    """
    settings = dict(entry.budget(target))
    about = {"family": entry.family, "title": entry.title, "about": entry.about}
    title = f"{entry.title[:1].upper()}{entry.title[1:]}: the {role.replace('_', ' ')} model"

    def make() -> dict[str, Any]:
        with target.display.stage(title) as stage:
            found = entry.run(Trial(target, name, role, settings, stage.update)).as_json()
        if entry.changes:
            gc.collect()  # a trainer and its callbacks form a cycle that holds the model
        return found

    found = target.cached(name, role, [settings, entry.inputs(target)], make)
    target.add(name, role, about, settings, found)


def make_attacks(target: Target, chosen: dict[str, Attack]) -> None:
    """Makes attacks on one model after the other, so that no more than two are in memory.

    Raises:
        UserError: if an attack that the user named cannot be made.
    """
    only, faults, left = target.options.only, dict[str, str](), set[str]()
    for role in target.roles("all"):
        for name, entry in {"none": PLAIN, **chosen}.items():
            if name in left or role not in target.roles(entry.models):
                continue
            try:
                reason = entry.missing(target)
                if reason is not None:
                    raise LeftOut(reason)
                make_trial(target, name, entry, role)
            except LeftOut as error:
                left.add(name)
                if not isinstance(error, NothingShown):
                    faults[name] = str(error)
                target.leave_out(name, str(error))
        for name in faults:
            family = chosen[name].family
            same = {other for other in chosen if chosen[other].family == family}
            if name in only or (family in only and faults.keys() >= same):
                raise UserError(f"{name}: {faults[name]}")
    target.results["robustness"] = robustness(target.results, target.control)
    target.write()


def taught_without(taught: Sequence[Row], forget: Sequence[Row]) -> list[Row]:
    """The taught rows whose prompt and completion contain no forget row; white space is ignored."""
    texts = [_one_line(row) for row in forget]
    return [row for row in taught if not any(text in _one_line(row) for text in texts)]


def _one_line(row: Row) -> str:
    return " ".join(f"{row.prompt_text} {row.completion}".split())


def retrain(target: Target) -> str:
    """Teaches the base model as the run did, without the rows that contain a forget row; returns
    the folder of the model. Interrupted, it resumes; done, it is not repeated.

    Passages that the original model recited itself are taught: no user put them into a forget set.

    Raises:
        UserError: if the run taught nothing.
    """
    folder, record = target.folder, target.folder.record()
    if NEVER_KNEW not in folder.model_paths():
        raise UserError(
            "--retrain needs a run that taught its model (a demo); name a model trained without the"
            " forget set by --retrained"
        )
    kept = taught_without(target.scenario.teach, target.all_forget)
    if not kept:
        raise UserError("--retrain: nothing that was taught is left without the forget set")
    scenario, taught = replace(target.scenario, teach=kept), target.work / RETRAINED / ORIGINAL
    torch.manual_seed(record["seed"])
    cache = folder.cache(folder.model_hash(NEVER_KNEW))
    source = LoadedModel(folder.load_model(NEVER_KNEW), target.tokenizer, cache, target.display)
    teach(source, scenario, taught, record["seed"], folder.config()["settings"])
    return str(taught)


def attack(
    folder: str | Path,
    options: AttackOptions | None = None,
    *,
    forget: Any = None,
    retain: Any = None,
    unseen: Any = None,
    neighbours: Any = None,
    trust_remote_code: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Runs attacks on a finished run, and writes `attacks.json`, `figures/relearning.png` and the
    report.

    All changes of weights are made on copies. Results are kept in `work/attacks`, so that an
    interrupted call resumes.

    Args:
        folder (`str` or `Path`): the run's.
        forget (*optional*): where the forget rows of a user's run are now, if they have moved.
        retain (*optional*): where the retain rows are now.
        unseen (*optional*): where the unseen rows are now.
        neighbours (*optional*): where the neighbours are now.
        trust_remote_code (`bool`): run code that comes with the model.

    Returns:
        The content of `attacks.json`.

    Raises:
        UserError: for an unknown attack, if the folder is not that of a finished run, if its rows
            or models are not those of the run, or if an attack named in `only` cannot be run.
    """
    options = options or AttackOptions()
    chosen = chosen_attacks(tuple(options.only), options.level)
    run = RunFolder(folder, trust_remote_code)
    for name in ("config.yaml", "metrics.jsonl", "generations.jsonl"):
        read_output(run.path / name)  # what the report will read: refused before hours of attacks
    with run.lock():
        files = {"forget": forget, "retain": retain, "unseen": unseen, "neighbours": neighbours}
        target = Target(run, options, display=display, **files)
        retrained = retrain(target) if options.retrain else options.retrained
        if retrained:
            run.add_model(RETRAINED, retrained)
        target.start()
        make_attacks(target, chosen)
        write_report(run.path)
        return target.results
