"""The before/after table of `eval.json`, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

FORGET_SETS = ("unlearned", "unseen", "other_facts")
RATES = {
    "leak_rate": "leak rate",
    "harmful_rate": "harmful rate",
    "hallucination_rate": "hallucination rate",
}
COLUMNS = (
    ("harmful_rate", "harmful rate", "{:.0%}"),
    ("hallucination_rate", "hallucination rate", "{:.0%}"),
    ("leak_rate", "leak rate", "{:.0%}"),
    ("rouge_l_recall", "ROUGE-L recall", "{:.2f}"),
    ("longest_verbatim_run", "verbatim run (chars)", "{:.0f}"),
    ("fluency", "fluency (NLL)", "{:.2f}"),
    ("diversity", "diversity", "{:.2f}"),
    ("utility_reward", "reward", "{:.2f}"),
    ("similarity", "similarity", "{:.2f}"),
)


NARROW = {
    "rouge_l_recall": "recall",
    "fluency": "fluency",
    "utility_reward": "reward",
    "similarity": "similarity",
}
"""The columns that fit a terminal of 80 characters beside the headline rate, with short titles."""


def headline(evaluation: Mapping[str, Any]) -> str:
    """The rate that decides."""
    return str(evaluation.get("headline", "leak_rate"))


def cell(metrics: Mapping[str, Any], name: str, form: str, *, interval: bool = True) -> str:
    """A value with its interval (if wanted), `NM` where it is not meaningful, `-` where the set has
    no such metric.
    """
    result = metrics.get(name)
    if result is None:
        return "-"
    if result["value"] is None:
        return "NM"
    text = form.format(result["value"])
    if (
        interval
        and name in (*RATES, "utility_reward", "similarity")
        and result["ci_low"] is not None
    ):
        text += f" [{form.format(result['ci_low'])}, {form.format(result['ci_high'])}]"
    return text


def comparison_rows(
    evaluation: Mapping[str, Any], *, narrow: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each prompt set with each metric as `before -> after`; `narrow`: fewer
    columns, no intervals.
    """
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    rate = headline(evaluation)
    short = {
        rate: RATES[rate].removesuffix(" rate") if rate == "hallucination_rate" else RATES[rate],
        **NARROW,
    }
    del short[
        "utility_reward" if rate == "leak_rate" else "rouge_l_recall"
    ]  # one column less, or 80 characters are too few
    used = [
        column
        for column in COLUMNS
        if any(column[0] in metrics for metrics in before.values())
        and (not narrow or column[0] in short)
    ]
    header = ["prompt set", "n", *(short[name] if narrow else title for name, title, _ in used)]
    rows = []
    for name, metrics in before.items():
        n = max((result["n"] for result in metrics.values()), default=0)
        cells = []
        for metric, _, form in used:
            left, right = (
                cell(found, metric, form, interval=not narrow)
                for found in (metrics, after.get(name, {}))
            )
            cells.append("-" if left == right == "-" else f"{left} -> {right}")
        rows.append([name, str(n), *cells])
    return header, rows


def scorer_text(fact: Mapping[str, Any]) -> str:
    """Who scored a metric, with the held-out accuracy of a scorer that was trained."""
    accuracy = fact.get("held_out_accuracy")
    return str(fact["name"]) + (
        "" if accuracy is None else f" (held-out accuracy {accuracy:.0%} on {fact['n']} answers)"
    )


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def verdict(evaluation: Mapping[str, Any]) -> str:
    """The result in one sentence, from the headline metric of each set."""
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    rate, parts = headline(evaluation), []
    for name in ("unlearned", "unseen"):
        if rate in before.get(name, {}):
            parts.append(
                f"{name} {before[name][rate]['value']:.0%} -> {after[name][rate]['value']:.0%}"
            )
    sentence = (
        f"{RATES[rate].capitalize()}: " + ", ".join(parts) if parts else "No forget set was scored"
    )
    kept = []
    for name in ("kept", "kept_unseen"):
        if before.get(name, {}).get("rouge_l_recall", {}).get("value"):
            kept.append(
                f"{after[name]['rouge_l_recall']['value'] / before[name]['rouge_l_recall']['value']:.0%}"
                f" of {name}"
            )
    if kept:
        sentence += "; recall kept: " + ", ".join(kept)
    if "similarity" in after.get("normal", {}):
        sentence += (
            f"; normal answers {after['normal']['similarity']['value']:.2f} similar to the"
            " original's"
        )
    return sentence + "."


def print_table(evaluation: Mapping[str, Any], console: Any) -> None:
    """The comparison as a rich table."""
    from rich import box
    from rich.table import Table

    header, rows = comparison_rows(evaluation, narrow=True)
    table = Table(title="before -> after", box=box.SIMPLE_HEAD)
    for column in header:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(verdict(evaluation), highlight=False)


DIRECTIONS = {True: "higher", False: "lower", None: "nearest"}
"""Which value is better; `nearest`: to the retrained model's, or to 0 for PrivLeak."""


def benchmark_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; a model that is another one's column again is left out."""
    models = dict(evaluation["models"])
    if models.get("original") == models.get("unlearned"):
        models.pop("original", None)
    header = ["set", "metric", "n", "better", *models]
    places = dict.fromkeys(
        (name, metric)
        for sets in models.values()
        for name, metrics in sets.items()
        for metric in metrics
    )
    rows = []
    for name, metric in sorted(
        places,
        key=lambda place: list(dict.fromkeys(set_name for set_name, _ in places)).index(place[0]),
    ):
        found = [sets.get(name, {}).get(metric) for sets in models.values()]
        known = next(result for result in found if result is not None)
        rows.append(
            [
                name,
                metric,
                str(known["n"]),
                DIRECTIONS[known["higher_is_better"]],
                *map(_benchmark_cell, found),
            ]
        )
    return header, rows


def _benchmark_cell(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "-"
    if result["value"] is None:
        return "NM"
    text = f"{result['value']:.3g}"
    return (
        text
        if result["ci_low"] is None
        else f"{text} [{result['ci_low']:.3g}, {result['ci_high']:.3g}]"
    )


def benchmark_markdown(evaluation: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    return markdown_table(*benchmark_rows(evaluation))


def print_benchmark(evaluation: Mapping[str, Any], console: Any) -> None:
    """The table on a rich console."""
    from rich import box
    from rich.table import Table

    header, rows = benchmark_rows(evaluation)
    table = Table(title=str(evaluation["scenario"]).upper(), box=box.SIMPLE_HEAD)
    for column in header:
        table.add_column(column, no_wrap=column in ("set", "metric"))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def time_text(seconds: float) -> str:
    """Seconds as a reader says them."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Prints what `unteach plan --json` gives."""
    table = Table(
        title=f"{plan['model']}, on each of {plan['processes']} device(s)",
        box=None,
        title_justify="left",
    )
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in plan["bytes"].items():
        table.add_row(name, f"{size / 2**30:.2f}")
    table.add_row("reference states on disk", f"{plan['disk_bytes'] / 2**30:.2f}", style="dim")
    table.add_row("peak", f"{plan['peak_bytes'] / 2**30:.2f}", style="bold")
    console.print(table)
    console.print(
        f"{plan['trained_parameters'] / 1e6:.1f} of {plan['parameters'] / 1e6:.1f} million"
        f" parameters are trained; {plan['tokens']} tokens and {plan['step_flops'] / 1e12:.3g} x"
        f" 10^12 operations a step; {plan['steps']} steps.",
        highlight=False,
        soft_wrap=True,
    )
    for rate, seconds in plan["seconds"].items():
        console.print(
            f"At {rate} x 10^12 operations a second: {time_text(seconds)} of training.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        "Computed, not measured. The parts are not all there at once, so the peak is less than"
        " their sum.",
        soft_wrap=True,
    )


def print_requests(
    entries: Sequence[Mapping[str, Any]], removed: set[int], console: Console
) -> None:
    """A line for each request: what it was, its rate before and after it, and the newest rate known
    of it.

    Args:
        entries: the ledger's lines, in order.
        removed (`set[int]`): ids of requests whose patch is out.
        console (`Console`)
    """
    newest: dict[int, float] = {}
    for entry in entries:
        if entry["event"] == "request":
            newest[entry["id"]] = entry["after"]
        rates = entry.get("earlier" if entry["event"] == "request" else "rates", {})
        newest |= {int(number): rate for number, rate in rates.items()}
    table = Table(title="Forget requests", title_justify="left")
    for name in ("id", "time", "rows", "method", "rounds", "before", "after", "now", "state"):
        table.add_column(name, justify="left" if name in ("time", "method", "state") else "right")
    for entry in entries:
        if entry["event"] == "request":
            number = entry["id"]
            state = (
                "taken out"
                if number in removed
                else ("adapter" if entry["kind"] == "adapter" else "all weights")
            )
            rates = (f"{rate:.0%}" for rate in (entry["before"], entry["after"], newest[number]))
            table.add_row(
                str(number),
                entry["time"],
                str(entry["data"]["rows"]),
                entry["method"],
                str(entry["rounds"]),
                *rates,
                state,
            )
    console.print(table)


SEARCH_NOTE = (
    "Short trials from the same weights. Score: utility kept, less the share still said, less the"
    " share of answers that mean nothing (NM)."
)
SEARCH_HEADER = [
    "method",
    "learning rate",
    "step",
    "still said",
    "held-out rows",
    "utility kept",
    "NM",
    "retain KL",
    "score",
    "seconds",
]


def picked(found: Mapping[str, Any]) -> str:
    """What was picked and why, and what there was no time for."""
    left = found.get("untried") or []
    return f"Picked {found['why']}." + (
        f" There was no time for {', '.join(left)}." if left else ""
    )


def search_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The rows below `SEARCH_HEADER` for `search` of `run.json`. A trial without a result says why in the
    place of its numbers.
    """
    rows = []
    for trial in sorted(found["trials"], key=lambda trial: (bool(trial["note"]), -trial["score"])):
        name = [trial["settings"]["method"], f"{trial['settings']['learning_rate']:g}"]
        if trial["note"]:
            rows.append([*name, *[""] * 6, trial["note"], f"{trial['seconds']:.0f}"])
            continue
        shares = [
            f"{trial[part]:.0%}"
            for part in ("forget_rate", "validation_rate", "utility", "not_meaningful")
        ]
        kl = "" if trial["retain_kl"] is None else f"{trial['retain_kl']:.3f}"
        rows.append(
            [
                *name,
                str(trial["step"]),
                *shares,
                kl,
                f"{trial['score']:.2f}",
                f"{trial['seconds']:.0f}",
            ]
        )
    return rows
