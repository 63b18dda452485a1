"""Every method on one scenario: forgetting, utility, fluency, and robustness to relearning and
quantisation.

All methods start from the same taught model and train on the same rows with the same batch size and
the same maximum number of steps. A probe (copyright: every seventh step, else every twentieth)
stops each by the same rule, and the best probe's weights are kept. Ours have the demo's settings.
The others have the weights and the retain term of their papers, no KL budget, and a learning rate
from a short search on the first seed (`method=auto` with one candidate), as the papers' rates are
for other models; with `--search-minutes 0` the demo's. Then each model is fine-tuned on four of the
forget rows, until the forget rate of the others is half of the original model's, and evaluated with
4-bit weights, unless `--no-attacks` is given.

    python experiments/methods.py --seeds 0,1,2 --json docs/results/methods.json [--scenario
    copyright] [--methods npo,ga] [--out DIR]

DIR is of one scenario. A method and seed whose result is in it are not run again, so several calls
may share the work once a seed's model is taught. Beside FILE it writes the table as Markdown, with
ranks.

    python experiments/methods.py --over
    docs/results/methods.json,docs/results/methods_harmfulness.json --methods log_odds_mismatch,npo

runs nothing and adds up the ranks among these methods over several tables, on the seeds that all of
them have.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import record

from unteach.attacks.options import AttackOptions
from unteach.attacks.relearning import rate_point, relearn, steps_to
from unteach.attacks.target import Target
from unteach.attacks.weights import missing_torchao, quantize
from unteach.config.resolve import resolve
from unteach.evaluation.probe import evenly_spaced
from unteach.evaluation.results import wilson_interval
from unteach.files.atomic import write_json
from unteach.progress import Display
from unteach.reports.tables import Table
from unteach.run.folder import ORIGINAL, UNLEARNED, RunFolder
from unteach.run.pipeline import execute
from unteach.scenarios import (
    SCENARIOS,
    build_scenario,
    demo_presets,
    embedded_scenario,
    question_answers,
)

OURS = ("log_odds_mismatch", "unlikelihood_mismatch", "unlikelihood", "log_odds")
"""Methods that run with the demo's budget, retain weight and learning rate."""
PUBLISHED = (
    "ga",
    "ga_mismatch",
    "grad_diff",
    "npo",
    "simnpo",
    "rmu",
    "undial",
    "wga",
    "satimp",
    "ceu",
    "pdu",
    "dpo_idk",
    "altpo",
    "task_vector",
)
HEAD = """Made by `python experiments/methods.py`, whose head says how. Rates are pooled over seeds
(Wilson's intervals), else means of the seeds that have the number.
"""
COLUMNS: tuple[tuple[str, str, bool], ...] = (
    ("unlearned", "forget", False),
    ("unseen", "forget (held out)", False),
    ("kept", "retain", True),
    ("kept_unseen", "retain (held out)", True),
    ("normal", "normal", True),
    ("reward", "reward", True),
    ("fluency", "fluency", False),
    ("diversity", "diversity", True),
    ("relearning", "relearning steps", True),
    ("four_bits", "4 bits", False),
    ("seconds", "seconds", False),
)
"""Key in the results, title, whether higher is better; a table has those of its scenario."""
LEGEND = {
    "unlearned": "forget rate (the scenario's headline rate) on the forget prompts",
    "unseen": "forget rate on forget prompts that were not trained on",
    "kept": (
        "ROUGE-L recall on passages of the other story that are in the retain set, relative to the"
        " original model's"
    ),
    "kept_unseen": "the same on passages that were not trained on",
    "normal": "similarity of the answers to everyday questions to the original model's",
    "reward": "mean reward of the same answers",
    "fluency": (
        "mean NLL, in nats per token, of the answers to forget prompts under the model before"
        " teaching; NM: not meaningful"
    ),
    "diversity": "share of unique tokens in those answers; low where an answer repeats itself",
    "relearning": (
        "steps of fine-tuning on four forget rows until the forget rate on the others is half of"
        ' the original model\'s; "never": not in 24'
    ),
    "four_bits": "forget rate with weights quantised to 4 bits",
    "seconds": "time of the unlearning steps",
}
FOOT = """- **sum of ranks**: over all columns but the seconds; lower is better.
- **front**: Pareto-optimal in forgetting (mean of the forget columns) and keeping (mean of the
  retain columns and normal), both rounded to three decimals.
- **tried**: number of learning rates tried by the search; with 1 another may do better; empty: the
  demo's rate.
- **seeds**: number of seeds; ranks are comparable among methods with the same number."""
KEPT = ("kept", "kept_unseen", "normal")
STORY = {
    "frozen_layers": 0.5,
    "mismatch_weight": 0.08,
    "mismatch_completions": 1,
    "retain_per_forget": 1.0,
    "retain_weight": 5.0,
    "max_retain_kl": 0.15,
}
"""Settings of all methods on the story, beside those of its demo, whose method sets its own."""
RELEARNING = AttackOptions(steps=24, every=6, learning_rate=5e-5)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = record.run_parser(__doc__, "methods")
    parser.add_argument("--methods", help="names, separated by commas (default: all)")
    parser.add_argument(
        "--scenario", default="copyright", choices=list(SCENARIOS), help="(default: %(default)s)"
    )
    parser.add_argument("--no-attacks", action="store_true", help="without relearning and 4 bits")
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="bfloat16 autocast in the steps of unlearning, for CPUs that multiply it fast",
    )
    parser.add_argument(
        "--over",
        help=(
            "no runs: sums of ranks of --methods over these JSON files of tables, separated by"
            " commas"
        ),
    )
    parser.add_argument(
        "--search-minutes",
        type=float,
        default=4.0,
        help="for a learning rate; 0: the demo's (default: %(default)s)",
    )
    return parser.parse_args()


def all_weights(scenario: str, short: bool) -> dict[str, Any]:
    """Settings of the scenario's demo; harmfulness' own trains an adapter, here all
    methods train the weights themselves.
    """
    if scenario == "harmfulness":
        return question_answers.question_demo(learning_rate=1.2e-4, short=short)
    demo = embedded_scenario(scenario).demo(short=short)
    return {**demo, **STORY} if scenario == "copyright" else dict(demo)


def settings_of(scenario: str, method: str, short: bool, bf16: bool = False) -> dict[str, Any]:
    """Fields of `UnlearningConfig` beside those of the scenario's demo."""
    demo = all_weights(scenario, short)
    probe_steps = 2 if short else 7 if scenario == "copyright" else demo["probe_steps"]
    rule = {
        "max_steps": 4 if short else demo["max_steps"],
        "probe_steps": probe_steps,
        "save_strategy": "no",
        "bf16": bf16,
    }
    if method in OURS:
        names = (
            ("retain_weight", "mismatch_weight")
            if method.endswith("mismatch")
            else ("retain_weight",)
        )
        return {**rule, "method": method, **{name: demo[name] for name in names}}
    return {**rule, "method": method, "max_retain_kl": None}


def numbers_of(folder: Path) -> dict[str, Any]:
    """A finished run's numbers."""
    facts, evaluation = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("run.json", "eval.json")
    )
    before, after = (evaluation["models"][name] for name in ("original", "unlearned"))
    numbers: dict[str, Any] = {
        name: after[name][evaluation["headline"]] for name in ("unlearned", "unseen")
    }
    for name in ("kept", "kept_unseen"):
        if name in after:
            numbers[name] = after[name]["rouge_l_recall"]["value"] / max(
                1e-9, before[name]["rouge_l_recall"]["value"]
            )
    for name, metric in (("normal", "similarity"), ("reward", "utility_reward")):
        if metric in after["normal"]:
            numbers[name] = after["normal"][metric]["value"]
    training = next(cost for cost in facts["costs"] if cost["stage"] == "unlearning")
    return numbers | {
        "fluency": after["unlearned"]["fluency"]["value"],
        "diversity": after["unlearned"]["diversity"]["value"],
        "not_meaningful": after["unlearned"]["not_meaningful_rate"]["value"],
        "fluency_before": before["unlearned"]["fluency"]["value"],
        "seconds": training["seconds"],
        "learning_rate": facts["learning_rate"],
        "steps": facts["steps"],
        "kept_step": facts["kept_step"],
        "stop_reason": facts["stop_reason"],
        "trials": facts.get("search", {}).get("trials", []),
    }


class Seed:
    """The runs of one seed: one taught model, and a run for each method.

    Args:
        options: the benchmark's.
        seed (`int`)
    """

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.folder = options.out / f"seed-{seed}"
        self.display = Display()

    def run(self, method: str, learning_rate: float | None) -> dict[str, Any]:
        """One method's numbers; without a learning rate one is searched for first."""
        options = self.options
        settings = settings_of(options.scenario, method, options.short, options.bf16)
        folder = self.folder / method
        shutil.rmtree(folder, ignore_errors=True)
        search: dict[str, Any] = {}
        searched = method not in (
            *OURS,
            "task_vector",
        )  # no probe watches a task vector while it trains
        if learning_rate is None and options.search_minutes > 0 and searched:
            minutes = 0.05 if options.short else options.search_minutes
            search = {
                "candidates": settings.pop("method"),
                "search_minutes": minutes,
                "search_steps": 2 if options.short else 20,
            }
            settings["method"] = "auto"
        elif learning_rate is not None:
            settings["learning_rate"] = learning_rate
        demo = all_weights(options.scenario, options.short)
        demo = {name: value for name, value in demo.items() if not name.endswith("_weight")}
        given = {
            "model": options.model,
            "output_dir": str(folder),
            "seed": self.seed,
            "shared_dir": str(self.folder / "shared"),
            "show_text": True,
            **search,
            "lora": False,
            **demo,
            **settings,
        }
        if method == "rmu":
            given["frozen_layers"] = 0  # its layer is among the lower half
        presets = demo_presets(options.scenario, short=options.short)
        scenario = build_scenario(options.scenario, short=options.short)
        execute(resolve(given, presets=presets), scenario, self.display)
        numbers = {
            **numbers_of(folder),
            "bf16": options.bf16,
            **({} if options.no_attacks else self.attacked(folder)),
        }
        for name in ("model", "checkpoints", "work"):
            shutil.rmtree(folder / name, ignore_errors=True)
        return numbers

    def attacked(self, folder: Path) -> dict[str, Any]:
        """Steps of relearning until the rate is half of the original's, and the rate at 4 bits."""
        options = replace(RELEARNING, steps=2, every=1) if self.options.short else RELEARNING
        run = RunFolder(folder)
        target = Target(run, options, display=self.display)
        shown = evenly_spaced(target.forget, min(options.rows, len(target.forget) // 2))
        rest = [row for row in target.forget if row not in shown]
        known = rate_point(target, run.model(ORIGINAL), rest)["value"]
        goal = max(known or 0.0, 1 / len(rest)) / 2
        with self.display.stage("Relearning"):
            points = relearn(
                run.load_model(UNLEARNED),
                target.tokenizer,
                shown,
                lambda model: rate_point(target, model, rest),
                run.work("relearning"),
                options,
                goal=goal,
            )
        found: dict[str, Any] = {"relearning": steps_to(points, goal), "relearning_curve": points}
        if not missing_torchao():
            with self.display.stage("4 bits"):
                rounded = quantize(run.load_model(UNLEARNED), bits=4)
                found["four_bits"] = rate_point(target, rounded, target.forget)
        return found


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One method's numbers over seeds: pooled counts, else means; relearning that did not reach its
    goal counts as one measurement more than the most steps.
    """
    found: dict[str, Any] = {"seeds": len(rows)}
    for key, _, _ in COLUMNS:
        values = [row[key] for row in rows if row.get(key) is not None]
        if key == "relearning":
            steps = [
                RELEARNING.steps + RELEARNING.every if row[key] is None else row[key]
                for row in rows
                if "relearning_curve" in row
            ]
            found[key] = sum(steps) / len(steps) if steps else None
            found["never_back"] = sum(row[key] is None for row in rows if "relearning_curve" in row)
        elif values and isinstance(values[0], Mapping):
            n = sum(value["n"] for value in values)
            hits = round(sum(value["value"] * value["n"] for value in values))
            low, high = wilson_interval(hits, n)
            found[key] = hits / n
            found[f"{key}_interval"] = (low, high)
        else:
            found[key] = sum(values) / len(values) if values else None
    found["not_meaningful"] = sum(row["not_meaningful"] for row in rows) / len(rows)
    return found


def columns_of(table: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, bool]]:
    """The columns in which all methods have a number, and fluency, which is missing where answers
    are not meaningful.
    """
    return [
        column
        for column in COLUMNS
        if column[0] == "fluency" or all(row[column[0]] is not None for row in table.values())
    ]


def on_the_front(table: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The Pareto-optimal methods in forgetting and keeping."""
    points = {}
    for name, row in table.items():
        kept = [row[key] for key in KEPT if row[key] is not None]
        points[name] = (
            round((row["unlearned"] + row["unseen"]) / 2, 3),
            -round(sum(kept) / len(kept), 3),
        )
    return {
        name
        for name, (rate, lost) in points.items()
        if not any(
            other != (rate, lost) and other[0] <= rate and other[1] <= lost
            for other in points.values()
        )
    }


def ranks(table: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Sum over the columns of each method's rank, 1 for the best; equal values share the mean of
    their ranks. Seconds do not count.

    An answer's fluency ranks by how little the NLL rises above the original's there: a lower one is
    no gain.
    """
    sums = dict.fromkeys(table, 0.0)
    for key, _, higher in columns_of(table):
        if key == "seconds":
            continue
        values = {name: _cost_of(row, key, higher) for name, row in table.items()}
        ordered = sorted(values.values())
        for name, value in values.items():
            places = [place for place, other in enumerate(ordered, 1) if other == value]
            sums[name] += sum(places) / len(places)
    return sums


def _relearning(steps: float, never: int, seeds: int) -> str:
    if never == seeds:
        return "never"
    return f"{steps:.0f}" + (f" ({never} never)" if never else "")


def _cost_of(row: Mapping[str, Any], key: str, higher: bool) -> float:
    value = row[key]
    if key == "fluency":
        return float("inf") if value is None else max(0.0, round(value - row["fluency_before"], 2))
    if value is None:
        return float("inf")
    return -round(value, 3) if higher else round(value, 3)


def markdown(rows: Sequence[Mapping[str, Any]], scenario: str) -> str:
    """The table as a page."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    table = table_of(rows, names)
    sums, front, columns = ranks(table), on_the_front(table), columns_of(table)
    lines = []
    for name in sorted(names, key=lambda name: sums[name]):
        row = table[name]
        cells = [f"`{name}`"]
        for key, _, _ in columns:
            value = row[key]
            if key in ("unlearned", "unseen", "four_bits"):
                interval = row.get(f"{key}_interval")
                cells.append(
                    ""
                    if value is None
                    else f"{value:.0%}"
                    + (f" [{interval[0]:.0%}, {interval[1]:.0%}]" if interval else "")
                )
            elif key == "relearning":
                cells.append(
                    "" if value is None else _relearning(value, row["never_back"], row["seeds"])
                )
            elif key == "seconds":
                cells.append(f"{value:.0f}")
            elif key == "fluency":
                cells.append("NM" if value is None else f"{value:.2f}")
            else:
                cells.append("" if value is None else f"{value:.2f}")
        own = [item for item in rows if item["method"] == name]
        rates = ", ".join(f"{rate:g}" for rate in sorted({item["learning_rate"] for item in own}))
        tried = max(len(item.get("trials") or []) for item in own)
        lines.append(
            [
                *cells,
                f"{sums[name]:.1f}",
                "yes" if name in front else "",
                rates,
                str(tried) if tried else "",
                str(row["seeds"]),
            ]
        )
    header = [
        "method",
        *(title for _, title, _ in columns),
        "sum of ranks",
        "front",
        "learning rate",
        "tried",
        "seeds",
    ]
    legend = "\n".join(
        [HEAD, *(f"- **{title}**: {LEGEND[key]}." for key, title, _ in columns), FOOT]
    )
    return f"# Methods on the scenario {scenario}\n\n{legend}\n\n{Table(header, lines).markdown()}"


def table_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method to its numbers, pooled over seeds."""
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        own = [row for row in rows if row["method"] == name]
        before = [row["fluency_before"] for row in own if row["fluency_before"] is not None]
        table[name] = {
            **pooled(own),
            "fluency_before": sum(before) / len(before) if before else 0.0,
        }
    return table


def ranks_over(tables: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> str:
    """Sums of ranks among these methods in several tables, on the seeds that all of them have
    there, and over all; a star: on the front.
    """
    sums: dict[str, list[float]] = {name: [] for name in names}
    stars: dict[str, list[str]] = {name: [] for name in names}
    header = ["method"]
    for title, rows in tables.items():
        seeds = set.intersection(
            *({row["seed"] for row in rows if row["method"] == name} for name in names)
        )
        if not seeds:
            raise SystemExit(f"{title}: {', '.join(names)} have no seed in common")
        table = table_of([row for row in rows if row["seed"] in seeds], names)
        front = on_the_front(table)
        for name, value in ranks(table).items():
            sums[name].append(value)
            stars[name].append(f"{value:.1f}" + "*" * (name in front))
        header.append(f"{title} (seeds {', '.join(map(str, sorted(seeds)))})")
    lines = [
        [f"`{name}`", *stars[name], f"{sum(sums[name]):.1f}"]
        for name in sorted(names, key=lambda name: sum(sums[name]))
    ]
    return Table([*header, "all"], lines).markdown()


def main() -> None:
    """Runs what is not there yet."""
    options = parse_options()
    if options.over:
        tables = {
            Path(path).stem: json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
            for path in options.over.split(",")
        }
        print(ranks_over(tables, options.methods.split(",")))
        return
    wanted = (
        options.methods.split(",")
        if options.methods
        else ["log_odds_mismatch", "npo"]
        if options.short
        else [*OURS, *PUBLISHED]
    )
    seeds = [int(seed) for seed in options.seeds.split(",")]
    results = options.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for method in wanted:
            path = results / f"{method}-{seed}.json"
            if path.exists():
                continue
            first = results / f"{method}-{seeds[0]}.json"
            rate = (
                json.loads(first.read_text(encoding="utf-8"))["learning_rate"]
                if first.exists()
                else None
            )
            started = time.perf_counter()
            numbers = Seed(options, seed).run(method, rate)
            write_json(
                path,
                {
                    "method": method,
                    "seed": seed,
                    **numbers,
                    "whole_seconds": time.perf_counter() - started,
                },
            )
    order = {name: place for place, name in enumerate([*OURS, *PUBLISHED])}
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    rows.sort(key=lambda row: (order.get(row["method"], 99), row["seed"]))
    if len({row["bf16"] for row in rows}) > 1:
        raise SystemExit(f"{results} holds runs with --bf16 and without; one table is of either")
    page = markdown(rows, options.scenario)
    record.write_page(page, rows, options.json)


if __name__ == "__main__":
    main()
