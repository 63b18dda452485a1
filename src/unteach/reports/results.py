"""The results in an `eval.json` of any version, and how tables, pages and cards write them.

Titles, formats and directions come from the file: nothing here, nor in any other report, depends on
a metric's or a prompt set's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unteach.evaluation.eval_json import upgraded

MEANINGS = {
    "forgotten": "the forget set is gone, and nothing that was measured was damaged",
    "forgotten with damage": "the forget set is gone, and other things with it",
    "not forgotten": "the forget set is still said, or was not known before",
    "collapsed": "the model has lost more than the forget set: it no longer answers other prompts"
    " in its own language; do not use it",
}
"""What each verdict means, for those who read nothing else."""
NOT_MEANINGFUL = "NM"
MISSING = "-"
Result = Mapping[str, Any]
Sets = Mapping[str, Mapping[str, Result]]


def number(value: float | None, form: str) -> str:
    """A value by a format specification; `NM` where it is not meaningful."""
    if value is None or not math.isfinite(value):
        return NOT_MEANINGFUL
    return format(value, form)


def interval(result: Result | None, form: str) -> str:
    """The 95% interval in brackets; empty where there is none."""
    if not result or None in (result["value"], result["ci_low"], result["ci_high"]):
        return ""
    return f"[{number(result['ci_low'], form)}, {number(result['ci_high'], form)}]"


def shown(result: Result | None, form: str, *, with_interval: bool = True) -> str:
    """A value with its interval; `-` where there is no result."""
    if result is None:
        return MISSING
    ends = interval(result, form) if with_interval else ""
    return f"{number(result['value'], form)} {ends}".rstrip()


def capitalised(text: str) -> str:
    """The text with its first letter in upper case and all others as they are."""
    return text[:1].upper() + text[1:]


def printable(text: str) -> str:
    """Untrusted text without control characters, lone surrogates and marks that change the
    direction of writing.
    """
    allowed = r"\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff"
    return re.sub(rf"[^{allowed}]|[\u202a-\u202e\u2066-\u2069]", "\ufffd", text)


@dataclass(frozen=True)
class Change:
    """How a value moved: an arrow, a word, and whether that is `good`, `bad` or `flat`."""

    arrow: str
    word: str
    tone: str = "flat"


class Results:
    """The content of an `eval.json`: `models` holds results by model, prompt set and metric,
    `metrics` and `sets` what the file states about each, `headline` the rate that decides,
    `verdict` (empty in older files) and `reasons` the judgement.
    """

    def __init__(self, evaluation: Mapping[str, Any]) -> None:
        self.content = upgraded(evaluation)
        self.models: Mapping[str, Sets] = self.content["models"]
        self.metrics: Mapping[str, Mapping[str, Any]] = self.content["metrics"]
        self.sets: Mapping[str, Mapping[str, Any]] = self.content["prompt_sets"]
        self.verdict = str(self.content.get("verdict") or "")
        self.reasons = [str(reason) for reason in self.content.get("reasons") or []]
        keys = [self.key_metric(name) for name in self.sets_of("forget")]
        self.headline = str(self.content.get("headline") or [*keys, ""][0])

    @property
    def pair(self) -> tuple[Sets, Sets]:
        """Results of the original model (or the first) and the unlearned one (or the last)."""
        models = list(self.models.values())
        before, after = self.models.get("original"), self.models.get("unlearned")
        return before or models[0], after or models[-1]

    def title(self, metric: str, *, short: bool = False) -> str:
        """A metric's title."""
        facts = self.metrics.get(metric, {})
        return str(facts.get("short_title" if short else "title", metric.replace("_", " ")))

    def set_title(self, name: str) -> str:
        """A prompt set's title."""
        return str(self.sets.get(name, {}).get("title", name.replace("_", " ")))

    def form(self, metric: str) -> str:
        """The format specification of a metric's values."""
        return str(self.metrics.get(metric, {}).get("format", ".3g"))

    def is_rate(self, metric: str) -> bool:
        """Whether a row's value is 0 or 1."""
        return self.metrics.get(metric, {}).get("interval") == "wilson"

    def sets_of(self, *roles: str) -> list[str]:
        """Names of the prompt sets with one of these roles."""
        return [name for name, facts in self.sets.items() if facts["role"] in roles]

    def key_metric(self, name: str) -> str:
        """The metric of a prompt set that is read first; empty if it has none."""
        return str(self.sets.get(name, {}).get("key_metric") or "")

    def value(self, metric: str, result: Result | None) -> str:
        """A metric's value in its own format."""
        return shown(result, self.form(metric), with_interval=False)

    def shown(self, metric: str, result: Result | None) -> str:
        """A metric's value in its own format, with its interval."""
        return shown(result, self.form(metric))

    def before_after(self, name: str, metric: str, *, with_interval: bool = False) -> str:
        """`original -> unlearned` of a metric on a prompt set."""
        write = self.shown if with_interval else self.value
        before, after = (write(metric, sets.get(name, {}).get(metric)) for sets in self.pair)
        return MISSING if before == after == MISSING else f"{before} -> {after}"

    def change(self, metric: str, before: Result | None, after: Result | None) -> Change | None:
        """How a value moved; not clear where the intervals overlap, `None` where the metric itself
        compares with the original model.
        """
        if self.metrics.get(metric, {}).get("against_original") or not before or not after:
            return None
        if before["value"] is None or after["value"] is None:
            return None
        if self.value(metric, before) == self.value(metric, after):
            return Change("=", "same")
        up = after["value"] > before["value"]
        arrow = "\u2191" if up else "\u2193"
        ends = [result[end] for result in (before, after) for end in ("ci_low", "ci_high")]
        if None in ends or (ends[0] <= ends[3] and ends[2] <= ends[1]):
            return Change(arrow, "not clear")
        if after["higher_is_better"] is None:
            return Change(arrow, "changed")
        better = up == after["higher_is_better"]
        return Change(arrow, "better" if better else "worse", "good" if better else "bad")

    def compared(self) -> dict[tuple[str, str], tuple[Result, Result]]:
        """Results before and after by (prompt set, metric), where both have a value."""
        before, after = self.pair
        pairs = {
            (name, metric): (result, after.get(name, {}).get(metric, {"value": None}))
            for name, metrics in before.items()
            for metric, result in metrics.items()
        }
        return {
            place: both
            for place, both in pairs.items()
            if None not in (both[0]["value"], both[1]["value"])
        }

    def summary_metrics(self) -> list[str]:
        """Metrics with a column in the table of both models."""
        wanted = {self.headline} | {m for m, facts in self.metrics.items() if facts["in_summary"]}
        return [metric for metric in self.metrics if metric in wanted]

    def by_importance(self, metrics: Sequence[str]) -> list[str]:
        """Metrics, those first that are key on a prompt set, then those that compare runs."""
        keys = [self.headline, *map(self.key_metric, self.sets)]
        compared = [metric for metric in metrics if self.metrics[metric]["compare_on"]]
        ordered = dict.fromkeys([*keys, *compared, *metrics])
        return [metric for metric in ordered if metric in metrics]

    def compare_metrics(self, name: str, found: Mapping[str, Any]) -> list[str]:
        """Metrics of a prompt set with a column in a table of several runs."""
        role = self.sets.get(name, {}).get("role", "kept")
        first = [self.headline] if role != "normal" else []
        others = [name for name, facts in self.metrics.items() if role in facts["compare_on"]]
        return [metric for metric in dict.fromkeys([*first, *others]) if metric in found]

    def judgement(self) -> str:
        """The verdict and what it means, or why there is none; empty for an older file."""
        if self.verdict:
            meaning = MEANINGS.get(self.verdict, "")
            return f"{capitalised(self.verdict)}: {meaning}." if meaning else self.verdict
        return f"No verdict: {'; '.join(self.reasons)}." if self.reasons else ""

    @property
    def tone(self) -> str:
        """`good`, `bad` or `flat`, for the colour of the verdict."""
        return {"": "flat", "forgotten": "good"}.get(self.verdict, "bad")

    @property
    def reason_lines(self) -> list[str]:
        """The reasons of the verdict, one a line; none where there is no verdict."""
        return self.reasons if self.verdict else []

    def announcement(self) -> str:
        """The verdict, and the change of the headline rate on the first forget set, in a few
        words.
        """
        change = self._headline_change()
        return f"{capitalised(self.verdict)}: {change}" if self.verdict else capitalised(change)

    def _headline_change(self) -> str:
        both, rate = self.compared(), self.headline
        for name in self.sets_of("forget"):
            if (name, rate) in both:
                title = self.title(rate)
                before, after = (self.value(rate, result) for result in both[name, rate])
                if before == after:
                    return f"{title} unchanged at {after}"
                down = both[name, rate][1]["value"] < both[name, rate][0]["value"]
                return f"{title} {'down' if down else 'up'} from {before} to {after}"
        return "no forget set was scored"

    def changes(self) -> str:
        """The key metric of each prompt set before and after, in one sentence."""
        both, parts = self.compared(), dict[str, list[str]]()
        for name in self.sets_of("forget", "kept", "normal"):
            metric = self.key_metric(name)
            if (name, metric) in both:
                text = self.before_after(name, metric)
                if self.metrics[metric]["against_original"]:
                    text = self.value(metric, both[name, metric][1])
                parts.setdefault(self.title(metric), []).append(f"{self.set_title(name)} {text}")
        scored = any((name, self.headline) in both for name in self.sets_of("forget"))
        texts = [] if scored else ["no forget set was scored"]
        texts += [f"{title}: {', '.join(found)}" for title, found in parts.items()]
        return capitalised("; ".join(texts)) + "."

    def headline_line(self) -> str:
        """The headline metric and why it is that; empty for an older file."""
        reason = self.content.get("headline_reason")
        return f"Headline: {self.title(self.headline)} ({reason})." if reason else ""

    def scorers(self) -> dict[str, str]:
        """Metric titles with who scored them, and the held-out accuracy of a trained scorer."""
        found = {}
        for metric, fact in self.content.get("scorers", {}).items():
            accuracy, text = fact.get("held_out_accuracy"), str(fact["name"])
            if accuracy is not None:
                text += f" (held-out accuracy {accuracy:.0%} on {fact['n']} answers)"
            found[self.title(metric)] = text
        threshold = self.content.get("leak_threshold_bleu")
        if threshold is not None:
            found["leak threshold"] = f"BLEU above {threshold:.2f} against the expected text"
        return found
