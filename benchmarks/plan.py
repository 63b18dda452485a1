"""Planned against measured peak memory of training, each run in its own process, on models with
random weights.

    python benchmarks/plan.py [--short] [--json FILE] [--case NAME ...]

The ratio is planned / measured. The measured peak is the process's highest resident memory, Python
and libraries included.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import record
from steps import shapes
from steps.ours import RANK, StubTokenizer, adapter

from unteach.config import UnlearningConfig
from unteach.plan import PlanOptions, model_shape, plan_memory
from unteach.trainer.costs import peak_memory_mb

ROWS = shapes.Shape(
    batch=2, prompt=48, completion=64, retain_prompt=48, retain_completion=32, rows=16
)


@dataclass(frozen=True)
class Case:
    """One row of the table: a model's sizes, and whether an adapter is trained instead of all
    weights.
    """

    name: str
    sizes: dict[str, int]
    lora: bool = False


SMALL = {
    "hidden_size": 448,
    "intermediate_size": 1216,
    "num_hidden_layers": 8,
    "num_attention_heads": 7,
    "num_key_value_heads": 7,
}
MIDDLE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
BROAD = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
SIZES = {
    "30M": SMALL | {"vocab_size": 24576},
    "135M": MIDDLE | {"vocab_size": 49152},
    "245M": LARGE | {"vocab_size": 32000},
    "125M": BROAD | {"vocab_size": 40000},
}
"""The plan's constants were fitted on the first three; the last was measured afterwards."""
CASES = [
    Case(f"{name}-{'lora' if lora else 'full'}", sizes, lora)
    for name, sizes in SIZES.items()
    for lora in (False, True)
]


def model_config(case: Case) -> Any:
    """The Llama of these sizes."""
    from transformers import LlamaConfig

    return LlamaConfig(**case.sizes, tie_word_embeddings=True, max_position_embeddings=2048)


def settings(case: Case, folder: str) -> UnlearningConfig:
    """The options of the run that is planned and measured."""
    return UnlearningConfig(
        output_dir=folder,
        method="ga_mismatch",
        per_device_train_batch_size=ROWS.batch,
        max_steps=2,
        use_cpu=True,
    )


def planned(case: Case) -> float:
    """MiB by the plan."""
    rows = PlanOptions(
        prompt_tokens=ROWS.prompt,
        completion_tokens=ROWS.completion,
        retain_prompt_tokens=ROWS.retain_prompt,
        retain_completion_tokens=ROWS.retain_completion,
        retain_rows=ROWS.rows,
    )
    with tempfile.TemporaryDirectory() as folder:
        shape = model_shape(model_config(case), lora_rank=RANK if case.lora else 0)
        return plan_memory(shape, settings(case, folder), rows).peak / 2**20


def measured(case: Case) -> float:
    """Peak memory of this process in MiB, after a run."""
    import torch
    from transformers import AutoModelForCausalLM

    from unteach.trainer import UnlearningTrainer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(case))
    forget, retain = shapes.rows(ROWS, case.sizes["vocab_size"])
    peft_config = adapter() if case.lora else None
    with tempfile.TemporaryDirectory() as folder:
        config = settings(case, folder)
        UnlearningTrainer(model, config, forget, retain, StubTokenizer(), peft_config).train()
    return peak_memory_mb()


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--child"]:
        print(measured(next(case for case in CASES if case.name == sys.argv[2])))
        return
    options = record.options(__doc__, cases=True)
    rows: list[dict[str, Any]] = []
    cases = [case for case in CASES if not options.case or case.name in options.case]
    for case in cases[:2] if options.short else cases:
        peak = float(record.in_own_process(__file__, case.name))
        rows.append(record.compared(case.name, planned(case), peak, "MiB"))
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
