"""A table of text for Markdown, LaTeX and the terminal, and the tables that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from unteach.reports.results import Results

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """Cells of text under a header.

    Args:
        header: titles of the columns.
        rows: cells, row by row.
        groups: for each column the title above it, or an empty string.
        text_columns: titles of the columns that hold words, aligned left.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[str] = ()
    text_columns: Sequence[str] = ()

    @property
    def titles(self) -> list[str]:
        """The columns' titles with their groups."""
        groups = self.groups or [""] * len(self.header)
        pairs = zip(groups, self.header, strict=True)
        return [f"{group}: {title}" if group else title for group, title in pairs]

    @property
    def width(self) -> int:
        """Characters of a line on a terminal."""
        columns = zip(self.titles, *self.rows, strict=True)
        return 2 + sum(max(map(len, column)) + 2 for column in columns)

    def markdown(self) -> str:
        """A Markdown table; a cell's line breaks, bars and angle brackets do not break it."""
        lines = [self.titles, ["---"] * len(self.header), *self.rows]
        return "".join(f"| {' | '.join(map(markdown_text, line))} |\n" for line in lines)

    def latex(self) -> str:
        """A `tabular` for booktabs: groups span their columns, a rule where the first column's
        value changes.
        """
        align = "".join("l" if title in self.text_columns else "r" for title in self.header)
        spans = [(group, len(list(same))) for group, same in groupby(self.groups)]
        top = [
            rf"\multicolumn{{{span}}}{{c}}{{{latex_text(group)}}}" if group else " & " * (span - 1)
            for group, span in spans
        ]
        lines = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
        lines += [f"{' & '.join(top)} \\\\"] if any(self.groups) else []
        lines += [_latex_line(self.header), r"\midrule"]
        for place, row in enumerate(self.rows):
            lines += [r"\midrule"] if place and row[0] != self.rows[place - 1][0] else []
            lines.append(_latex_line(row))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def print(self, console: Console, caption: str | None = None) -> None:
        """Prints the table on a terminal."""
        heading = Text(caption) if caption else None
        style: dict[str, Any] = {
            "box": box.SIMPLE_HEAD,
            "collapse_padding": True,
            "pad_edge": False,
        }
        table = RichTable(title=heading, title_justify="left", **style)
        for title, name in zip(self.titles, self.header, strict=True):
            words = not self.text_columns or name in self.text_columns
            table.add_column(Text(title), no_wrap=True, justify="left" if words else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        console.print(table)


def markdown_text(text: str) -> str:
    """Text for one cell of Markdown, in which HTML stands for itself."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


def latex_text(text: str) -> str:
    """Text in which LaTeX's special characters stand for themselves."""
    return "".join(LATEX.get(character, character) for character in text)


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"


# --- an evaluation


def summary_table(results: Results, *, width: int | None = None) -> Table:
    """`original -> unlearned` of each prompt set (rows) and metric (columns).

    Args:
        width: without it all metrics, with intervals; else no intervals, and as many of the most
            important metrics as fit so many characters.
    """
    metrics, short = results.summary_metrics(), width is not None
    before, _ = results.pair

    def table() -> Table:
        rows = []
        for name, found in before.items():
            n = max((result["n"] for result in found.values()), default=0)
            cells = (results.before_after(name, m, with_interval=not short) for m in metrics)
            rows.append([results.set_title(name), str(n), *cells])
        titles = (results.title(metric, short=short) for metric in metrics)
        return Table(["prompt set", "n", *titles], rows, text_columns=["prompt set"])

    for metric in reversed(results.by_importance(metrics)):
        if width is None or table().width <= width:
            break
        metrics.remove(metric)
    return table()


def print_evaluation(evaluation: Mapping[str, Any], console: Console) -> None:
    """Prints the table of an `eval.json`, the verdict and what it rests on."""
    results = Results(evaluation)
    summary_table(results, width=console.width).print(console, "original -> unlearned model")
    lines = [results.changes(), *filter(None, [results.headline_line()])]
    if judgement := results.judgement():
        lines += ["", f"Verdict: {judgement}" if results.verdict else judgement]
    for line in [*lines, *(f"- {reason}" for reason in results.reason_lines)]:
        console.print(line, highlight=False, markup=False)


def benchmark_table(evaluation: Mapping[str, Any]) -> Table:
    """A line for each number of a benchmark and a column for each model; where only one model was
    evaluated, one column.
    """
    results = Results(evaluation)
    models = dict(results.models)
    if models.get("original") == models.get("unlearned"):
        models.pop("original", None)
    directions = {True: "higher", False: "lower", None: "nearest"}
    rows = []
    for name in dict.fromkeys(name for sets in models.values() for name in sets):
        for metric in dict.fromkeys(m for sets in models.values() for m in sets.get(name, {})):
            found = [sets.get(name, {}).get(metric) for sets in models.values()]
            known = next(result for result in found if result is not None)
            facts = [str(known["n"]), directions[known["higher_is_better"]]]
            cells = [results.shown(metric, result) for result in found]
            rows.append([results.set_title(name), results.title(metric), *facts, *cells])
    return Table(["prompt set", "metric", "n", "better", *models], rows)


# --- a plan, a ledger, a search


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Prints the memory and the time in the JSON of `unteach plan`."""
    sizes = dict(plan["bytes"])
    sizes |= {"reference states on disk": plan["disk_bytes"], "peak": plan["peak_bytes"]}
    rows = [[name, f"{size / 2**30:.2f}"] for name, size in sizes.items()]
    title = f"{plan['model']}, on each of {plan['processes']} device(s)"
    Table(["memory", "GiB"], rows, text_columns=["memory"]).print(console, title)
    lines = [
        f"{plan['trained_parameters'] / 1e6:.1f} of {plan['parameters'] / 1e6:.1f} million"
        f" parameters are trained; {plan['tokens']} tokens and {plan['step_flops'] / 1e12:.3g} x"
        f" 10^12 operations a step; {plan['steps']} steps.",
        *(
            f"At {rate} x 10^12 operations a second: {duration(seconds)} of training."
            for rate, seconds in plan["seconds"].items()
        ),
        "Computed, not measured. The parts are not all in memory at the same time, so the peak is"
        " less than their sum.",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def newest_rates(entries: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Each request's forget rate as measured last, from the lines of a ledger."""
    newest: dict[int, float] = {}
    for entry in entries:
        is_request = entry["event"] == "request"
        newest |= {entry["id"]: entry["after"]} if is_request else {}
        rates = entry.get("earlier" if is_request else "rates", {})
        newest |= {int(number): rate for number, rate in rates.items()}
    return newest


def request_table(entries: Sequence[Mapping[str, Any]], removed: set[int]) -> Table:
    """A line for each request in a ledger's lines: its forget rate before and after it, and the
    last measured; `removed`: ids of requests whose patch is removed.
    """
    newest = newest_rates(entries)
    kinds = {"adapter": "adapter", "full": "all weights"}
    rows = []
    for entry in entries:
        if entry["event"] == "request":
            number = entry["id"]
            rates = [f"{rate:.0%}" for rate in (entry["before"], entry["after"], newest[number])]
            state = "removed" if number in removed else kinds.get(entry["kind"], entry["kind"])
            date = entry["time"][:10]  # the ledger has the time; all columns fit 80 characters
            texts = [number, date, entry["data"]["rows"], entry["method"], entry["rounds"]]
            rows.append([*map(str, texts), *rates, state])
    names = ["id", "date", "rows", "method", "rounds", "before", "after", "now", "state"]
    return Table(names, rows, text_columns=["date", "method", "state"])


SEARCH_NOTE = (
    "Short trials from the same weights. Score: utility, less the forget rate, less the share of"
    " answers that are not readable (NM)."
)
SEARCH_COLUMNS = {
    "forget_rate": "forget rate",
    "validation_rate": "forget rate (held out)",
    "utility": "utility",
    "not_meaningful": "NM",
}


def search_choice(search: Mapping[str, Any]) -> str:
    """What `method=auto` chose and why, and which methods were not tried."""
    left = search.get("untried") or []
    text = f"Chosen: {search['why']}."
    return f"{text} Not tried, for lack of time: {', '.join(left)}." if left else text


def search_table(search: Mapping[str, Any]) -> Table:
    """The trials of `method=auto`, best first; a failed trial has its reason in place of the
    score.
    """
    rows = []
    trials = search["trials"]
    for trial in sorted(trials, key=lambda trial: (bool(trial["note"]), -trial["score"])):
        settings, seconds = trial["settings"], f"{trial['seconds']:.0f}"
        name = [settings["method"], f"{settings['learning_rate']:g}"]
        if trial["note"]:
            empty = [""] * (len(SEARCH_COLUMNS) + 2)
            rows.append([*name, *empty, trial["note"], seconds])
            continue
        shares = [f"{trial[field]:.0%}" for field in SEARCH_COLUMNS]
        kl = "" if trial["retain_kl"] is None else f"{trial['retain_kl']:.3f}"
        rows.append([*name, str(trial["step"]), *shares, kl, f"{trial['score']:.2f}", seconds])
    columns = ["method", "learning rate", "step", *SEARCH_COLUMNS.values()]
    return Table([*columns, "retain KL", "score", "seconds"], rows)
