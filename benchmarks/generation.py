"""Tokens generated a second in batches and one prompt at a time, on the same prompts, in turns.

It also counts the answers that differ in a token between the two (float32): there should be none.

    python benchmarks/generation.py [--short] [--json FILE]
"""

from __future__ import annotations

import statistics
import time

import record

from unteach import models
from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt
from unteach.evaluation.generation import TransformersGenerator
from unteach.scenarios.texts import lines

BATCHES = (4, 16, 32)


def main() -> None:
    """Runs the benchmark."""
    options = record.options(__doc__)
    name, tokens = "smollm2-135m-instruct", 32 if options.short else 64
    model, tokenizer = models.load_model(name), models.load_tokenizer(name)
    prompts = [
        encode_prompt(Row(line, "", "chat"), tokenizer)
        for line in lines("neutral_prompts")[: 16 if options.short else 64]
    ]

    def rate(batch: int) -> tuple[float, list[list[int]]]:
        started = time.perf_counter()
        outputs = TransformersGenerator(model, tokenizer, batch)(prompts, max_new_tokens=tokens)
        return sum(map(len, outputs)) / (time.perf_counter() - started), outputs

    rate(16)
    measured: dict[int, list[float]] = {batch: [] for batch in (1, *BATCHES)}
    different = dict.fromkeys(BATCHES, 0)
    for _ in range(1 if options.short else 3):
        one, wanted = rate(1)
        measured[1].append(one)
        for batch in BATCHES:
            speed, outputs = rate(batch)
            measured[batch].append(speed)
            different[batch] = sum(a != b for a, b in zip(outputs, wanted, strict=True))
    rows = [
        {
            "case": f"batch-{batch}",
            "ours": statistics.median(measured[batch]),
            "naive": statistics.median(measured[1]),
            "ratio": statistics.median(
                a / b for a, b in zip(measured[batch], measured[1], strict=True)
            ),
            "unit": "tokens/s",
            "answers": len(prompts),
            "different_answers": different[batch],
        }
        for batch in BATCHES
    ]
    record.finish(rows, options.json)
    print(
        {batch: f"{count} of {len(prompts)} answers differ" for batch, count in different.items()}
    )


if __name__ == "__main__":
    main()
