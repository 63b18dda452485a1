"""Peak resident memory of training steps: ours against the naive one, each in a process of its own.

    python benchmarks/memory.py [--short] [--json FILE] [--case NAME ...]

The ratio is ours / naive. The peak is that of the whole process, Python, libraries and loading
included.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import record
import torch
from steps.cases import CASES, Case, chosen, naive_step, our_step

from unteach.trainer.costs import peak_memory_mb


def peak(case: Case, side: str, steps: int) -> float:
    """Peak memory of this process in MiB, after so many steps."""
    from steps.cases import MODEL

    from unteach import models

    ours = our_step(
        case, models.load_model(MODEL, dtype=case.dtype if side == "ours" else torch.float32)
    )
    trees = ours.trainer.collator.trees
    if side == "ours":
        ours.trainer.prepare()
        for step in range(steps):
            ours(ours.items(step))
    else:
        naive = naive_step(case, ours.model)
        for step in range(steps):
            naive(trees(ours.items(step)))
    return peak_memory_mb()


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--child"]:
        name, side, steps = json.loads(sys.argv[2])
        print(peak(next(case for case in CASES if case.name == name), side, steps))
        return
    options = record.options(__doc__, cases=True)
    rows: list[dict[str, Any]] = []
    steps = 2 if options.short else 4
    for case in chosen(options.case):
        ours, naive = (
            float(record.in_own_process(__file__, json.dumps([case.name, side, steps])))
            for side in ("ours", "naive")
        )
        rows.append(record.compared(case.name, ours, naive, "MiB"))
        record.write(rows, options.json)  # a later case may fail
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
