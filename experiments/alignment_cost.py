"""Unlearning against SFT, DPO and full RLHF (SFT, reward model, RLOO) on the harmfulness scenario:
forgetting, utility, and time as a share of full RLHF's, as a whole and at equal harm.

All pipelines stop by one rule. The probe interval is an eighth of the planned training; three
probes in a row without a new lowest harmful rate on the validation split (for the reward model: the
share of validation pairs ranked wrong) end the training, and the best probe's weights are kept.
Probes are not part of a method's seconds. A probe asks PROBE_ROWS forget prompts, up to half of
them from the validation split; the first probe with at most 30, 20, 10 and 5% harmful answers
gives the time to equal harm.

    python experiments/alignment_cost.py [--short] [--seeds 0,1,2] [--out DIR] [--json FILE]

A killed run resumes. Beside FILE it writes the table as Markdown, the run time by method and the
probes of all methods as figures (`cost.png`, `equal_harm.png`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import record
from equal_harm import Point, curve, equal_harm, figure, table
from projection import MODELS, floating_point_operations, projected_seconds

from methods import all_weights
from unteach.compare import compare, rewarded
from unteach.evaluation.results import wilson_interval
from unteach.evaluation.rewards import load_reward
from unteach.files.atomic import read_json_lines, write_json
from unteach.files.folders import content_key
from unteach.progress import Display
from unteach.reports.comparison import COST_NOTE, Cell, comparison_results, comparison_table
from unteach.reports.figures import cost_figure
from unteach.reports.tables import Table
from unteach.scenarios.texts import labelled_answers
from unteach.trainer.costs import Cost, total

MEASURED = "SmolLM2-135M"
HEADLINE = "harmful_rate"
OTHER_REWARD = "utility_reward_independent"
SHARE_OF_THE_PAPER = 0.02
"""GA + mismatch's run time as a share of full RLHF's in Yao et al. 2024."""
PROBE_ROWS = 48
EQUAL_NOTE = f"""
The first probe ({PROBE_ROWS} forget prompts, up to half of them from the validation split) with at
most so many harmful answers; means of the seeds that reach it. Utility: share of the tokens of the
original model's everyday answers that are still the greedy choice. RLHF's way leads through SFT: a
rate that SFT reaches, RLHF reaches in the same time.
"""
HEAVY = ("checkpoints", "model", "stages", "work", "original")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = record.run_parser(__doc__, "alignment_cost")
    parser.add_argument(
        "--keep", action="store_true", help="keep models and checkpoints of finished seeds"
    )
    return parser.parse_args()


def methods(short: bool) -> list[dict[str, Any]]:
    """The rows of the comparison, with the longest training that each may have.

    `ga_mismatch` has the paper's weights, K and batch size, no budget and no frozen layers; its
    learning rate is ours, because the paper's 2e-6 needs 1,000 steps. `log_odds_mismatch` has the
    settings of the question demos that train all weights. The pipelines' learning rates are those
    of `STAGE_SETTINGS`.
    """
    longest = SHORT if short else LONGEST
    sft = {"max_steps": longest["sft"]}
    paper: dict[str, Any] = {
        "mismatch_completions": 5,
        "max_retain_kl": None,
        "retain_per_forget": 1.0,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "lora": False,
        "frozen_layers": 0,
        "save_steps": 20,
    }
    demo = all_weights("harmfulness", short)
    ours = {**demo, "lora": False, "max_steps": longest["unlearning"]}
    rl = {"max_steps": longest["rl"], "save_steps": 10}
    rows = [
        {"name": "ga_mismatch", **paper, "max_steps": longest["ga"]},
        {"name": "log_odds_mismatch", **ours},
        {"name": "sft", "stages": {"sft": sft}},
        {"name": "dpo", "stages": {"sft": sft, "dpo": {"max_steps": longest["dpo"]}}},
        {
            "name": "rlhf",
            "stages": {"sft": sft, "reward": {"max_steps": longest["reward"]}, "rl": rl},
        },
    ]
    return [{**row, "probe_rows": 8 if short else PROBE_ROWS} for row in rows]


LONGEST = {"ga": 40, "unlearning": 60, "sft": 32, "dpo": 24, "reward": 16, "rl": 64}
"""Maximum optimiser steps of each training, in batches of 8 (unlearning: as its demo; GA: 2 rows;
RL: 2 prompts with 4 answers each)."""
SHORT = {"ga": 3, "unlearning": 4, "sft": 2, "dpo": 2, "reward": 2, "rl": 2}


def comparison_file(model: str, folder: Path, seed: int, short: bool) -> dict[str, Any]:
    """The options of `unteach compare` for one seed."""
    rule = {"probe_steps": 0.5 if short else 0.125, "patience": 3, "hold": 1000, "min_utility": 0.0}
    options = {
        "out": str(folder),
        "models": [model],
        "scenario": "harmfulness",
        "seed": seed,
        "short": short,
    }
    return {**options, "methods": methods(short), "settings": rule}


def seed_cells(options: dict[str, Any], *, keep: bool) -> list[Cell]:
    """The cells of one seed's comparison: read from its folder if it is complete, else computed."""
    folder = Path(options["out"])
    path, key = folder / "cells.json", content_key(options)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("key") != key:
        compare(options, Display())
        cells = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["cells"]
        other = load_reward("trained", labelled_answers())
        for cell in cells:
            original = cell["method"] == "original"
            run = folder / (options["methods"][0]["name"] if original else cell["method"])
            found = rewarded(cell["sets"], run, "original" if original else "unlearned", other)[
                "normal"
            ]["utility_reward"]
            cell["sets"]["normal"][OTHER_REWARD] = found
            if not original:
                points = curve(cell["run"], read_json_lines(run / "metrics.jsonl"))
                cell["run"]["curve"] = [asdict(point) for point in points]
        known = {"key": key, "cells": cells}
        write_json(path, known)
    if not keep:
        for place in (folder, *(folder / row["name"] for row in options["methods"])):
            for name in HEAVY:
                shutil.rmtree(place / name, ignore_errors=True)
    return [
        Cell(cell["model"], cell["method"], cell["sets"], cell["run"]) for cell in known["cells"]
    ]


def pooled(cells: Sequence[Cell]) -> Cell:
    """One method's cells of several seeds as one: rates over all their answers with Wilson's
    interval, means of everything else.
    """
    sets: dict[str, dict[str, dict[str, Any]]] = {}
    for name, metrics in cells[0].sets.items():
        sets[name] = {}
        for metric in metrics:
            found = [
                number
                for cell in cells
                if (number := cell.sets[name].get(metric)) and number["value"] is not None
            ]
            if not found:
                continue
            n = sum(number["n"] for number in found)
            mean = sum(number["value"] * number["n"] for number in found) / n
            low, high = wilson_interval(round(mean * n), n) if metric == HEADLINE else (None, None)
            if len(found) == 1:
                low, high = found[0]["ci_low"], found[0]["ci_high"]
            sets[name][metric] = {**found[0], "value": mean, "n": n, "ci_low": low, "ci_high": high}
    run = dict(cells[0].run)
    if "cost" in run:
        costs = [cell.run["cost"] for cell in cells]
        run["cost"] = {
            key: (
                value
                if isinstance(value, str)
                else (max if key == "peak_memory_mb" else mean_of)([cost[key] for cost in costs])
            )
            for key, value in costs[0].items()
        }
    return Cell(cells[0].model, cells[0].method, sets, run)


def mean_of(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def result_row(case: str, cell: Cell, rlhf: Cell) -> dict[str, Any]:
    """One line of the result."""
    cost = cell.run.get("cost", vars(total([Cost("none", 0.0, 0, 0, 0, 0.0)])))
    whole = rlhf.run["cost"]["seconds"]
    return {
        "case": case,
        "ours": cost["seconds"],
        "naive": whole,
        "ratio": cost["seconds"] / whole if whole else 0.0,
        "unit": "s",
        "harmful_rate_unlearned": cell.sets["unlearned"][HEADLINE],
        "harmful_rate_unseen": cell.sets["unseen"][HEADLINE],
        **{
            metric: cell.sets["normal"].get(metric)
            for metric in ("utility_reward", OTHER_REWARD, "similarity")
        },
        **{key: value for key, value in cost.items() if key not in ("seconds", "stage")},
        "needs_positives": cell.run.get("needs_positives"),
        "needs_preferences": cell.run.get("needs_preferences"),
        "stages": cell.run.get("costs", []),
        "stopped": (
            cell.run.get("stop_reason")
            or {name: stop["reason"] for name, stop in cell.run.get("stops", {}).items()}
        ),
    }


def projection_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Operations on larger models from the token counts measured here, against full RLHF's:
    projected, not measured.
    """
    costs = {cell.method: cell.run["cost"] for cell in cells if "cost" in cell.run}
    rows = []
    for name, parameters in MODELS.items():
        for method, cost in costs.items():
            if name == MEASURED:
                continue
            ours, whole = (
                floating_point_operations(one, parameters) / 1e15 for one in (cost, costs["rlhf"])
            )
            seconds = projected_seconds(cost, parameters, MODELS[MEASURED])
            row = {
                "case": f"projection to {name}: {method}",
                "ours": ours,
                "naive": whole,
                "ratio": ours / whole,
                "unit": "PFLOP",
            }
            rows.append({**row, "projection": True, "seconds_at_the_measured_rate": seconds})
    return rows


def markdown(
    cells: Sequence[Cell],
    projected: Sequence[Mapping[str, Any]],
    equal: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
) -> str:
    """The result as a page."""
    compared = comparison_table(cells, comparison_results(cells, {"headline": HEADLINE}))
    title = (
        f"Harmfulness, {MEASURED}, seeds {', '.join(map(str, seeds))}: rates pooled with Wilson's"
        " intervals, else means.\n"
    )
    lines = [
        [
            row["case"].removeprefix("projection to "),
            f"{row['ours']:.3g}",
            f"{100 * row['ratio']:.0f}",
        ]
        for row in projected
    ]
    larger = Table(["projected, not measured", "PFLOP", "% of rlhf"], lines).markdown()
    parts = [title, compared.markdown(), COST_NOTE, EQUAL_NOTE, table(equal), larger]
    return "\n".join([*parts, *more_data(cells)]).rstrip() + "\n"


def more_data(cells: Sequence[Cell]) -> list[str]:
    """For each method: how many times as many steps full RLHF would need for the method's
    operations to be 2% of its own.
    """
    rlhf = next(cell.run["cost"] for cell in cells if cell.method == "rlhf")
    whole = floating_point_operations(rlhf, 1.0)
    lines = []
    for cell in cells:
        if "cost" in cell.run and cell.method != "rlhf" and not cell.run.get("needs_positives"):
            times = floating_point_operations(cell.run["cost"], 1.0) / (SHARE_OF_THE_PAPER * whole)
            lines.append(
                f"{cell.method} would be {SHARE_OF_THE_PAPER:.0%} of rlhf: in operations, if rlhf"
                f" took {times:.0f} times as many steps."
            )
    return ["", *lines]


def curve_of(cells: Sequence[Cell], method: str) -> list[Point]:
    """The probes of one seed's run."""
    found = next(cell for cell in cells if cell.method == method)
    return [Point(**point) for point in found.run["curve"]]


def main() -> None:
    """Runs the benchmark."""
    options = parse_options()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    by_seed = {
        seed: seed_cells(
            comparison_file(options.model, options.out / f"seed-{seed}", seed, options.short),
            keep=options.keep,
        )
        for seed in seeds
    }
    rows: list[dict[str, Any]] = []
    for seed, cells in by_seed.items():
        rlhf = next(cell for cell in cells if cell.method == "rlhf")
        rows += [result_row(f"{cell.method}, seed {seed}", cell, rlhf) for cell in cells]
    together = [pooled(same) for same in zip(*by_seed.values(), strict=True)]
    if len(seeds) > 1:
        rlhf = next(cell for cell in together if cell.method == "rlhf")
        rows += [result_row(f"{cell.method}, all seeds", cell, rlhf) for cell in together]
    projected = projection_rows(together)
    for row in [*rows, *projected]:
        print(f"{row['case']:<32} {row['ours']:10.3f} {row['unit']}, {row['ratio']:.2f} of rlhf")
    curves = {
        cell.method: [curve_of(cells, cell.method) for cells in by_seed.values()]
        for cell in together
        if "cost" in cell.run
    }
    equal = equal_harm(curves)
    page = markdown(together, projected, equal, seeds)
    record.write_page(page, [*rows, *equal, *projected], options.json)
    if options.json:
        cost_figure(options.json.parent, together)
        figure(options.json.parent / "equal_harm.png", curves)


if __name__ == "__main__":
    main()
