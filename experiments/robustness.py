"""How much of what each method and each wrapper of `--robust` forgets comes back under attack, what
it keeps, and what it costs.

Every row is a run of a scenario's demo and `unteach attack` on it: relearning on related rows at
three learning rates, 8 and 4 bits, leak@k, the soft prompt, the attacks by prompts. What comes back
is a share of the forgotten rows, less what the same attack gets from the model that was never
taught.

    python experiments/robustness.py --json FILE [--scenario privacy]
    [--rows default,sam,npo] [--seeds 0,1,2] [--out DIR] [--short]

A row whose result is in DIR is not made again, and an interrupted one goes on where it was; the
taught model of a seed is shared. Beside FILE it writes the table as Markdown and, as a picture, the
front of what comes back and what is kept.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import record

from unteach.attacks.options import AttackOptions
from unteach.attacks.suite import attack
from unteach.config.resolve import resolve
from unteach.files.atomic import write_json
from unteach.progress import Display
from unteach.reports.tables import Table
from unteach.robust import ROBUST
from unteach.run.pipeline import execute
from unteach.scenarios import SCENARIOS, build_scenario, demo_presets, embedded_scenario

PUBLISHED = ("npo", "simnpo", "rmu", "grad_diff")
ROWS = ("default", *ROBUST, *PUBLISHED)
RELEARNING = {
    "relearning_related_slow": "slow",
    "relearning_related": "plain",
    "relearning_related_fast": "fast",
}
STEPS = (20, 50, 100)
ATTACKS = (
    *("prompts", "conversation", "prompt_search", "sampling", "soft_prompt"),
    *("quantization", *RELEARNING),
)
BUDGET: dict[str, Any] = {"steps": 100, "every": 10, "samples": 64, "prompts": 24, "soft": 30}
SHORT: dict[str, Any] = {"steps": 2, "every": 1, "samples": 2, "prompts": 4, "soft": 2}
COLUMNS = {
    "forgotten": "forget rate",
    "unseen": "forget rate (held out)",
    "neighbours": "neighbours kept",
    "kept": "retain rows kept",
    **{
        f"{rate}_{steps}": f"relearning, {rate}, {steps}"
        for rate in RELEARNING.values()
        for steps in STEPS
    },
    "bits_8": "8 bits",
    "bits_4": "4 bits",
    "leak_16": "leak@16",
    "leak_64": "leak@64",
    "soft_prompt": "soft prompt",
    "prompt": "best prompt attack",
    "figure": "robustness figure",
    "cost": "cost",
}
"""Key in the results and title; lower is better but for what is kept."""


def settings_of(scenario: str, name: str, short: bool) -> dict[str, Any]:
    """The settings of a row: the demo's with a wrapper, or a published method with its own."""
    demo = dict(embedded_scenario(scenario).demo(short=short))
    if name not in PUBLISHED:
        return demo | ({"robust": name} if name in ROBUST else {})
    own = ("max_steps", "probe_steps", "save_steps", "per_device_train_batch_size")
    kept = {key: value for key, value in demo.items() if key in own}
    return {**kept, "method": name, "max_retain_kl": None}


def back(values: Sequence[float | None], control: Sequence[float | None]) -> float | None:
    """The mean over measured rows of what came back, less the control's."""
    pairs = [(a, b or 0.0) for a, b in zip(values, control, strict=True) if a is not None]
    return fmean(a - b for a, b in pairs) if pairs else None


def numbers_of(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row's numbers, from its run's files and its `attacks.json`."""
    facts, evaluation = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("run.json", "eval.json")
    )
    headline = evaluation["headline"]
    before, after = (evaluation["models"][name] for name in ("original", "unlearned"))
    numbers: dict[str, Any] = {"steps": facts["steps"], "stop_reason": facts["stop_reason"]}
    for key, name in (("forgotten", "unlearned"), ("unseen", "unseen")):
        numbers[key] = after[name][headline]["value"] if name in after else None
    for name in ("neighbours", "kept"):
        metric = headline if headline in after.get(name, {}) else "rouge_l_recall"
        if metric in after.get(name, {}):
            known = before[name][metric]["value"] or 0.0
            numbers[name] = (after[name][metric]["value"] or 0.0) / max(1e-9, known)
    control = found["robustness"]["control"]

    def excess(name: str) -> float | None:
        rows = found["rows"].get(name, {})
        return (
            back(rows["unlearned"], rows[control]) if {"unlearned", control} <= set(rows) else None
        )

    for name, rate in RELEARNING.items():
        curves = found.get("curves", {}).get(name, {})
        for steps in STEPS:
            pairs = [
                [point["value"] for point in curves.get(role, []) if point["step"] <= steps]
                for role in ("unlearned", control)
            ]
            numbers[f"{rate}_{steps}"] = max(pairs[0]) - max(pairs[1]) if all(pairs) else None
    numbers |= {f"bits_{bits}": excess(f"quantization_{bits}bit") for bits in (8, 4)}
    leaks = found.get("leak_at_k", {}).get("sampling", {})
    for k in (16, 64):
        at = [point["value"] for point in leaks.get("unlearned", []) if point["k"] == k]
        numbers[f"leak_{k}"] = at[0] if at else None
    families = found["robustness"]["families"]
    by_prompts = [
        families[name]["excess"]["value"]
        for name in ("prompts", "conversation", "prompt_search")
        if name in families and families[name]["excess"]
    ]
    numbers["soft_prompt"] = excess("soft_prompt")
    numbers["prompt"] = max(by_prompts, default=None)
    numbers["figure"] = found["robustness"]["value"]
    spent = [cost for cost in facts["costs"] if cost["stage"] in ("unlearning", "distillation")]
    return {**numbers, "seconds": sum(cost["seconds"] for cost in spent)}


def _share(source: Path, place: Path) -> None:
    """Copies the outcomes on the models that all rows of a seed have in common."""
    place.mkdir(parents=True, exist_ok=True)
    for role in ("original", "never_knew"):
        for path in source.glob(f"*-{role}-*.json"):
            shutil.copy(path, place / path.name)


def make_row(options: Namespace, name: str, seed: int) -> dict[str, Any]:
    """One run and the attacks on it; its numbers are kept in the folder of the runs."""
    shared = options.out / options.scenario / f"seed-{seed}"
    folder, kept = shared / name, shared / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    display = Display()
    if not (folder / "eval.json").exists():
        given = {
            "model": options.model,
            "output_dir": str(folder),
            "seed": seed,
            "shared_dir": str(shared / "shared"),
            "show_text": True,
            **settings_of(options.scenario, name, options.short),
        }
        presets = demo_presets(options.scenario, short=options.short)
        scenario = build_scenario(options.scenario, short=options.short)
        execute(resolve(given, presets=presets), scenario, display)
    budget = SHORT if options.short else BUDGET
    chosen = AttackOptions(only=ATTACKS, seed=seed, **budget)
    done, common = folder / "work" / "attacks", shared / "attacks"
    _share(common, done)
    found = attack(folder, chosen, display=display)
    _share(done, common)
    row = {"row": name, "seed": seed, **numbers_of(folder, found)}
    write_json(kept, row)
    for part in ("model", "checkpoints", "work"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return row


def table_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By row's name the means over seeds; the cost relative to that of the default."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        same = [row for row in rows if row["row"] == name]
        table[name] = {"seeds": len(same)}
        for key in (*COLUMNS, "seconds"):
            values = [row[key] for row in same if row.get(key) is not None]
            table[name][key] = fmean(values) if values else None
    base = table.get("default", {}).get("seconds")
    for row in table.values():
        row["cost"] = row["seconds"] / base if base and row["seconds"] else None
    return table


def on_the_front(table: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The rows that no other beats in both what comes back and what is kept of neighbours."""
    points = {
        name: (round(row["figure"], 3), -round(row["neighbours"], 3))
        for name, row in table.items()
        if row["figure"] is not None and row["neighbours"] is not None
    }
    return {
        name
        for name, (back, lost) in points.items()
        if not any(
            other != (back, lost) and other[0] <= back and other[1] <= lost
            for other in points.values()
        )
    }


def page_of(table: Mapping[str, Mapping[str, Any]], scenario: str) -> str:
    """The table as Markdown; a row of the front is marked."""
    front, titles = on_the_front(table), [*COLUMNS.values(), "seeds"]
    lines = []
    for name, row in table.items():
        cells = ["-" if row[key] is None else f"{row[key]:.2f}" for key in COLUMNS]
        lines.append([f"**{name}**" if name in front else name, *cells, str(row["seeds"])])
    head = f"Made by `python experiments/robustness.py --scenario {scenario}`, whose head says how."
    note = (
        "Bold: on the front of what comes back (robustness figure) and what is kept (neighbours)."
    )
    return "\n\n".join([head, Table(["row", *titles], lines).markdown(), note])


def draw_front(table: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """What comes back against what is kept, a point for each row; the front as a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    points = {
        name: (row["neighbours"], row["figure"])
        for name, row in table.items()
        if row["figure"] is not None and row["neighbours"] is not None
    }
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, (kept, figure_value) in points.items():
        axes.scatter(kept, figure_value, color="#1f5fa8")
        axes.annotate(name, (kept, figure_value), xytext=(4, 4), textcoords="offset points")
    line = sorted(points[name] for name in on_the_front(table))
    axes.plot([kept for kept, _ in line], [value for _, value in line], color="#888888", lw=1)
    axes.set(xlabel="neighbours kept (share of the original's)", ylabel="robustness figure")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Makes the rows and writes the table after each."""
    parser = record.run_parser(__doc__, "robustness")
    parser.add_argument("--rows", default=",".join(ROWS), help="(default: %(default)s)")
    parser.add_argument("--scenario", default="privacy", choices=list(SCENARIOS))
    options = parser.parse_args()
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for name in options.rows.split(","):
            rows.append(make_row(options, name, seed))
            table = table_of(rows)
            record.write_page(page_of(table, options.scenario), rows, options.json)
            if options.json:
                draw_front(table, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
