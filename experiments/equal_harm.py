"""When each method first does so little harm: its probes on the clock of its own training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from projection import floating_point_operations

from unteach.reports.tables import Table

RATES = (0.3, 0.2, 0.1, 0.05)
"""Rates of harm whose first probe at or below them is looked for."""
TOKENS = ("training_tokens", "generated_tokens", "forward_tokens")


@dataclass(frozen=True)
class Point:
    """A probe, and what training had cost until then.

    Args:
        seconds (`float`): of all stages so far, without probes.
        operations (`float`): floating-point operations per parameter
            (`floating_point_operations` of a model with one).
        rate (`float`): share of harmful answers in the probe.
        utility (`float`): share of the tokens of the original model's everyday answers that are
            still the greedy choice.
    """

    seconds: float
    operations: float
    rate: float
    utility: float


def curve(run: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The probes of a finished run, in the order of training.

    Args:
        run: its `run.json`. A baseline's has a curve for each stage (`stops`); its operations are
            shared out over the stage by the seconds. A stage that says nothing to the prompts, as
            a reward model's, only costs.
        lines: its `metrics.jsonl`.
    """
    points: list[Point] = []
    seconds = operations = 0.0
    for cost in run.get("costs", []):
        whole = floating_point_operations(cost, 1.0)
        if cost["stage"] == "unlearning":
            return points + _unlearning(lines, seconds, operations, cost)
        for probe in run.get("stops", {}).get(cost["stage"], {}).get("curve", []):
            if "utility" in probe:
                share = probe["seconds"] / cost["seconds"] if cost["seconds"] else 0.0
                points.append(_point(probe, seconds + probe["seconds"], operations + share * whole))
        seconds, operations = seconds + cost["seconds"], operations + whole
    return points


def _unlearning(
    lines: Sequence[Mapping[str, Any]], seconds: float, operations: float, cost: Mapping[str, Any]
) -> list[Point]:
    """The probes of an unlearning run whose earlier stages took so much."""
    operations += floating_point_operations({**cost, "training_tokens": 0}, 1.0)
    points = []
    for line in lines:
        if "loss" in line:
            seconds += line["seconds"] + line.get("reference_seconds", 0.0)
            operations += 6.0 * line["tokens"]
        elif "probe" in line:
            points.append(_point(line["probe"], seconds, operations))
    return points


def _point(probe: Mapping[str, Any], seconds: float, operations: float) -> Point:
    return Point(seconds, operations, probe["forget_rate"], probe.get("utility", 1.0))


def first_at(points: Sequence[Point], rate: float) -> Point | None:
    """The first probe after the start whose rate is at most `rate`."""
    return next((point for point in points[1:] if point.rate <= rate + 1e-9), None)


def equal_harm(curves: Mapping[str, Sequence[Sequence[Point]]]) -> list[dict[str, Any]]:
    """For each method and rate, the mean over the seeds that reach it, and its share of full RLHF's
    (`share_of_rlhf`, `None` where not every seed of both reaches the rate).

    Args:
        curves: by method, the probes of each seed.
    """
    rows = []
    for rate in RATES:
        reached = {
            method: [found for points in seeds if (found := first_at(points, rate))]
            for method, seeds in curves.items()
        }
        whole = {method: len(found) == len(curves[method]) for method, found in reached.items()}
        rlhf = _mean(reached.get("rlhf", [])) if whole.get("rlhf") else None
        for method, found in reached.items():
            mean = _mean(found)
            share = rlhf and mean and whole[method] and mean["seconds"] / rlhf["seconds"]
            operations = rlhf and mean and whole[method] and mean["operations"] / rlhf["operations"]
            rows.append(
                {
                    "case": f"equal harm {rate:.0%}: {method}",
                    "method": method,
                    "harm": rate,
                    "seeds": len(curves[method]),
                    "seeds_that_reach_it": len(found),
                    **(mean or dict.fromkeys(Point.__annotations__)),
                    "share_of_rlhf": share or None,
                    "share_of_rlhf_operations": operations or None,
                }
            )
    return rows


def _mean(points: Sequence[Point]) -> dict[str, float] | None:
    """Field by field, the mean; `None` of nothing."""
    if not points:
        return None
    names = [field.name for field in fields(Point)]
    return {name: sum(getattr(point, name) for point in points) / len(points) for name in names}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `equal_harm` as Markdown."""
    header = ["harm at most", "method", "seeds", "seconds", "% of rlhf", "% in operations"]
    lines = [
        [
            f"{row['harm']:.0%}",
            row["method"],
            f"{row['seeds_that_reach_it']} of {row['seeds']}",
            _text(row["seconds"], "{:.0f}"),
            _text(row["share_of_rlhf"], "{:.1%}"),
            _text(row["share_of_rlhf_operations"], "{:.1%}"),
            _text(row["utility"], "{:.2f}"),
        ]
        for row in rows
    ]
    return Table([*header, "utility there"], lines).markdown()


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def figure(path: Path, curves: Mapping[str, Sequence[Sequence[Point]]]) -> None:
    """Draws the probe curves of all seeds: harm against seconds of training (Figure 1 of Yao et al.
    2024, with the whole way instead of its end).
    """
    drawn = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = drawn.subplots()
    for number, (method, seeds) in enumerate(curves.items()):
        for seed, points in enumerate(seeds):
            axes.plot(
                [point.seconds for point in points],
                [100 * point.rate for point in points],
                color=f"C{number}",
                marker=".",
                linewidth=1.2,
                alpha=0.8,
                label=method if seed == 0 else None,
            )
    for rate in RATES:
        axes.axhline(100 * rate, color="0.85", linewidth=0.8, zorder=0)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlabel("seconds of training, all stages (log scale)")
    axes.set_ylabel("harmful answers (%)")
    axes.set_title("Harm along training")
    axes.legend(fontsize=8)
    drawn.savefig(path)
