"""Useful operations of a step as a share of the machine's matrix-product rate.

    python benchmarks/roofline.py [--short] [--json FILE]

Useful floating-point operations: 6 x parameters x non-padding tokens (two for the forward pass,
four for the backward pass). `naive` is the rate of plain matrix products of the model's own shapes,
measured in turns with the steps; `ours` the useful operations over a step's time.
"""

from __future__ import annotations

import statistics
import time

import record
import torch
from steps.cases import CASES, MODEL, our_step

from unteach import models


def product_rate(tokens: int, model: torch.nn.Module, seconds: float) -> float:
    """GFLOP/s of (tokens, in) x (in, out) products, in the mix of shapes that the model's linear
    layers have.
    """
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    shapes = sorted({tuple(layer.weight.shape) for layer in layers})
    pairs = [
        (torch.randn(tokens, width), torch.randn(out, width))
        for out, width in shapes
        if out < 10_000
    ]
    work = sum(2 * tokens * left.shape[1] * right.shape[0] for left, right in pairs)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for left, right in pairs:
            torch.nn.functional.linear(left, right)
        done += work
    return done / (time.perf_counter() - started) / 1e9


def main() -> None:
    """Runs the benchmark."""
    options = record.options(__doc__)
    rows = []
    for case in [case for case in CASES if not case.bf16 and not case.lora]:
        ours = our_step(case, models.load_model(MODEL))
        ours.trainer.prepare()
        parameters = sum(parameter.numel() for parameter in ours.model.parameters())
        rates, useful = [], []
        for step in range(-1, 2 if options.short else 7):
            items = ours.items(step + 1)
            tokens = sum(map(len, ours.trainer.collator.trees(items)))
            rate = product_rate(tokens, ours.model, 1.0)
            started = time.perf_counter()
            ours(items)
            if step >= 0:
                useful.append(6 * parameters * tokens / (time.perf_counter() - started) / 1e9)
                rates.append(rate)
        share = statistics.median(a / b for a, b in zip(useful, rates, strict=True))
        rows.append(
            {
                "case": case.name,
                "ours": statistics.median(useful),
                "naive": statistics.median(rates),
                "ratio": share,
                "unit": "GFLOP/s",
                "parameters": parameters,
            }
        )
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
