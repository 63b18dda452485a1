"""`unteach compare`: methods by models on the same data, from one file, in tables shaped as those
of the paper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unteach.baselines.pipelines import PIPELINES, STOP_FIELDS
from unteach.config.resolve import RUN_FIELDS, resolve
from unteach.config.run import RunConfig
from unteach.config.values import check_types
from unteach.errors import UserError, did_you_mean
from unteach.evaluation.results import summarise
from unteach.evaluation.rewards import Reward
from unteach.files.atomic import read_json_lines
from unteach.files.folders import FolderLock
from unteach.progress import Display
from unteach.reports.comparison import Cell, write_comparison
from unteach.reports.figures import cost_figure
from unteach.run.pipeline import execute
from unteach.run.record import finished_evaluation
from unteach.scenarios import build_scenario, demo_presets
from unteach.scenarios.user_rows import user_scenario

NAMED_METHODS: dict[str, dict[str, Any]] = {
    "templated": {"method": "ga_mismatch", "mismatch_source": "refusal", "mismatch_completions": 1}
}
"""Names of rows that are a method with settings of its own: the paper's templated variant trains
towards one fixed refusal.
"""
OPTIONS = (
    "out",
    "models",
    "methods",
    "scenario",
    "forget",
    "retain",
    "seed",
    "settings",
    "show_text",
    "teach",
    "limit",
    "judge_as",
    "short",
)

Sets = Mapping[str, Mapping[str, Mapping[str, Any]]]


TYPES: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    ("out", str, "a folder's name"),
    ("models", (str, list), "a model or a list of models"),
    ("scenario", str, "a scenario's name"),
    ("forget", str, "a file or a dataset's name"),
    ("retain", str, "a file or a dataset's name"),
    ("seed", int, "a whole number"),
    ("settings", Mapping, "a mapping of settings"),
    ("show_text", bool, "true or false"),
    ("teach", Mapping, "a mapping of settings"),
    ("limit", int, "a whole number"),
    ("judge_as", str, "a scenario's name"),
)


@dataclass(frozen=True)
class MethodRow:
    """One row of the table: its name, the settings that make it, and options of the run beside
    them.
    """

    name: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any]


def method_rows(methods: Any) -> list[MethodRow]:
    """The `methods` of a comparison file: names, or mappings with `name`, `method` and settings.

    Raises:
        UserError: for anything else, for an unknown setting, and for two rows of one name.
    """
    if not isinstance(methods, list) or not methods:
        raise UserError(
            "option 'methods' must be a list of method names, or of mappings with name, method and"
            " settings"
        )
    rows: list[MethodRow] = []
    for item in methods:
        fields = (
            {"name": item}
            if isinstance(item, str)
            else dict(item)
            if isinstance(item, Mapping)
            else {}
        )
        name = fields.pop("name", fields.get("method"))
        if not isinstance(name, str):
            raise UserError(
                f"option 'methods' holds {item!r}, which is neither a name nor a mapping with a"
                " name"
            )
        if name in {row.name for row in rows}:
            raise UserError(f"option 'methods' names {name!r} twice; give one of them another name")
        fields = dict(NAMED_METHODS.get(name, {"method": name})) | fields
        options = {
            key: fields.pop(key) for key in list(fields) if key in RUN_FIELDS and key != "method"
        }
        check_types(options, RunConfig)
        rows.append(MethodRow(name, resolve(fields).chosen, options))
    return rows


def compare(options: Mapping[str, Any], display: Display | None = None) -> Path:
    """Runs what a comparison file names and writes `comparison.md`, `.csv`, `.tex` and `.json`;
    returns their folder.

    The taught model and the original's answers are made once for each model; each method has a
    run's folder of its own.

    Args:
        options: the fields of the file, see `unteach compare --help`.
        display (`Display`, *optional*)

    Raises:
        UserError: for a field that is missing or unknown.
    """
    display = display or Display(quiet=True)
    for name in options:
        if name not in OPTIONS:
            raise did_you_mean(name, list(OPTIONS), "option")
    for name in ("out", "models", "methods"):
        if not options.get(name):
            raise UserError(f"option {name!r} is missing in the comparison file")
    for name, kinds, wanted in TYPES:
        if options.get(name) is not None and not isinstance(options[name], kinds):
            raise UserError(
                f"option {name!r} in the comparison file must be {wanted}, it is"
                f" {type(options[name]).__name__}"
            )
    if bool(options.get("scenario")) == bool(options.get("forget")):
        raise UserError(
            "give either 'scenario' (an embedded one) or 'forget' (your rows) in the comparison"
            " file"
        )
    models = [options["models"]] if isinstance(options["models"], str) else list(options["models"])
    if not all(isinstance(model, str) and model for model in models):
        raise UserError("option 'models' in the comparison file must be names of models")
    if options.get("limit") is not None and options["limit"] < 1:
        raise UserError(f"option 'limit' is {options['limit']}, it must be positive")
    rows = method_rows(options["methods"])
    shared_settings = resolve(options.get("settings") or {}).chosen
    folder = Path(options["out"])
    with FolderLock(folder):
        return _compare(options, models, rows, shared_settings, folder, display)


def _compare(
    options: Mapping[str, Any],
    models: list[str],
    rows: list[MethodRow],
    shared_settings: Mapping[str, Any],
    folder: Path,
    display: Display,
) -> Path:
    """The cells of the table, one after the other."""
    cells: list[Cell] = []
    for number, model in enumerate(models):
        base = folder / f"model-{number}" if len(models) > 1 else folder
        for row in rows:
            display.print(f"== {model}, {row.name}")
            output = base / row.name
            evaluation = _run(options, model, row, shared_settings, base, output, display)
            if row is rows[0]:
                cells.append(Cell(model, "original", evaluation["models"]["original"], {}))
            record = json.loads((output / "run.json").read_text(encoding="utf-8"))
            cells.append(Cell(model, row.name, evaluation["models"]["unlearned"], record))
            table = write_comparison(folder, cells, evaluation)
            cost_figure(folder, cells)
        if source := reward_row(rows):
            from unteach.baselines.run import trained_reward

            reward = trained_reward(base / source / "stages" / "reward")
            places = [("original", rows[0].name), *(("unlearned", row.name) for row in rows)]
            own = cells[-len(places) :]
            cells[-len(places) :] = [
                replace(cell, sets=rewarded(cell.sets, base / name, role, reward))
                for cell, (role, name) in zip(own, places, strict=True)
            ]
            evaluation["scorers"] = {
                **evaluation["scorers"],
                "utility_reward": {"name": reward.name},
            }
            table = write_comparison(folder, cells, evaluation)
    table.print(display.console)
    return folder


def reward_row(rows: Sequence[MethodRow]) -> str | None:
    """The row whose reward model scores usefulness in all of them: the first `rlhf`, where nobody
    names a reward model.
    """
    if any(row.options.get("reward_model") for row in rows):
        return None
    return next((row.name for row in rows if row.settings.get("method") == "rlhf"), None)


def rewarded(sets: Sets, folder: Path, model: str, reward: Reward) -> Sets:
    """A model's metrics with `utility_reward` on `normal` as `reward` gives it to the answers that
    are in a run's folder.

    Args:
        sets: prompt set to metric to number.
        folder (`Path`): the run's.
        model (`str`): its name in `generations.jsonl`.
        reward (`Reward`)
    """
    lines = read_json_lines(folder / "generations.jsonl")
    said = [line for line in lines if line["model"] == model and line["set"] == "normal"]
    scores = reward.rewards([line["prompt"] for line in said], [line["output"] for line in said])
    return {
        **sets,
        "normal": {
            **sets["normal"],
            "utility_reward": summarise(scores, higher_is_better=True).as_json(),
        },
    }


def _run(
    options: Mapping[str, Any],
    model: str,
    row: MethodRow,
    shared_settings: Mapping[str, Any],
    base: Path,
    output: Path,
    display: Display,
) -> dict[str, Any]:
    """One cell of the table; a run that is there already is taken as it is."""
    baseline = row.settings.get("method") in PIPELINES
    if baseline:  # of what the methods share it takes when to stop, if that is said
        shared_settings = {
            name: shared_settings[name]
            for name in STOP_FIELDS
            if name in shared_settings and "patience" in shared_settings
        }
    given = {
        "model": model,
        "output_dir": str(output),
        "seed": options.get("seed") or 0,
        "show_text": bool(options.get("show_text")),
        "shared_dir": str(base),
        **shared_settings,
        **row.settings,
        **row.options,
    }
    presets: Mapping[str, Any] = {}
    if options.get("scenario"):
        short = bool(options.get("short", False))
        scenario = build_scenario(options["scenario"], short=short)
        if not baseline:
            presets = demo_presets(options["scenario"], short=short)
    else:
        scorers = build_scenario(options["judge_as"]).scorers if options.get("judge_as") else None
        scenario = user_scenario(
            options["forget"],
            options.get("retain"),
            scorers=scorers,
            teach=options.get("teach"),
            limit=options.get("limit"),
        )
    resolved = resolve(given, presets=presets)
    finished = finished_evaluation(resolved, scenario)
    return finished or execute(resolved, scenario, display).evaluation
