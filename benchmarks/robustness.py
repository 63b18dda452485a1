"""Seconds of a training step with each wrapper of `--robust` that works in steps and without one,
in turns.

    python benchmarks/robustness.py [--short] [--json FILE]

One trainer on the rows of the case `full-fp32` of `step_time.py`, all weights, default settings.
`ratio` is the median over the steps of a wrapper's seconds / the plain step's, `tokens` that of the
tokens that had a pass.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import record
from steps.cases import CASES, MODEL, our_step

from unteach import models
from unteach.models.parts import layer_list
from unteach.robust import ROBUST, wrappers

IN_STEPS = [name for name, kind in ROBUST.items() if not kind.after]
"""The wrappers that work in a step; `distill` is a training of its own after the last one."""


def main() -> None:
    """Runs the benchmark."""
    options = record.options(__doc__)
    turns, names = 2 if options.short else 7, ["none", *IN_STEPS]
    side = our_step(CASES[0], models.load_model(MODEL), method="unlikelihood")
    trainer = side.trainer
    trainer.prepare_references()
    layers = layer_list(side.model)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, float] = {}
    for turn in range(-1, turns):  # the first turn warms up
        for name in names:
            kinds = wrappers(name).values()
            trainer.robust.wrappers = [kind(trainer.config, layers) for kind in kinds]
            trainer.collator.apart = bool(kinds)
            started = time.perf_counter()
            side(side.items(turn + 1))
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
            tokens[name] = trainer.take_means()["tokens"]
    rows: list[dict[str, Any]] = [
        {
            "case": name,
            "ours": statistics.median(seconds[name]),
            "naive": statistics.median(seconds["none"]),
            "ratio": statistics.median(
                a / b for a, b in zip(seconds[name], seconds["none"], strict=True)
            ),
            "unit": "s",
            "tokens": round(tokens[name] / tokens["none"], 2),
        }
        for name in IN_STEPS
    ]
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
