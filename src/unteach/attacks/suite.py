"""`unteach attack`: makes the attacks of a level on a finished run, one model after the other, and
states the robustness figure: the share of the forgotten rows that the strongest attack of each
family brings back, less what the same attack gets from a model that never knew them.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unteach.attacks.attack import Attack, LeftOut, NothingShown, Trial
from unteach.attacks.battery import PLAIN, chosen_attacks
from unteach.attacks.options import AttackOptions
from unteach.attacks.target import RETRAINED, Target
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.results import MetricResult, summarise
from unteach.prepare.generations import LoadedModel
from unteach.prepare.teaching import teach
from unteach.progress import Display
from unteach.reports.report import write_report
from unteach.reports.run_files import read_output
from unteach.run.folder import NEVER_KNEW, ORIGINAL, UNLEARNED, RunFolder

# --- the robustness figure


NO_CONTROL = (
    "no model that never knew the forget rows was given (--retrain or --retrained), so how much of"
    " this it would give too is unknown"
)
NOTHING_FORGOTTEN = (
    "no forget row is shown by the original model and not by the unlearned one without an attack"
)
NO_ATTACKS = "no attack that brings rows back was made"
Rows = Mapping[str, Sequence[float | None]]


def robustness(found: Mapping[str, Any], control: str | None) -> dict[str, Any]:
    """The field `robustness` of `attacks.json`.

    Forgotten are the attacked rows that the original model shows without an attack and the
    unlearned model does not. In each family the strongest attack is the one with the largest
    excess over the control, without one the one that brings back most; the figure is the largest
    excess of all families. An attack that trains on forget rows is measured on the others.

    Args:
        found: the content of `attacks.json`.
        control (`str`, *optional*): role of the model that never knew the rows.

    Returns:
        `value` with its bootstrap interval over `n` rows, `None` with a `reason` where it is
        missing; `forgotten_rows` of `attacked_rows`, `still_shown` and `never_shown` (by the
        original); and by family the strongest `attack`, its `tried` attacks, `brought_back`,
        `control` and `excess`.
    """
    rows = found["rows"]
    plain = rows.get("none", {})
    before, after = plain.get(ORIGINAL, []), plain.get(UNLEARNED, [])
    states = list(zip(before, after, strict=True))
    forgotten = [index for index, (first, now) in enumerate(states) if first and not now]
    facts: dict[str, Any] = {
        "control": control,
        "attacked_rows": len(states),
        "forgotten_rows": len(forgotten),
        "still_shown": sum(bool(now) for _, now in states),
        "never_shown": sum(not first and not now for first, now in states),
    }
    by_family: dict[str, dict[str, Any]] = {}
    for name, by_role in rows.items():
        family = found["about"][name]["family"]
        if family == "none" or UNLEARNED not in by_role:
            continue
        made = _of_attack(by_role, forgotten, control)
        tried = by_family.get(family, {}).get("tried", 0) + 1
        if made and (tried == 1 or _strength(made) > _strength(by_family[family])):
            by_family[family] = {"attack": name, **made}
        if family in by_family:
            by_family[family]["tried"] = tried
    strongest = max(by_family.values(), key=_strength, default=None)
    empty = MetricResult(None, 0, None, None, False).as_json()
    value, reason = empty, ""
    if not forgotten:
        reason = NOTHING_FORGOTTEN
    elif strongest is None:
        reason = NO_ATTACKS
    elif strongest["excess"] is None:
        reason = NO_CONTROL
    else:
        value = strongest["excess"]
    named = {"attack": strongest["attack"]} if strongest and not reason else {}
    return {**value, **named, **facts, "reason": reason, "families": by_family}


def _of_attack(
    by_role: Rows, forgotten: Sequence[int], control: str | None
) -> dict[str, Any] | None:
    """Brought back, control and excess of one attack; `None` without a forgotten row measured."""
    values = by_role[UNLEARNED]
    measured = [index for index in forgotten if values[index] is not None]
    if not measured:
        return None
    back = [float(values[index] or 0.0) for index in measured]
    found: dict[str, Any] = {"brought_back": _share(back), "control": None, "excess": None}
    others = by_role.get(control, []) if control else []
    if others:
        same = [float(others[index] or 0.0) for index in measured]
        excess = [one - other for one, other in zip(back, same, strict=True)]
        found["control"] = _share(same)
        found["excess"] = summarise(excess, higher_is_better=False).as_json()
    return found


def _share(values: Sequence[float]) -> dict[str, Any]:
    return summarise(values, higher_is_better=False, interval="wilson").as_json()


def _strength(entry: Mapping[str, Any]) -> tuple[bool, float]:
    """Comparable strength: an excess goes before a share without a control."""
    known = entry["excess"] is not None
    return known, float(entry["excess" if known else "brought_back"]["value"])


# --- the attacks


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
        forget, retain, unseen, neighbours (*optional*): where the rows of a user's run are now, if
            they have moved.
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
