"""`unteach compare`: methods by models on the same data, from one file, in tables shaped as those
of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unteach.baselines.pipelines import PIPELINES, STOP_FIELDS
from unteach.config.resolve import ResolvedConfig, resolve
from unteach.config.run import RunConfig, refuse_data_options
from unteach.config.unlearning import with_wrappers
from unteach.data.chat import settings_from
from unteach.data.rows import PAPER_HOLD_OUT
from unteach.errors import UserError, did_you_mean
from unteach.evaluation.results import summarise
from unteach.evaluation.rewards import Reward
from unteach.files.folders import FolderLock
from unteach.progress import Display
from unteach.reports.comparison import Cell, write_comparison
from unteach.reports.figures import cost_figure
from unteach.reports.results import Sets
from unteach.requests.purge import DERIVED
from unteach.run.folder import RunFolder
from unteach.run.model_check import check_places
from unteach.run.pipeline import execute
from unteach.run.record import finished_evaluation
from unteach.scenarios import build_scenario, demo_presets
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import user_scenario

NAMED_METHODS: dict[str, dict[str, Any]] = {
    "templated": {"method": "ga_mismatch", "mismatch_source": "refusal", "mismatch_completions": 1}
}
"""Names of rows that are a method with settings of its own: the paper's templated variant trains
towards one fixed refusal."""
OPTIONS: dict[str, tuple[Any, str]] = {
    "out": (str, "a folder's name"),
    "models": ((str, list), "a model or a list of models"),
    "methods": (object, "a list"),
    "scenario": (str, "a scenario's name"),
    "forget": ((str, list), "a file or a dataset's name, or a list of them"),
    "retain": ((str, list), "a file or a dataset's name, or a list of them"),
    "unseen": ((str, list), "a file or a dataset's name, or a list of them"),
    "neighbours": ((str, list), "a file or a dataset's name, or a list of them"),
    "hold_out": ((int, float), "a number from 0 to 1"),
    "split_by": (str, "the name of a column"),
    "seed": (int, "a whole number"),
    "settings": (Mapping, "a mapping of settings"),
    "show_text": (bool, "true or false"),
    "teach": (Mapping, "a mapping of settings"),
    "limit": (int, "a whole number"),
    "judge_as": (str, "a scenario's name"),
    "short": (bool, "true or false"),
}
"""Type of each field of a comparison file, and the type in words."""
OF_ALL_METHODS = "the rows are those of all methods, and a field of the comparison file"


@dataclass(frozen=True)
class MethodRow:
    """One row of the table: its name, and the options that it sets, as `resolve()` takes them."""

    name: str
    given: Mapping[str, Any]


def method_rows(methods: Any) -> list[MethodRow]:
    """The `methods` of a comparison file: names, with wrappers as in `npo+sam`, or mappings with
    `name`, `method` and settings.

    Raises:
        UserError: for anything else, for an unknown setting, and for two rows of one name.
    """
    if not isinstance(methods, list) or not methods:
        wanted = "a list of method names, or of mappings with name, method and settings"
        raise UserError(f"option 'methods' must be {wanted}")
    rows: list[MethodRow] = []
    for item in methods:
        given = {"name": item} if isinstance(item, str) else item
        given = dict(given) if isinstance(given, Mapping) else {}
        name = given.pop("name", given.get("method"))
        if not isinstance(name, str):
            wrong = "which is neither a name nor a mapping with a name"
            raise UserError(f"option 'methods' holds {item!r}, {wrong}")
        _check_folder_name(name)
        if name in {row.name for row in rows}:
            raise UserError(f"option 'methods' names {name!r} twice; give one of them another name")
        named = {} if "method" in given else with_wrappers(name)
        given = NAMED_METHODS.get(name, named) | given
        resolve(given)  # refuses what is unknown or of another type
        _refuse_other_fields(given)
        rows.append(MethodRow(name, given))
    return rows


def _check_folder_name(name: str) -> None:
    """Raises `UserError` for the name of a row that its folder cannot have."""
    taken = {*DERIVED, "model", "adapter", "figures"}
    size = len(name.encode(errors="replace"))
    plain = name.strip() and not name.startswith(".") and size <= 200
    if not plain or name in taken or re.search(r"[/\\\x00-\x1f\ud800-\udfff]|^model-\d+$", name):
        raise UserError(
            f"option 'methods' names {name!r}, which its folder cannot be called: take a short name"
            f" without slashes that is none of {', '.join(sorted(taken))}"
        )


def _refuse_other_fields(given: Mapping[str, Any]) -> None:
    """Raises `UserError` for options that the comparison file decides by fields of its own."""
    refuse_data_options(given, OF_ALL_METHODS)
    for name in ("model", "output_dir", "shared_dir"):
        if given.get(name) is not None:
            field = "models" if name == "model" else "out"
            raise UserError(
                f"option {name!r} has no place here: the file's field {field!r} decides it"
            )


def check_fields(options: Mapping[str, Any]) -> None:
    """Raises `UserError` for a field of a comparison file that is missing, unknown or wrong."""
    for name in options:
        if name not in OPTIONS:
            raise did_you_mean(name, list(OPTIONS), "option")
    for name in ("out", "models", "methods"):
        if not options.get(name):
            raise UserError(f"option {name!r} is missing in the comparison file")
    for name, value in options.items():
        kinds, wanted = OPTIONS[name]
        wrong = isinstance(value, bool) and kinds not in (bool, object)
        if value is not None and (wrong or not isinstance(value, kinds)):
            found = type(value).__name__
            raise UserError(f"option {name!r} in the comparison file must be {wanted}, not {found}")
    if bool(options.get("scenario")) == bool(options.get("forget")):
        either = "either 'scenario' (an embedded one) or 'forget' (your rows)"
        raise UserError(f"give {either} in the comparison file")
    if not all(isinstance(model, str) and model for model in options["models"]):
        raise UserError("option 'models' in the comparison file must be names of models")
    if options.get("limit") is not None and options["limit"] < 1:
        raise UserError(f"option 'limit' is {options['limit']}, it must be positive")
    if not 0 <= (options.get("hold_out") or 0) < 1:
        raise UserError(
            f"option 'hold_out' is {options['hold_out']}, it must be at least 0 and below 1"
        )
    teach = options.get("teach") or {}
    resolve(teach)
    others = [n for n in teach if n in RunConfig.__dataclass_fields__ and n != "frozen_layers"]
    if others:
        raise UserError(f"option 'teach' has {others[0]!r}, which is no setting of a training")
    resolve(options.get("settings") or {})
    _refuse_other_fields(options.get("settings") or {})
    ours = ("unseen", "neighbours", "hold_out", "split_by")
    given = [name for name in ours if options.get(name) is not None]
    if options.get("scenario") and given:
        raise UserError(f"option {given[0]!r} is for your rows; an embedded scenario has its own")


def compare(options: Mapping[str, Any], display: Display | None = None) -> Path:
    """Runs what a comparison file names and writes `comparison.md`, `.csv`, `.tex` and `.json`;
    returns their folder.

    The taught model and the original's answers are made once for each model. Each method has a
    run's folder of its own; a run that is finished is not repeated.

    Raises:
        UserError: for a field that is missing, unknown or wrong.
    """
    display = display or Display(quiet=True)
    check_fields(options)
    rows, folder, given = method_rows(options["methods"]), Path(options["out"]), options["models"]
    models = [given] if isinstance(given, str) else list(given)
    cells: list[Cell] = []
    check_places(folder, *map(str, models), kind="comparison")
    with FolderLock(folder):
        for number, model in enumerate(models):
            base = folder / f"model-{number}" if len(models) > 1 else folder
            own: list[Cell] = []
            for row in rows:
                display.print(f"== {model}, {row.name}")
                resolved, scenario = cell_config(options, model, row, base)
                known = finished_evaluation(resolved, scenario)
                evaluation = known or execute(resolved, scenario, display).evaluation
                if not own:
                    own.append(Cell(model, "original", evaluation["models"]["original"]))
                record = RunFolder(base / row.name).record()
                sets = evaluation["models"]["unlearned"]
                judged = evaluation.get("verdict") or "", evaluation.get("reasons") or ()
                own.append(Cell(model, row.name, sets, record, *judged))
                table = write_comparison(folder, [*cells, *own], evaluation)
                cost_figure(folder, [*cells, *own])
            if source := reward_row(rows):
                from unteach.baselines.run import trained_reward

                chat = settings_from(RunFolder(base / source).record().get("chat"))
                reward = trained_reward(base / source / "stages" / "reward", chat)
                places = [("original", rows[0].name), *(("unlearned", row.name) for row in rows)]
                own = [
                    replace(cell, sets=rewarded(cell.sets, base / name, role, reward))
                    for cell, (role, name) in zip(own, places, strict=True)
                ]
                scorers = {**evaluation["scorers"], "utility_reward": {"name": reward.name}}
                evaluation = {**evaluation, "scorers": scorers}
                table = write_comparison(folder, [*cells, *own], evaluation)
            cells += own
    table.print(display.console)
    return folder


def cell_config(
    options: Mapping[str, Any], model: str, row: MethodRow, base: Path
) -> tuple[ResolvedConfig, Scenario]:
    """Settings and rows of one cell. A baseline takes only the stop rule of the shared settings, if
    they have one.
    """
    shared, presets = dict(options.get("settings") or {}), {}
    baseline = row.given["method"] in PIPELINES
    if baseline:
        rule = STOP_FIELDS if "patience" in shared else ()
        shared = {name: shared[name] for name in rule if name in shared}
    if name := options.get("scenario"):
        short = bool(options.get("short"))
        scenario = build_scenario(name, short=short)
        presets = {} if baseline else demo_presets(name, short=short)
    else:
        judge, teach = options.get("judge_as"), options.get("teach")
        scorers, limit = build_scenario(judge).scorers if judge else None, options.get("limit")
        files = (options["forget"], options.get("retain"))
        data = {name: options[name] for name in ("unseen", "neighbours") if name in options}
        data["hold_out"] = options.get("hold_out", PAPER_HOLD_OUT)
        data["secrets"] = (options.get("settings") or {}).get("secrets", "patterns")
        data["split_by"] = options.get("split_by", "prompt")
        scenario = user_scenario(*files, scorers=scorers, teach=teach, limit=limit, **data)
    seed, show_text = options.get("seed") or 0, bool(options.get("show_text"))
    given = {"model": model, "seed": seed, "show_text": show_text, **shared, **row.given}
    given |= {"output_dir": str(base / row.name), "shared_dir": str(base)}
    return resolve(given, presets=presets), scenario


def reward_row(rows: Sequence[MethodRow]) -> str | None:
    """The row whose reward model scores all rows: the first `rlhf`, unless a row names
    a reward model.
    """
    if any(row.given.get("reward_model") for row in rows):
        return None
    return next((row.name for row in rows if row.given["method"] == "rlhf"), None)


def rewarded(sets: Sets, folder: Path, model: str, reward: Reward) -> Sets:
    """A model's results with `utility_reward` on `normal`: the scores that `reward` gives to its
    answers in a run's folder.
    """
    records = RunFolder(folder).generations()
    lines = [line for line in records if (line["model"], line["set"]) == (model, "normal")]
    scores = reward.rewards([line["prompt"] for line in lines], [line["output"] for line in lines])
    result = summarise(scores, higher_is_better=True).as_json()
    return {**sets, "normal": {**sets["normal"], "utility_reward": result}}
