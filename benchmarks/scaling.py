"""Growth of a step's time and of memory with the number of rows, prompt length, K and vocabulary
size; one process each.

    python benchmarks/scaling.py [--short] [--json FILE]

The model is a Llama of random weights (8 layers of width 256, vocabulary 8,192 unless stated),
float32, all weights trained. `rows` is the number of rows of each set, whose reference states are
computed and stored first. The other groups change one length of the paper's default shape (batch 2,
K = 5). The cases of a group run in turns, three rounds. A line has the median time of a step, its
tokens, microseconds a token (each the median of the rounds) and the highest peak memory of the
process. Ratios are to the first line of the group. `--json` writes a figure beside the file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import record
from steps.ours import OurStep
from steps.shapes import PAPER, Shape, rows

from unteach.trainer.costs import peak_memory_mb

VOCABULARY = 8192
GROUPS: dict[str, list[tuple[int, Shape, int]]] = {
    "rows": [(count, replace(PAPER, rows=count), VOCABULARY) for count in (100, 1000, 10_000)],
    "prompt": [
        (length, replace(PAPER, prompt=length), VOCABULARY) for length in (16, 64, 256, 512)
    ],
    "K": [(count, replace(PAPER, mismatch=count), VOCABULARY) for count in (1, 3, 5, 7)],
    "vocabulary": [(size, PAPER, size) for size in (8192, 32_768, 131_072)],
}


def measure(shape: Shape, vocabulary: int, steps: int) -> dict[str, float]:
    """Seconds, tokens and peak memory of so many steps, in this process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    forget, retain = rows(shape, vocabulary)
    ours = OurStep(
        LlamaForCausalLM(config),
        forget,
        retain,
        method="ga_mismatch",
        mismatch_completions=shape.mismatch,
        per_device_train_batch_size=shape.batch,
        learning_rate=1e-7,
    )
    ours.trainer.prepare()
    taken, tokens = [], []
    for number in range(steps + 2):
        items = ours.items(number)
        started = time.perf_counter()
        ours(items)
        taken.append(time.perf_counter() - started)
        tokens.append(sum(map(len, ours.trainer.collator.trees(items))))
    each = [1e6 * seconds / count for seconds, count in zip(taken[2:], tokens[2:], strict=True)]
    return {
        "seconds": statistics.median(taken[2:]),
        "tokens": statistics.fmean(tokens[2:]),
        "microseconds_a_token": statistics.median(each),
        "peak_mb": peak_memory_mb(),
    }


def in_own_process(shape: Shape, vocabulary: int, steps: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    arguments = json.dumps([asdict(shape), vocabulary, steps])
    return dict(json.loads(record.in_own_process(__file__, arguments)))


def of_rounds(found: list[dict[str, float]]) -> dict[str, float]:
    """One case's numbers from its rounds."""
    middle = {name: statistics.median(numbers[name] for numbers in found) for name in found[0]}
    return middle | {"peak_mb": max(numbers["peak_mb"] for numbers in found)}


def figure(found: list[dict[str, Any]], path: Path) -> None:
    """One panel a group: time a token and memory, as shares of the first."""
    import matplotlib.pyplot as plt

    canvas, panels = plt.subplots(
        1, len(GROUPS), figsize=(3.2 * len(GROUPS), 2.8), layout="constrained"
    )
    for panel, group in zip(panels, GROUPS, strict=True):
        lines = [line for line in found if line["group"] == group]
        at = [line["at"] for line in lines]
        panel.plot(
            at,
            [line["time_ratio"] for line in lines],
            marker="o",
            color="#00629b",
            label="time a token",
        )
        panel.plot(
            at,
            [line["memory_ratio"] for line in lines],
            marker="s",
            linestyle="--",
            color="#b3541e",
            label="peak memory",
        )
        panel.set(xscale="linear" if group == "K" else "log", xlabel=group, ylim=(0, None))
        panel.set_xticks(at, [f"{value:,}" for value in at])
        panel.minorticks_off()
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("ratio to the first")
    panels[0].legend(frameon=False, loc="lower left")
    canvas.savefig(path, dpi=150)
    plt.close(canvas)


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--child"]:
        shape, vocabulary, steps = json.loads(sys.argv[2])
        print(json.dumps(measure(Shape(**shape), vocabulary, steps)))
        return
    options = record.options(__doc__)
    found: list[dict[str, Any]] = []
    rounds, steps = (1, 4) if options.short else (3, 20)
    for group, cases in GROUPS.items():
        chosen = cases[:2] if options.short else cases
        measured = [
            [in_own_process(shape, vocabulary, steps) for _, shape, vocabulary in chosen]
            for _ in range(rounds)
        ]
        for (at, _, _), numbers in zip(chosen, zip(*measured, strict=True), strict=True):
            line: dict[str, Any] = {"group": group, "at": at, **of_rounds(list(numbers))}
            first = next((other for other in found if other["group"] == group), line)
            line["time_ratio"] = line["microseconds_a_token"] / first["microseconds_a_token"]
            line["memory_ratio"] = line["peak_mb"] / first["peak_mb"]
            found.append(line)
            print(
                f"{group:<11}{at:>8,}  {1000 * line['seconds']:7.0f} ms  {line['tokens']:6.0f}"
                f" tokens  {line['microseconds_a_token']:6.0f} us a token"
                f" ({line['time_ratio']:.2f})  {line['peak_mb']:6.0f} MiB"
                f" ({line['memory_ratio']:.2f})"
            )
    record.write(found, options.json)
    if options.json and not options.short:
        figure(found, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
