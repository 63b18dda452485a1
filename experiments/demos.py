"""The three demos over several seeds: what is still said, what is kept, how it reads; with the
model that was never taught beside it.

    python experiments/demos.py --seeds 0,1,2 --json docs/results/demos.json [--scenarios
    hallucination] [--out DIR] [key=value ...]

A demo whose `eval.json` stands in DIR/SCENARIO-SEED is read and not run again. `untaught` is the
model before anything was taught to it, asked the same prompts and scored by the same scorers: what
a model that knows nothing of the texts to forget scores by its own mistakes. Beside FILE it writes
the table as Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import record

from unteach.config.values import parse_settings
from unteach.evaluate import evaluate_models
from unteach.evaluation.metrics import is_forget_set
from unteach.progress import Display
from unteach.reports.results import shown
from unteach.reports.tables import Table
from unteach.run import pipeline
from unteach.scenarios import SCENARIOS

HEADER = ["scenario", "seed", "set", "untaught", "taught", "unlearned"]
LEGEND = """Made by `python experiments/demos.py`. *untaught*: the model before anything was taught to it, which scores by its own mistakes;
*taught*: with the texts to forget; *unlearned*: after the demo. Rates: share of the set's prompts at which the text to forget, or its
manner, is still said (the scenario's headline rate; Wilson's 95% intervals). Similarity: of the answers to everyday questions to the taught
model's. Reward: of the same answers (bootstrap over prompts). Fluency: nats a token of the answers to forget prompts, under the untaught
model. Not meaningful: answers to forget prompts that mean nothing."""


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = record.run_parser(__doc__, "demos")
    parser.add_argument(
        "--scenarios", help="names, separated by commas (default: all; with --short: the first)"
    )
    parser.add_argument(
        "settings", nargs="*", help="fields of UnlearningConfig for all demos, as key=value"
    )
    return parser.parse_args()


def demo(scenario: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One demo's numbers: its `eval.json`, and from `run.json` what it took; run if it is not
    there.
    """
    folder = options.out / f"{scenario}-{seed}"
    if not (folder / "eval.json").exists():
        pipeline.demo(
            scenario,
            model=options.model,
            output_dir=str(folder),
            seed=seed,
            short=options.short,
            display=Display(),
            **parse_settings(options.settings),
        )
    evaluation = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    taken = {name: facts[name] for name in ("steps", "kept_step", "stop_reason")}
    return {
        "scenario": scenario,
        "seed": seed,
        **taken,
        **{key: evaluation[key] for key in ("headline", "models")},
    }


def untaught(scenario: str, options: argparse.Namespace) -> Mapping[str, Any]:
    """The metrics of the model before the teaching, by set."""
    folder = options.out / f"{scenario}-untaught"
    if not (folder / "eval.json").exists():
        evaluate_models(
            options.model,
            None,
            scenario=scenario,
            output_dir=str(folder),
            show_text=True,
            display=Display(),
        )
    sets: Mapping[str, Any] = json.loads((folder / "eval.json").read_text(encoding="utf-8"))[
        "models"
    ]["original"]
    return sets


def rate(metrics: Mapping[str, Any] | None) -> str:
    """`4% [1, 14] of 48`."""
    if not metrics or metrics["value"] is None:
        return ""
    return (
        f"{metrics['value']:.0%} [{100 * metrics['ci_low']:.0f}, {100 * metrics['ci_high']:.0f}] of"
        f" {metrics['n']}"
    )


def lines_of(row: Mapping[str, Any]) -> list[list[str]]:
    """The table's lines for one demo."""
    columns = [row["untaught"], row["models"]["original"], row["models"]["unlearned"]]
    head = [row["scenario"], str(row["seed"])]
    lines = [
        [*head, name, *(rate(sets[name].get(row["headline"])) for sets in columns)]
        for name in columns[1]
        if is_forget_set(name)
    ]
    for name in ("kept", "kept_unseen"):
        if name in columns[1]:
            lines.append(
                [
                    *head,
                    f"{name}: ROUGE-L recall",
                    *(shown(sets.get(name, {}).get("rouge_l_recall"), ".2f") for sets in columns),
                ]
            )
    normal, forget = [sets["normal"] for sets in columns], [sets["unlearned"] for sets in columns]
    lines.append([*head, "normal: similarity", "", "", shown(normal[2].get("similarity"), ".2f")])
    if "utility_reward" in normal[1]:
        lines.append(
            [
                *head,
                "normal: reward",
                *(shown(sets.get("utility_reward"), ".2f") for sets in normal),
            ]
        )
    lines.append([*head, "fluency", *(shown(sets.get("fluency"), ".2f") for sets in forget)])
    lines.append(
        [*head, "not meaningful", *(rate(sets.get("not_meaningful_rate")) for sets in forget)]
    )
    return lines


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as a page."""
    table = Table(HEADER, [line for row in rows for line in lines_of(row)]).markdown()
    steps = [
        [
            row["scenario"],
            *(str(row[name]) for name in ("seed", "steps", "kept_step", "stop_reason")),
        ]
        for row in rows
    ]
    ended = Table(["scenario", "seed", "steps", "kept step", "ended by"], steps).markdown()
    return f"# The demos\n\n{LEGEND}\n\n{table}\n\n{ended}"


def main() -> None:
    """Runs what is not there yet."""
    options = parse_options()
    wanted = (
        options.scenarios.split(",")
        if options.scenarios
        else list(SCENARIOS)[: 1 if options.short else None]
    )
    rows = []
    for scenario in wanted:
        before = untaught(scenario, options)
        rows += [
            {**demo(scenario, int(seed), options), "untaught": before}
            for seed in options.seeds.split(",")
        ]
    page = markdown(rows)
    record.write_page(page, rows, options.json)


if __name__ == "__main__":
    main()
