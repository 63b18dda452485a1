"""Seconds of a training step: ours and the naive one of benchmarks/steps/naive.py, with the same
loss on the same batches, in turns.

    python benchmarks/step_time.py [--short] [--json FILE] [--case NAME ...]

Each case first checks that both sides have the same loss. The ratio is the median over the steps of
naive seconds / our seconds; `naive` is at the precision of the case, `naive_fp32` the same step in
float32 (what the released code runs), where that is another one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from steps.cases import Case, chosen, has_bf16, pair


def seconds(step: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure(case: Case, steps: int) -> dict[str, Any]:
    """One row of the table."""
    ours, naive = pair(case)
    trees = ours.trainer.collator.trees
    first = ours.items(0)
    loss, wanted = ours.backward(first), float(naive.loss(trees(first)).detach())
    ours.trainer.optimizer.zero_grad()
    own, others, others_fp32 = [], [], []
    for step in range(-1, steps):  # the first turn warms up
        items = ours.items(step + 1)
        our_time = seconds(lambda items=items: ours(items))
        naive_time = fp32_time = seconds(lambda items=items: naive(trees(items)))
        if case.bf16:
            naive.bf16 = False
            fp32_time = seconds(lambda items=items: naive(trees(items)))
            naive.bf16 = True
        if step >= 0:
            own.append(our_time)
            others.append(naive_time)
            others_fp32.append(fp32_time)
    return {
        "case": case.name,
        "ours": statistics.median(own),
        "naive": statistics.median(others),
        "ratio": statistics.median(b / a for a, b in zip(own, others, strict=True)),
        "unit": "s",
        "naive_fp32": statistics.median(others_fp32),
        "ratio_to_naive_fp32": statistics.median(
            b / a for a, b in zip(own, others_fp32, strict=True)
        ),
        "loss_difference": abs(loss - wanted),
        "bf16_in_hardware": has_bf16(),
        "packed": ours.trainer.collator.packed,
        "threads": torch.get_num_threads(),
        "steps": steps,
    }


def main() -> None:
    """Runs the benchmark."""
    options = record.options(__doc__, cases=True)
    rows: list[dict[str, Any]] = []
    for case in chosen(options.case):
        rows.append(measure(case, 2 if options.short else 7))
        record.write(rows, options.json)  # a later case may fail
        print(f"{case.name} is measured", flush=True)
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
