"""Writes docs/reference/methods/NAME.md for each method, from the docstrings, the dict of methods
and docs/results/methods.md.

`--check` only says what is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from pathlib import Path

from unteach.config import UnlearningConfig
from unteach.config.resolve import SCHEDULE
from unteach.losses.token import forward_kl_to_reference, negative_log_likelihood
from unteach.methods import METHODS, Method
from unteach.methods.pdu import DualWeight
from unteach.methods.rmu import (
    AdaptiveSteering,
    CircuitBreaker,
    Steering,
    state_drift,
    steering_vector,
)
from unteach.methods.task_vector import TaskVector, subtract

FOLDER = Path(__file__).parent / "reference" / "methods"
NOTES = tomllib.loads((FOLDER / "notes.toml").read_text(encoding="utf-8"))
RESULTS = Path(__file__).parent / "results" / "methods.md"
OPTIONS = {
    Steering: ("steering_",),
    AdaptiveSteering: ("steering_layer", "steering_update"),
    CircuitBreaker: ("steering_layer", "steering_update"),
    DualWeight: ("dual_",),
    TaskVector: ("task_vector_",),
}
"""Prefixes of the options that a method's hooks read."""
RETAIN = {"kl": forward_kl_to_reference, "nll": negative_log_likelihood, "states": state_drift}
LEVELS = {
    "token": "a mean over the completion's tokens",
    "sequence": "a mean over completions; log p(y|x) is the sum over a completion's tokens",
    "vocabulary": "a mean over the completion's tokens, each with its whole distribution",
    "state": "a mean over the completion's tokens, each with its hidden state at one layer",
}
COUNTERFACTUAL = (
    "summed over the completion's tokens, divided by the number of those on which the reference"
    " value is that of other contexts"
)
PREFERRED = {
    "right": (
        "a right answer in each forget row (field `right`, or preference rows with `chosen` and"
        " `rejected`)"
    ),
    "idk": (
        "nothing beside the forget rows: the preferred sentence of not knowing is drawn by seed"
        " and row"
    ),
    "alternate": (
        "another answer in each forget row (field `alternate`); `unteach run` samples it from the"
        " model where it is missing"
    ),
}


def prose(thing: object) -> str:
    """A docstring without its sections of arguments, results and errors."""
    text = inspect.getdoc(thing) or ""
    return re.split(r"\n\n(?:Args|Returns|Raises):\n", text)[0].strip()


def options(method: Method) -> list[str]:
    """Lines on the fields of `UnlearningConfig` that this method reads beside those of all."""
    fields = UnlearningConfig.__dataclass_fields__
    lines = [f"| `{name}` | {value:g} |" for name, value in method.parameters.items()]
    prefixes = OPTIONS.get(method.hooks, ())
    for name, field in fields.items():
        if name.startswith(prefixes):
            default = (
                "null"
                if field.default is None
                else f"{field.default:g}"
                if isinstance(field.default, float)
                else field.default
            )
            lines.append(
                f"| `{name}` | {default}"
                f" ({field.metadata['help'].partition('; default')[0].partition(': ')[2]}) |"
            )
    return lines


def measured(name: str, results: str) -> list[str]:
    """The method's row of the table that `experiments/methods.py` writes, with the table's header;
    nothing where it has none.

    Args:
        name (`str`): of the method.
        results (`str`): the page with the table.
    """
    lines = results.splitlines()
    rows = [place for place, line in enumerate(lines) if line.startswith(f"| `{name}` |")]
    if not rows:
        return []
    header = next(place for place in range(rows[0], -1, -1) if lines[place].startswith("| ---"))
    table = "\n".join([lines[header - 1], lines[header], lines[rows[0]]])
    made = (
        "The row was made with the copyright demo's settings, weights and KL budget among them, not"
        " with the defaults above."
    )
    if METHODS[name].forgets_end:  # a published method
        made = (
            "The row was made with the weights above and the copyright demo's steps, batches, K and"
            " schedule, without a KL budget."
        )
    return [
        "## Measured",
        table,
        f"{made} What the columns mean, and the other methods:"
        " [the table](../../results/methods.md).",
    ]


def of_a_run(name: str) -> list[str]:
    """What a run with the default method takes where nobody names it; nothing for the other
    methods.

    Args:
        name (`str`): of the method.
    """
    if not METHODS[name].settings:
        return []
    values = {
        option: f"{value:g}" if isinstance(value, float) else value
        for option, value in {**METHODS[name].settings, **SCHEDULE}.items()
    }
    rows = [f"| `{option}` | {value} |" for option, value in values.items()]
    words = (
        "These are the defaults of `UnlearningConfig`. A run (`unteach run`, `unteach.unlearn`)"
        " takes, of what you do not name:"
    )
    return [words, "\n".join(["| option | of a run |", "| --- | --- |", *rows])]


def page(name: str, method: Method) -> str:
    """The page of one method, as Markdown."""
    note = {key: " ".join(text.split()) for key, text in NOTES[name].items()}
    parts = [
        f"# `{name}`",
        f"Source: {method.source}.",
        "## When to use it",
        note["when"],
        "## What it minimises",
    ]
    parts.append(
        "eps1 · forget + eps2 · mismatch + eps3 · retain, each term divided by its own count"
        " ([overview](../methods.md))."
    )
    if method.forget is not None:
        parts += [
            f"**Forget** ({COUNTERFACTUAL if method.counterfactual else LEVELS[method.level]}):",
            prose(method.forget),
        ]
    if method.hooks is Steering:
        parts.append(prose(steering_vector))
    if method.hooks is TaskVector:
        parts += ["**After training:**", prose(subtract)]
    if method.mismatch:
        parts += [
            "**Mismatch**: cross-entropy on random completions of retain rows after the forget"
            " prompts, each weighted 1/K."
        ]
    if method.retain is not None:
        parts += [f"**Retain** (`retain_loss: {method.retain}`):", prose(RETAIN[method.retain])]
    if method.hooks is CircuitBreaker:
        parts += ["**Both terms and eps3:**", prose(CircuitBreaker)]
    if method.hooks is DualWeight:
        parts += ["**eps3:**", prose(DualWeight)]
    needs = ["completions to forget"] if method.forget is not None else []
    needs += ["a retain set"] if method.retain or method.mismatch else []
    needs += [PREFERRED[method.preferred]] if method.preferred else []
    needs += (
        ["the reference on the completions to forget (computed once, before training)"]
        if method.reference
        else []
    )
    parts += ["## What it needs", "\n".join(f"- {need}" for need in needs)]
    table = ["| option | default |", "| --- | --- |"]
    table += [
        f"| `{role}_weight` | {value:g} |"
        for role, value in zip(("forget", "mismatch", "retain"), method.weights, strict=True)
    ]
    table += (
        [f"| `forget_end_of_turn` | {str(method.forgets_end).lower()} |"]
        if method.forget is not None
        else []
    )
    table += [f"| `retain_loss` | {method.retain or 'none'} |", *options(method)]
    own = "[what a run takes by itself](../methods.md#what-each-setting-of-a-run-is-for)"
    table.append(f"| `learning_rate` of a run | {method.rate:g} times {own} |")
    parts += [
        "## Defaults",
        "\n".join(table),
        *of_a_run(name),
        f"Where they are from: {note['defaults']}.",
    ]
    parts += measured(name, RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "")
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {f"{name}.md": page(name, method) for name, method in METHODS.items()}


def out_of_date() -> list[str]:
    """Files in the folder that are missing, different, or of no method."""
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    return sorted(name for name in {*there, *pages()} if there.get(name) != pages().get(name))


def main() -> int:
    """Writes the pages, or with `--check` returns 1 where they are out of date."""
    stale = out_of_date()
    if "--check" in sys.argv[1:]:
        print("\n".join(stale))
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        text = pages().get(name)
        if text is None:
            (FOLDER / name).unlink()
        else:
            (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(stale)} of {len(pages())} pages written to {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
