"""A training step on a GPU at the shapes of OPT-1.3B and Llama-7B: ours and the naive one of
benchmarks/steps/naive.py, in turns.

    python benchmarks/gpu_step.py [--short] [--json FILE] [--case NAME ...]

The weights are random: time and memory do not depend on them. Both sides start from the same
weights, hold them in the same precision and run under bfloat16 autocast, without cuDNN's attention,
whose plans would cost the naive side a second for each new shape.

`tokens/s` counts the non-padding tokens of a packed batch, for both sides. `share` is the useful
floating-point operations of our step (6 x parameters x tokens; 4 x with an adapter, because frozen
weights get no gradient) over its time, as a share of the rate of a bfloat16 product of two
8192 x 8192 matrices in the same process. Peak memory is the highest that the CUDA allocator held
for one side while the other was idle. `--short` is two turns instead of nine. Without a GPU nothing
is measured.
"""

from __future__ import annotations

import copy
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import record
import torch
from steps import shapes
from steps.cases import LEARNING_RATE, WEIGHTS
from steps.naive import NaiveStep
from steps.ours import OurStep, adapter

GIB = 2**30


@dataclass(frozen=True)
class GpuCase:
    """One row of the table: a model's shape, how much of it is trained, forget rows in a step."""

    model: str
    batch: int
    shape: shapes.Shape = shapes.PAPER
    lora: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        parts = [self.model, "lora" if self.lora else "full", f"batch-{self.batch}"]
        parts += ["long-prompts"] if self.shape is shapes.PROMPT_HEAVY else []
        return "-".join(parts + ["compiled"] * self.compiled)


CASES = [
    GpuCase("opt-1.3b", 8),
    GpuCase("opt-1.3b", 32),
    GpuCase("llama-7b", 8, lora=True),
    GpuCase("opt-1.3b", 8, shapes.PROMPT_HEAVY),
    GpuCase("opt-1.3b", 8, compiled=True),
    GpuCase("llama-7b", 32, lora=True),
    GpuCase("llama-7b", 8, lora=True, compiled=True),
]


def random_model(name: str, dtype: torch.dtype, device: str) -> Any:
    """A model of that shape, made where it is used."""
    import transformers

    config: Any
    if name == "opt-1.3b":
        config = transformers.OPTConfig(
            hidden_size=2048,
            ffn_dim=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            word_embed_proj_dim=2048,
            dropout=0.0,
        )
    else:
        config = transformers.LlamaConfig()  # its defaults are those of Llama-7B
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def product_rate(device: str, size: int = 8192) -> float:
    """FLOP/s of a bfloat16 product of two square matrices of random numbers."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = [seconds(lambda: left @ right) for _ in range(13)][3:]
    return 2 * size**3 / statistics.median(taken)


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes until the GPU has done all of it."""
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def allocated(peak: bool = False) -> float:
    """GiB that the CUDA allocator holds now, or has held at most since the last reset."""
    return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / GIB


def measure(case: GpuCase, turns: int, rate: float, device: str) -> dict[str, Any]:
    """One row of the table."""
    model = random_model(case.model, torch.bfloat16 if case.lora else torch.float32, device)
    peft_config = adapter() if case.lora else None
    shape = replace(case.shape, batch=case.batch, rows=4 * case.batch)
    forget, retain = shapes.rows(shape, model.config.vocab_size)
    gc.collect()
    ours = OurStep(
        model,
        forget,
        retain,
        peft_config,
        method="ga_mismatch",
        mismatch_completions=shape.mismatch,
        per_device_train_batch_size=shape.batch,
        learning_rate=LEARNING_RATE,
        bf16=True,
        compile_layers=case.compiled,
    )
    del model
    preparing = seconds(ours.trainer.prepare)
    trees = ours.trainer.collator.trees
    torch.cuda.reset_peak_memory_stats()
    first = seconds(lambda: ours(ours.items(0)))
    for step in range(1, 3):
        ours(ours.items(step))
    our_memory, idle = allocated(peak=True), allocated()
    own = [seconds(lambda step=step: ours(ours.items(step))) for step in range(turns)]
    tokens = [sum(map(len, trees(ours.items(step)))) for step in range(turns)]
    beside = against_naive(ours, turns, idle)
    parameters = sum(parameter.numel() for parameter in ours.model.parameters())
    operations = (4 if case.lora else 6) * parameters
    return {
        "case": case.name,
        "ours": statistics.median(own),
        "unit": "s",
        "tokens_per_second": statistics.median(n / a for n, a in zip(tokens, own, strict=True)),
        "share": (
            statistics.median(operations * n / a for n, a in zip(tokens, own, strict=True)) / rate
        ),
        "memory_gib": our_memory,
        "preparing_seconds": preparing,
        "first_step_seconds": first,
        "tokens": statistics.median(tokens),
        "packed": ours.trainer.collator.packed,
        "turns": turns,
        **beside,
    }


def against_naive(ours: OurStep, turns: int, idle: float) -> dict[str, Any]:
    """The naive step's part of the row: both sides taking turns; NaN where it needs more memory
    than there is beside our side, idle.
    """
    trees = ours.trainer.collator.trees
    try:
        naive = NaiveStep(
            copy.deepcopy(ours.model), WEIGHTS, bf16=True, learning_rate=LEARNING_RATE
        )
        difference = abs(
            float(naive.loss(trees(ours.items(0))).detach()) - ours.backward(ours.items(0))
        )
        ours.trainer.optimizer.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        for step in range(2):
            naive(trees(ours.items(step)))
        memory = allocated(peak=True) - idle
        own, others, tokens = [], [], []
        for step in range(turns):
            items = ours.items(step)
            own.append(seconds(lambda items=items: ours(items)))
            others.append(seconds(lambda items=items: naive(trees(items))))
            tokens.append(sum(map(len, trees(items))))
    except torch.cuda.OutOfMemoryError:
        return dict.fromkeys(
            ("naive", "ratio", "naive_tokens_per_second", "naive_memory_gib", "loss_difference"),
            math.nan,
        )
    return {
        "ours": statistics.median(own),
        "naive": statistics.median(others),
        "ratio": statistics.median(b / a for a, b in zip(own, others, strict=True)),
        "naive_tokens_per_second": statistics.median(
            n / b for n, b in zip(tokens, others, strict=True)
        ),
        "naive_memory_gib": memory,
        "loss_difference": difference,
    }


def main() -> None:
    """Runs the benchmark."""
    options = record.options(__doc__, cases=True)
    if not torch.cuda.is_available():
        print("no GPU: nothing is measured")
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    rate = product_rate("cuda")
    print(f"bfloat16 products: {rate / 1e12:.0f} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    for case in [case for case in CASES if not options.case or case.name in options.case]:
        row = measure(case, 2 if options.short else 9, rate, "cuda")
        gc.collect()
        torch.cuda.empty_cache()
        rows.append(row | {"product_rate": rate})
        record.write(rows, options.json)  # a later case may fail
        print(
            f"{case.name}: {row['ours']:.4f} s against {row['naive']:.4f},"
            f" {row['tokens_per_second']:.0f} tokens/s, share {row['share']:.2f},"
            f" {row['memory_gib']:.1f} GiB against {row['naive_memory_gib']:.1f}, loss apart by"
            f" {row['loss_difference']:.2g}; prepared in {row['preparing_seconds']:.1f} s, first"
            f" step {row['first_step_seconds']:.1f} s",
            flush=True,
        )
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
