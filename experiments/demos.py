"""The three demos over several seeds: forgetting, utility and fluency, beside the model before
teaching.

    python experiments/demos.py --seeds 0,1,2 --json docs/results/demos.json [--scenarios
    hallucination] [--out DIR] [key=value ...]

A demo whose `eval.json` exists in DIR/SCENARIO-SEED is read and not run again. `untaught` is the
model before teaching, scored on the same prompts by the same scorers: chance. Beside FILE it writes
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
ENDED = ("seed", "steps", "kept_step", "stop_reason", "processor")
"""What the second table says of a demo."""
LEGEND = """Made by `python experiments/demos.py`.

- **untaught**: the model before teaching; what it scores, it scores by its own mistakes.
- **taught**: the same with the texts to forget. **unlearned**: after the demo.
- **Rates**: the scenario's headline rate over the set's prompts (Wilson's 95% intervals).
- **Similarity**: of the answers to everyday questions to the taught model's answers.
- **Reward**: of the same answers (bootstrap over prompts).
- **Fluency**: nats a token of the answers to forget prompts, under the untaught model.
- **Not meaningful**: share of answers to forget prompts without meaning."""


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
    """One demo's evaluation and steps; it is run if its files do not exist."""
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
        "processor": facts["machine"]["processor"],
        **{key: evaluation[key] for key in ("headline", "models")},
    }


def untaught(scenario: str, options: argparse.Namespace) -> Mapping[str, Any]:
    """The metrics of the model before teaching, by prompt set."""
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
    evaluation = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    return dict(evaluation["models"]["original"])


def rate(metrics: Mapping[str, Any] | None) -> str:
    """`4% [1, 14] of 48`."""
    if not metrics or metrics["value"] is None:
        return ""
    low, high = (f"{100 * metrics[name]:.0f}" for name in ("ci_low", "ci_high"))
    return f"{metrics['value']:.0%} [{low}, {high}] of {metrics['n']}"


def lines_of(row: Mapping[str, Any]) -> list[list[str]]:
    """The table's lines for one demo."""
    columns = [row["untaught"], row["models"]["original"], row["models"]["unlearned"]]
    taught = columns[1]

    def values(name: str, metric: str) -> list[str]:
        return [shown(sets.get(name, {}).get(metric), ".2f") for sets in columns]

    def rates(name: str, metric: str) -> list[str]:
        return [rate(sets[name].get(metric)) for sets in columns]

    lines = [[name, *rates(name, row["headline"])] for name in taught if is_forget_set(name)]
    for name in ("kept", "kept_unseen"):
        if name in taught:
            lines.append([f"{name}: ROUGE-L recall", *values(name, "rouge_l_recall")])
    lines.append(["normal: similarity", "", "", values("normal", "similarity")[2]])
    if "utility_reward" in taught["normal"]:
        lines.append(["normal: reward", *values("normal", "utility_reward")])
    lines.append(["fluency", *values("unlearned", "fluency")])
    lines.append(["not meaningful", *rates("unlearned", "not_meaningful_rate")])
    return [[row["scenario"], str(row["seed"]), *line] for line in lines]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as a page."""
    table = Table(HEADER, [line for row in rows for line in lines_of(row)]).markdown()
    steps = [
        [
            row["scenario"],
            *(
                str(row[name])
                for name in ("seed", "steps", "kept_step", "stop_reason", "processor")
            ),
        ]
        for row in rows
    ]
    ended = Table(
        ["scenario", "seed", "steps", "kept step", "ended by", "processor"], steps
    ).markdown()
    return f"# The demos\n\n{LEGEND}\n\n{table}\n\n{ended}"


def main() -> None:
    """Runs the demos whose results do not exist."""
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
